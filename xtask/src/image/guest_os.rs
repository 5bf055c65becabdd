//! The guest OS image: guest agent and busybox on an ext4 root, in a dynamic VHD.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use vhd::BlockDevice as _;

use super::{
    cache,
    ext4::{Entry, FileSystem},
};
use crate::{apt, build, digest::Inputs, process, progress::Work, project::Project};

/// Debian's package with a busybox that needs no library.
const PACKAGE: &str = "busybox-static";

/// Changes with anything below that makes another image of the same inputs.
const RECIPE: &str = "guest-os 3";

const FILE: &str = "guest-os.vhd";

/// UUID of the file system.
const UUID: &str = "6661b21c-0000-4000-8000-000000000001";

/// Size of the disk. What a role writes goes to its own differencing disk of this
/// size; the file of the image holds only what is used.
const SIZE: u64 = 64 << 20;

/// Directories, in order. What is mounted over them comes from the guest agent.
const DIRECTORIES: [(&str, u16); 15] = [
    ("/bin", 0o755),
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/home", 0o755),
    ("/home/role", 0o755),
    ("/proc", 0o555),
    ("/role", 0o755),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sbin", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/usr", 0o755),
    ("/var", 0o755),
    ("/var/tmp", 0o1777),
];

/// The image, from the cache or built now.
pub fn ensure(project: &Project) -> Result<PathBuf> {
    let parts = Parts::gather(project)?;
    let digest = parts.digest()?;
    if let Some(image) = cache::lookup(project, "guest-os", &digest, FILE)? {
        eprintln!("Guest OS image: in the cache, nothing to do");
        return Ok(image);
    }
    let dir = project.temporary_dir("guest-os")?;
    let made = dir.path().join("made");
    fs::create_dir(&made).context("making the folder of the result")?;
    parts.build(dir.path(), &made.join(FILE))?;
    Ok(cache::keep(project, "guest-os", &digest, &made)?.join(FILE))
}

/// Builds the image anew, into a file of its own.
pub fn build_to(project: &Project, file: &Path) -> Result<()> {
    let parts = Parts::gather(project)?;
    let dir = project.temporary_dir("guest-os")?;
    parts.build(dir.path(), file)
}

/// What the image is made from.
struct Parts {
    agent: PathBuf,
    busybox_package: PathBuf,
    /// Files of the root, as they are in the project: path in the guest, path here.
    files: Vec<(String, PathBuf)>,
}

impl Parts {
    fn gather(project: &Project) -> Result<Self> {
        build::guest_programs(project)?;
        let mut files = Vec::new();
        let rootfs = project.root.join("images/guest-os/rootfs");
        collect(&rootfs, "", &mut files)?;
        files.sort();
        Ok(Self {
            agent: project.guest_program("guest-agent"),
            busybox_package: apt::package_file(project, PACKAGE)?,
            files,
        })
    }

    fn digest(&self) -> Result<String> {
        let mut inputs = Inputs::new(RECIPE);
        inputs.file("guest-agent", &self.agent)?;
        inputs.file("busybox", &self.busybox_package)?;
        for (name, path) in &self.files {
            inputs.file(name, path)?;
        }
        Ok(inputs.finish())
    }

    fn build(&self, scratch: &Path, image: &Path) -> Result<()> {
        let mut work = Work::begin("Building the guest OS image");
        let unpacked = scratch.join("package");
        apt::unpack(&self.busybox_package, &unpacked)?;
        let busybox = busybox_in(&unpacked)?;
        let file_system = FileSystem {
            label: "guest-os",
            uuid: UUID,
            size: SIZE,
            entries: self.entries(&busybox)?,
        };
        let raw = scratch.join("root.ext4");
        work.now("making the file system");
        file_system.make(&raw)?;
        work.now("writing the VHD");
        write_vhd(&raw, image)?;
        let size = fs::metadata(image).map_or(0, |metadata| metadata.len());
        work.done(&bytesize::ByteSize(size).to_string());
        Ok(())
    }

