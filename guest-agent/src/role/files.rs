//! What a role finds in the file system: its package, mounted read-only at its
//! directory, and its settings.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use fabric_proto::id::RoleName;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{console, model::LaunchSpec};

/// Where the kernel tells of its disks.
const BLOCK_DEVICES: &str = "/sys/block";

/// Where roles' files are.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Parent of the roles' directories.
    pub roles: PathBuf,
    /// Parent of the directories with their settings.
    pub run: PathBuf,
    /// Whether this is a guest, where disks are mounted and files given away.
    pub guest: bool,
    /// The disks that were there when they were looked for: serial and device.
    pub disks: Vec<(String, PathBuf)>,
}

impl Layout {
    /// Looks for the disks before one is wanted: a look costs a guest that is copied more
    /// than this costs its template, and no disk comes or goes while a guest runs.
    ///
    /// # Errors
    ///
    /// When they cannot be looked through.
    pub fn look_for_disks(&mut self) -> io::Result<()> {
        self.disks = disks(Path::new(BLOCK_DEVICES))?;
        Ok(())
    }
}

/// What one role has.
#[derive(Debug)]
pub struct Files {
    /// Its working directory.
    pub directory: PathBuf,
    /// The file with its settings.
    pub settings: PathBuf,
    run: PathBuf,
    /// Whether its directories were made.
    made: bool,
    /// Serial of the disk that is mounted at the directory.
    mounted: Option<String>,
    /// The settings that were written, and for whom.
    written: Option<(BTreeMap<String, String>, Option<u32>)>,
    guest: bool,
    disks: Vec<(String, PathBuf)>,
}

/// Why a role's files could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A directory cannot be made.
    #[error("cannot make {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// There is no disk with its package.
    #[error("no disk has the serial {0:?} that package_disk_serial names")]
    NoDisk(String),
    /// The disks cannot be looked through.
    #[error("cannot look for disks in /sys/block")]
    Disks(#[source] io::Error),
    /// The package cannot be mounted.
    #[error("cannot mount {} (serial {serial:?}) at {}", .device.display(), .at.display())]
    Mount {
        /// The disk.
        device: PathBuf,
        /// Its serial.
        serial: String,
        /// The role's directory.
        at: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The settings cannot be written.
    #[error("cannot write {}", .0.display())]
    Settings(PathBuf, #[source] io::Error),
}

impl Files {
    /// The files of a role; none of them is made yet.
    pub fn new(layout: &Layout, role: &RoleName) -> Self {
        let run = layout.run.join(role.as_str());
        Self {
            directory: layout.roles.join(role.as_str()),
            settings: run.join("settings.json"),
            run,
            made: false,
            mounted: None,
            written: None,
            guest: layout.guest,
            disks: layout.disks.clone(),
        }
    }

    /// Lays out what `launch` needs.
    ///
    /// # Errors
    ///
    /// Says what is missing or cannot be made.
    pub fn lay_out(&mut self, launch: &LaunchSpec) -> Result<(), FilesError> {
        self.lay_out_package(launch)?;
        let owner = self.owner(launch);
        write_settings(&self.settings, &launch.settings, owner)
            .map_err(|error| FilesError::Settings(self.settings.clone(), error))?;
        self.written = Some((launch.settings.clone(), owner));
        Ok(())
    }

    /// All of that but what is the instance's own.
    ///
    /// # Errors
    ///
    /// As [`Files::lay_out`].
    pub fn lay_out_package(&mut self, launch: &LaunchSpec) -> Result<(), FilesError> {
        self.make_directories()?;
        if self.guest && self.mounted != launch.package {
            self.unmount();
            if let Some(serial) = &launch.package {
                self.mount(serial)?;
                self.mounted = Some(serial.clone());
            }
        }
        Ok(())
    }

    /// What [`Files::lay_out`] does for a process that goes on: what it has already stays as
    /// it is.
    ///
    /// # Errors
    ///
    /// As [`Files::lay_out`].
    pub fn lay_out_what_is_new(&mut self, launch: &LaunchSpec) -> Result<(), FilesError> {
        let settings = self.written.as_ref().is_some_and(|(settings, owner)| {
            *settings == launch.settings && *owner == self.owner(launch)
        });
        if settings && self.mounted == launch.package {
            return Ok(());
        }
        self.lay_out(launch)
    }

    fn owner(&self, launch: &LaunchSpec) -> Option<u32> {
        self.guest.then_some(launch.uid)
    }

    /// Nobody but root can take them away again.
    fn make_directories(&mut self) -> Result<(), FilesError> {
        if self.made {
            return Ok(());
        }
        for directory in [&self.directory, &self.run] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|error| FilesError::Directory(directory.clone(), error))?;
        }
        self.made = true;
        Ok(())
    }

    /// Takes away what the role leaves behind when it is not wanted any more.
    pub fn clear(&mut self) {
        self.unmount();
        (self.made, self.written) = (false, None);
        for path in [&self.run, &self.directory] {
            // A directory that something was put into by hand stays.
            _ = fs::remove_file(&self.settings);
            _ = fs::remove_dir(path);
        }
    }

    fn mount(&self, serial: &str) -> Result<(), FilesError> {
        let device = match with_serial(&self.disks, serial) {
            Some(device) => device,
            None => with_serial(
                &disks(Path::new(BLOCK_DEVICES)).map_err(FilesError::Disks)?,
                serial,
            )
            .ok_or_else(|| FilesError::NoDisk(serial.to_owned()))?,
        };
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        // A cache for writing extended attributes, which nobody does here.
        let options = Some(c"no_mbcache");
        mount(&device, &self.directory, "ext4", flags, options).map_err(|error| FilesError::Mount {
            device,
            serial: serial.to_owned(),
            at: self.directory.clone(),
            source: error.into(),
        })
    }

    fn unmount(&mut self) {
        if self.mounted.take().is_some()
            && let Err(error) = unmount(&self.directory, UnmountFlags::DETACH)
        {
            console::say(format_args!(
                "cannot unmount {}: {error}",
                self.directory.display()
            ));
        }
    }
}

