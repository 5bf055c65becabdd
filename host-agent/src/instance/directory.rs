//! An instance's directory: the names of the files in it, and the way to its
//! sockets.
//!
//! The path of a unix socket has room for 107 bytes (unix(7)), too few for a data
//! directory and an instance id of any length. The directory is held open, and
//! its sockets are reached through `/proc/self/fd`.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{DirBuilderExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use crate::{
    fail_point::{self, Step},
    files,
};

/// The manifest.
pub const MANIFEST: &str = "manifest.json";
/// The VMM's configuration.
pub const CONFIGURATION: &str = "vm.json";
/// The differencing disk.
pub const OS_DISK: &str = "os.vhd";
/// The template's disk, where the differencing disk stands on one.
pub const TEMPLATE_DISK: &str = "template.vhd";
/// The snapshots, each in a directory of its name.
pub const SNAPSHOTS: &str = "snapshots";
/// What a jailed VMM still sees of it: a directory that belongs to its user.
pub const JAIL: &str = "jail";
/// The VMBus; a guest's connection to port N arrives at this name, `_` and N.
pub const VMBUS: &str = "jail/vsock.sock";
/// Where the VMM takes orders.
pub const CONTROL: &str = "control.sock";
/// The guest's serial console.
pub const CONSOLE: &str = "console.ring";
/// The VMM's standard output; its last line says why it ended.
pub const VMM_OUT: &str = "vmm.out";
/// The VMM's standard error.
pub const VMM_ERR: &str = "vmm.err";
/// The role's output.
pub const ROLE_LOG: &str = "role.log";

/// Name of the socket at which a guest's connections to a port of its host arrive.
#[must_use]
pub fn guest_socket(port: u32) -> String {
    format!("{VMBUS}_{port}")
}

/// An instance's directory, held open.
#[derive(Debug)]
pub struct InstanceDirectory {
    path: PathBuf,
    handle: File,
}

impl InstanceDirectory {
    /// Opens the directory, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        for place in [&path, &path.join(JAIL)] {
            match DirBuilder::new().mode(0o700).create(place) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        // As the kernel will show it as a working directory.
        let path = fs::canonicalize(path)?;
        let handle = File::open(&path)?;
        files::remove_unfinished(&path)?;
        Ok(Self { path, handle })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A short path to a socket in it, good for as long as the directory is open.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()))
    }

    /// Listens where the guest's connections to a port of its host arrive; what an earlier
    /// process listened at is replaced.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn listen(&self, port: u32) -> io::Result<UnixListener> {
        let name = guest_socket(port);
        files::remove_if_there(&self.file(&name))?;
        let listener = UnixListener::bind(self.socket(&name))?;
        // The guest's VMM is another user, and nobody else comes into its directory.
        fs::set_permissions(self.socket(&name), Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    /// Removes everything in it, the record first: what is there without one is nobody's.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn clear(&self) -> io::Result<()> {
        files::remove_if_there(&self.file(MANIFEST))?;
        fail_point::reached(Step::RecordGone);
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes it, with nothing in it.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn sockets_are_reached_however_long_the_path_is() {
        let data = tempfile::tempdir().unwrap();
        let deep = data.path().join("d".repeat(200));
        fs::create_dir(&deep).unwrap();
        let directory = InstanceDirectory::open(deep.join("shop-web-0")).unwrap();
        let listener = UnixListener::bind(directory.socket(VMBUS)).unwrap();
        UnixStream::connect(directory.socket(VMBUS)).unwrap();
        listener.accept().unwrap();
        assert!(directory.file(VMBUS).exists());
        fs::write(directory.file(MANIFEST), "{}").unwrap();
        assert!(directory.remove().is_err(), "it was removed with its files");
        directory.clear().unwrap();
        directory.clear().unwrap();
        directory.remove().unwrap();
        directory.clear().unwrap();
        directory.remove().unwrap();
        assert!(!directory.path().exists());
    }
}