    fn entries(&self, busybox: &Path) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = DIRECTORIES
            .iter()
            .map(|(path, mode)| Entry::Directory {
                path: (*path).to_owned(),
                mode: *mode,
            })
            .collect();
        // First in their directories: found at once, and every page that the guest
        // reads counts.
        let program = |path: &str, contents: &Path| Entry::File {
            path: path.to_owned(),
            mode: 0o755,
            contents: contents.to_owned(),
        };
        entries.push(program("/sbin/guest-agent", &self.agent));
        entries.push(program("/bin/busybox", busybox));
        for (path, contents) in &self.files {
            let executable = fs::metadata(contents)
                .with_context(|| contents.display().to_string())?
                .permissions()
                .mode()
                & 0o111
                != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            entries.push(Entry::File {
                path: path.clone(),
                mode,
                contents: contents.clone(),
            });
        }
        for applet in applets(busybox)? {
            entries.push(Entry::Link {
                path: format!("/bin/{applet}"),
                target: "busybox".into(),
            });
        }
        // Shebangs and habits expect these.
        for (path, target) in [
            ("/usr/bin", "../bin"),
            ("/usr/sbin", "../sbin"),
            ("/var/run", "../run"),
        ] {
            entries.push(Entry::Link {
                path: path.into(),
                target: target.into(),
            });
        }
        Ok(entries)
    }
}

/// Finds the files below a folder; each must have a directory in the image.
fn collect(dir: &Path, inside: &str, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("not UTF-8")?;
        let inside = format!("{inside}/{name}");
        if !path.is_dir() {
            files.push((inside, path));
        } else if DIRECTORIES
            .iter()
            .any(|(directory, _)| *directory == inside)
        {
            collect(&path, &inside, files)?;
        } else {
            bail!("{}: the image has no directory {inside}", path.display());
        }
    }
    Ok(())
}

fn busybox_in(unpacked: &Path) -> Result<PathBuf> {
    let places = [
        unpacked.join("bin/busybox"),
        unpacked.join("usr/bin/busybox"),
    ];
    places
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("{PACKAGE} has no busybox in /bin or /usr/bin"))
}

/// The commands that busybox is, beside itself.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let list = process::output(&mut process::command(busybox, ["--list"]))?;
    let mut applets: Vec<String> = list
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect();
    applets.sort();
    Ok(applets)
}

/// Writes what is not zero of a raw disk into a new dynamic VHD.
fn write_vhd(raw: &Path, image: &Path) -> Result<()> {
    let mut file = fs::File::open(raw).with_context(|| format!("opening {}", raw.display()))?;
    let size = file
        .metadata()
        .context("asking for the size of the disk")?
        .len();
    let mut options = vhd::CreateOptions::new(size);
    options.identity = identity(raw)?;
    // Several images may be made into one file; the last one stays.
    let _ = fs::remove_file(image);
    vhd::create_dynamic(image, &options)?;
    let disk = vhd::open(image, &vhd::OpenOptions::read_write())?;
    let mut chunk = vec![0; 64 << 10];
    let mut offset = 0;
    while offset < size {
        file.read_exact(&mut chunk)
            .with_context(|| format!("reading {}", raw.display()))?;
        if chunk.iter().any(|byte| *byte != 0) {
            disk.write_at(&chunk, offset)?;
        }
        offset += chunk.len() as u64;
    }
    disk.flush()?;
    Ok(())
}

/// The same contents, the same disk; other contents, another.
fn identity(raw: &Path) -> Result<vhd::Identity> {
    let digest = crate::digest::of_file(raw)?;
    let id = u128::from_str_radix(&digest[..32], 16).context("a digest that is no number")?;
    Ok(vhd::Identity {
        unique_id: uuid::Builder::from_random_bytes(id.to_be_bytes()).into_uuid(),
        // 1 January 2024, in the format's seconds since 2000.
        time_stamp: vhd::format::TimeStamp(757_382_400),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_same_byte_for_byte_wherever_it_is_made() {
        let make = || {
            let dir = tempfile::tempdir().unwrap();
            let raw = dir.path().join("raw");
            let mut contents = vec![0; 4 << 20];
            contents[3 << 20..][..5].copy_from_slice(b"hello");
            fs::write(&raw, contents).unwrap();
            let image = dir.path().join("image.vhd");
            write_vhd(&raw, &image).unwrap();
            fs::read(image).unwrap()
        };
        assert!(make() == make());
    }

    #[test]
    fn a_file_without_a_directory_in_the_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/motd"), "hello").unwrap();
        let mut files = Vec::new();
        collect(dir.path(), "", &mut files).unwrap();
        assert_eq!(
            files,
            [("/etc/motd".to_owned(), dir.path().join("etc/motd"))]
        );
        fs::create_dir(dir.path().join("opt")).unwrap();
        let error = collect(dir.path(), "", &mut files).unwrap_err().to_string();
        assert!(error.contains("no directory /opt"), "{error}");
    }
}