/// All disks that have a serial, as virtio-blk reports it, and their devices.
fn disks(block: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(block)? {
        let entry = entry?;
        if let Ok(serial) = fs::read_to_string(entry.path().join("serial")) {
            let device = Path::new("/dev").join(entry.file_name());
            disks.push((serial.trim_end().to_owned(), device));
        }
    }
    Ok(disks)
}

/// The device of the disk with this serial.
fn with_serial(disks: &[(String, PathBuf)], serial: &str) -> Option<PathBuf> {
    let disk = disks.iter().find(|(found, _)| found == serial);
    disk.map(|(_, device)| device.clone())
}

/// Writes the settings as one JSON object, for the role's user alone, and at once:
/// a reader sees the old ones or the new ones whole.
fn write_settings(
    path: &Path,
    settings: &BTreeMap<String, String>,
    owner: Option<u32>,
) -> io::Result<()> {
    let new = path.with_extension("new");
    let open = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o400).open(&new)
    };
    let mut file = match open() {
        // Left by a write that was cut off.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&new)?;
            open()?
        }
        opened => opened?,
    };
    file.write_all(&serde_json::to_vec(settings)?)?;
    fchown(&file, owner, owner)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Hooks;

    #[test]
    fn a_disk_is_found_by_its_serial_and_nothing_else() {
        let block = tempfile::tempdir().unwrap();
        for (name, serial) in [
            ("vda", Some("os")),
            ("vdb", Some("package\n")),
            ("loop0", None),
        ] {
            fs::create_dir(block.path().join(name)).unwrap();
            if let Some(serial) = serial {
                fs::write(block.path().join(name).join("serial"), serial).unwrap();
            }
        }
        let disks = disks(block.path()).unwrap();
        let find = |serial| with_serial(&disks, serial);
        assert_eq!(find("package"), Some("/dev/vdb".into()));
        assert_eq!(find("pack"), None);
    }

    #[test]
    fn what_goes_on_keeps_its_settings_unless_they_are_others() {
        use std::os::unix::fs::MetadataExt as _;
        let state = tempfile::tempdir().unwrap();
        let layout = Layout {
            roles: state.path().join("role"),
            run: state.path().join("run"),
            guest: false,
            disks: Vec::new(),
        };
        let mut files = Files::new(&layout, &"web".parse().unwrap());
        let mut launch = LaunchSpec {
            command: vec![],
            environment: [].into(),
            settings: [].into(),
            uid: 1000,
            package: None,
            hooks: Hooks::default(),
        };
        files.lay_out(&launch).unwrap();
        // While it is open no other file has its number.
        let _first = fs::File::open(&files.settings).unwrap();
        let number = |files: &Files| fs::metadata(&files.settings).unwrap().ino();
        let first = number(&files);
        files.lay_out_what_is_new(&launch).unwrap();
        assert_eq!(number(&files), first);

        launch.settings.insert("colour".into(), "blue".into());
        files.lay_out_what_is_new(&launch).unwrap();
        let settings = fs::read_to_string(&files.settings).unwrap();
        assert_eq!(settings, r#"{"colour":"blue"}"#);
        files.lay_out(&launch).unwrap();
        assert_ne!(number(&files), first);

        files.clear();
        assert!(!files.settings.exists());
        files.lay_out_what_is_new(&launch).unwrap();
        assert!(files.settings.exists(), "what was taken away is new");
    }

    #[test]
    fn settings_are_replaced_whole_and_are_the_users_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.json");
        for colour in ["blue", "a \"quoted\"\n one"] {
            fs::write(path.with_extension("new"), "half").unwrap();
            let settings = [("colour".to_owned(), colour.to_owned())].into();
            write_settings(&path, &settings, None).unwrap();
            let read: BTreeMap<String, String> =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(read, settings);
        }
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o400
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
