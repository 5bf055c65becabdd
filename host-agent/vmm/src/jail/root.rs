//! A root in which there is nothing but one directory, or none, under the path that it has.
//!
//! ```text
//!  /                       a tmpfs, read-only
//!  └── var/lib/fabric/instances/shop-web-0     empty: the working directory
//!      └── jail                                the host's own: the one directory
//! ```

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::JailError;

/// What no mount in here allows.
const HARMLESS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
/// Where the new root is put together: a directory that every process can reach.
const SCAFFOLD: &str = "/proc";

/// The one directory, entered while that was possible: the user that the process
/// becomes may not come there, nor anywhere near.
#[derive(Debug)]
pub struct Inside {
    working: PathBuf,
    place: Option<PathBuf>,
    back: File,
}

impl Inside {
    /// Enters the directory.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn enter(directory: Option<&Path>) -> Result<Inside, JailError> {
        // As the kernel shows it, so that whoever looks from outside sees that.
        let working =
            std::env::current_dir().map_err(JailError::step("find the working directory"))?;
        let back = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(".")
            .map_err(JailError::step("open the working directory"))?;
        if let Some(directory) = directory {
            chdir(directory).map_err(|error| JailError::Directory {
                action: "enter",
                path: directory.to_owned(),
                source: error.into(),
            })?;
        }
        let place = directory.map(|directory| working.join(directory));
        Ok(Inside {
            working,
            place,
            back,
        })
    }

    /// Goes back to the working directory, where the root is not replaced.
    ///
    /// # Errors
    ///
    /// Never, as it is there.
    pub fn leave(self) -> Result<(), JailError> {
        fchdir(self.back).map_err(JailError::step("enter the working directory"))
    }

    /// Replaces the root of this mount namespace.
    ///
    /// # Errors
    ///
    /// When a step fails; the process must not go on then.
    pub fn replace_root(self) -> Result<(), JailError> {
        let none = None::<&str>;
        let step = JailError::step::<nix::Error>;
        let inside = |path: &Path| {
            let path = path.strip_prefix("/").unwrap_or(path);
            Path::new(SCAFFOLD).join(path)
        };
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).map_err(step("keep mounts private"))?;
        let options = Some("size=64k,nr_inodes=64,mode=755");
        mount(
            Some("fabric-vmm"),
            SCAFFOLD,
            Some("tmpfs"),
            HARMLESS,
            options,
        )
        .map_err(step("mount a root"))?;
        let target = self.place.as_deref().map(inside);
        for path in target.iter().chain([&inside(&self.working)]) {
            fs::create_dir_all(path).map_err(JailError::step("make paths"))?;
        }
        if let Some(target) = target {
            mount(Some("."), &target, none, MsFlags::MS_BIND, none)
                .and_then(|()| remount(&target, HARMLESS))
                .map_err(step("bind the directory"))?;
        }
        chdir(SCAFFOLD).map_err(step("enter the new root"))?;
        pivot_root(".", ".").map_err(step("change the root"))?;
        umount2(".", MntFlags::MNT_DETACH).map_err(step("leave the old root"))?;
        let closed = HARMLESS | MsFlags::MS_RDONLY;
        remount(Path::new("/"), closed).map_err(step("close the new root"))?;
        chdir(&self.working).map_err(step("enter the working directory"))
    }
}

fn remount(target: &Path, flags: MsFlags) -> nix::Result<()> {
    let none = None::<&str>;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    mount(none, target, none, flags, none)
}
