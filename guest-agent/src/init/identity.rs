//! Who this guest is, taken from its first goal before any role is started.
//!
//! Guests can be made from one template, in which everything up to the guest
//! agent's first call has happened already. What they must not share is made new
//! here, and in this order, for the later steps draw on the earlier: random bytes,
//! clock, host name, machine id, and the kernel's boot id last. The kernel makes
//! that one of random bytes when it is first read, so nothing may read it before. Where
//! the random bytes cannot be made new, there is no identity, and no role is started.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use rustix::mount::UnmountFlags;

use super::{clock, entropy, report};
use crate::model::Goal;

/// Where programs look for the machine id (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";
/// What it says in a guest that has none yet (machine-id(5)).
const NO_MACHINE_ID: &str = "uninitialized";
/// Where the kernel tells the boot id (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What an identity is given to.
pub trait Guest {
    /// Mixes random bytes into the kernel's.
    fn mix_in(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Sets the clock, if it is off.
    fn follow_clock(&mut self, host: SystemTime) -> io::Result<()>;
    /// Sets the host name.
    fn set_hostname(&mut self, name: &str) -> io::Result<()>;
    /// Sets the machine id.
    fn set_machine_id(&mut self, id: &str) -> io::Result<()>;
    /// Reads the boot id, which makes it.
    fn boot_id(&mut self) -> io::Result<String>;
}

/// This guest.
#[derive(Debug, Default)]
pub struct ThisGuest {
    /// The file of the machine id, where room was made for one.
    machine_id: Option<File>,
    /// The kernel's file with the boot id, where it was opened before it is read.
    boot_id: Option<File>,
    /// Whether the boot id is hidden from others.
    hidden: bool,
}

impl ThisGuest {
    /// Has the files of the machine id and the boot id open, and the former on the disk
    /// without one yet: to write over it costs a copy of this guest less than to make it, or
    /// only to find it. And has all else on the disk that waits to be written, which every
    /// copy would write by itself.
    ///
    /// # Errors
    ///
    /// When the one cannot be written, or the other not opened.
    pub fn make_room(&mut self) -> io::Result<()> {
        self.open_boot_id()?;
        let file = open_machine_id()?;
        write_machine_id(&file, NO_MACHINE_ID)?;
        rustix::fs::syncfs(&file)?;
        self.machine_id = Some(file);
        Ok(())
    }

    /// Opens it where it is not hidden. To read it would make it.
    fn open_boot_id(&mut self) -> io::Result<()> {
        if !self.hidden {
            self.boot_id = Some(File::open(BOOT_ID)?);
        }
        Ok(())
    }

    /// Whoever reads the boot id reads nothing, and does not make it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn hide_boot_id(&mut self) -> io::Result<()> {
        self.open_boot_id()?;
        rustix::mount::mount_bind("/dev/null", BOOT_ID)?;
        self.hidden = true;
        Ok(())
    }

    /// Takes away what hides the boot id, if something does.
    fn show_boot_id(&mut self) -> io::Result<()> {
        if self.hidden {
            rustix::mount::unmount(BOOT_ID, UnmountFlags::empty())?;
            self.hidden = false;
        }
        Ok(())
    }
}

impl Guest for ThisGuest {
    fn mix_in(&mut self, bytes: &[u8]) -> io::Result<()> {
        entropy::mix_in(bytes)
    }

    fn follow_clock(&mut self, host: SystemTime) -> io::Result<()> {
        clock::follow(host)
    }

    fn set_hostname(&mut self, name: &str) -> io::Result<()> {
        Ok(rustix::system::sethostname(name.as_bytes())?)
    }

    fn set_machine_id(&mut self, id: &str) -> io::Result<()> {
        let file = match self.machine_id.take() {
            Some(file) => file,
            None => open_machine_id()?,
        };
        write_machine_id(&file, id)
    }

    fn boot_id(&mut self) -> io::Result<String> {
        self.show_boot_id()?;
        match self.boot_id.take() {
            Some(file) => read_boot_id(&file),
            None => boot_id(),
        }
    }
}

/// A guest agent outside of a guest: the machine is not its own.
#[derive(Debug)]
pub struct NoGuest;

impl Guest for NoGuest {
    fn mix_in(&mut self, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn follow_clock(&mut self, _host: SystemTime) -> io::Result<()> {
        Ok(())
    }

    fn set_hostname(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn set_machine_id(&mut self, _id: &str) -> io::Result<()> {
        Ok(())
    }

    fn boot_id(&mut self) -> io::Result<String> {
        boot_id()
    }
}

fn open_machine_id() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).open(MACHINE_ID)
}

/// Writes the machine id over what is there.
fn write_machine_id(file: &File, id: &str) -> io::Result<()> {
    let line = format!("{id}\n");
    file.write_all_at(line.as_bytes(), 0)?;
    let length = line.len() as u64;
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    Ok(())
}

fn boot_id() -> io::Result<String> {
    read_boot_id(&File::open(BOOT_ID)?)
}

/// A UUID and a newline. One read is enough.
fn read_boot_id(mut file: &File) -> io::Result<String> {
    let mut text = [0; 64];
    let read = file.read(&mut text)?;
    let text = text.get(..read).unwrap_or_default();
    Ok(String::from_utf8_lossy(text).trim_end().to_owned())
}

/// Why nothing may run yet: other guests, made from the same template, may have the same
/// random numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot make the kernel's random numbers new: {0}")]
pub struct NotAlone(String);

/// Who this guest is, as far as it knows.
#[derive(Debug, Default)]
pub struct Identity {
    /// Whether the kernel's random numbers are this guest's alone.
    alone: bool,
    hostname: Option<String>,
    machine_id: Option<String>,
    boot_id: Arc<OnceLock<String>>,
}

impl Identity {
    /// The boot id, for those who tell it; empty until an identity has been taken.
    pub fn boot_id(&self) -> Arc<OnceLock<String>> {
        self.boot_id.clone()
    }

    /// Takes over what a goal says of the guest itself. True if the guest had no
    /// identity before.
    ///
    /// # Errors
    ///
    /// When the guest has no random numbers of its own. It has no identity then, and is not
    /// to run a role.
    pub fn take(&mut self, goal: &Goal, guest: &mut impl Guest) -> Result<bool, NotAlone> {
        match guest.mix_in(&goal.entropy) {
            Ok(()) => self.alone = true,
            Err(error) if self.alone => report("mix in entropy", Err(error)),
            Err(error) => return Err(NotAlone(error.to_string())),
        }
        if let Some(time) = goal.wall_clock {
            report("set the clock", guest.follow_clock(time));
        }
        if let Some(name) = changed(&mut self.hostname, &goal.hostname) {
            report("set the host name", guest.set_hostname(name));
        }
        if let Some(id) = changed(&mut self.machine_id, &goal.machine_id) {
            report("set the machine id", guest.set_machine_id(id));
        }
        if self.boot_id.get().is_some() {
            return Ok(false);
        }
        let boot_id = guest.boot_id().unwrap_or_else(|error| {
            report("read the boot id", Err(error));
            String::new()
        });
        Ok(self.boot_id.set(boot_id).is_ok())
    }
}

/// What is wanted, if it is another than what is.
fn changed<'a>(is: &'a mut Option<String>, wanted: &Option<String>) -> Option<&'a str> {
    if wanted.is_none() || is == wanted {
        return None;
    }
    is.clone_from(wanted);
    is.as_deref()
}

#[cfg(test)]
mod tests {
    use fabric_proto::guest::v1 as wire;

    use super::*;

    /// Writes down what is done to it.
    #[derive(Default)]
    struct Recorder {
        did: Vec<String>,
        /// Whether its kernel takes no random bytes.
        closed: bool,
    }

    impl Recorder {
        fn did(&mut self, what: String) -> io::Result<()> {
            self.did.push(what);
            Ok(())
        }
    }

    impl Guest for Recorder {
        fn mix_in(&mut self, bytes: &[u8]) -> io::Result<()> {
            if self.closed {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.did(format!("entropy {bytes:?}"))
        }

        fn follow_clock(&mut self, _host: SystemTime) -> io::Result<()> {
            self.did("clock".to_owned())
        }

        fn set_hostname(&mut self, name: &str) -> io::Result<()> {
            self.did(format!("host name {name}"))
        }

        fn set_machine_id(&mut self, id: &str) -> io::Result<()> {
            self.did(format!("machine id {id}"))
        }

        fn boot_id(&mut self) -> io::Result<String> {
            self.did("boot id".to_owned())?;
            Ok("a-boot".to_owned())
        }
    }

    fn goal(hostname: &str) -> Goal {
        Goal::from(wire::Goal {
            incarnation: 1,
            hostname: hostname.to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            wall_clock: Some(SystemTime::UNIX_EPOCH.into()),
            entropy: vec![1, 2, 3].into(),
            ..wire::Goal::default()
        })
    }

    #[test]
    fn the_boot_id_is_read_last_of_all_and_once() {
        let (mut identity, mut guest) = (Identity::default(), Recorder::default());
        let boot_id = identity.boot_id();
        assert_eq!(boot_id.get(), None);
        assert_eq!(identity.take(&goal("shop-web-0"), &mut guest), Ok(true));
        assert_eq!(
            guest.did,
            [
                "entropy [1, 2, 3]",
                "clock",
                "host name shop-web-0",
                "machine id 0123456789abcdef0123456789abcdef",
                "boot id"
            ]
        );
        assert_eq!(boot_id.get().map(String::as_str), Some("a-boot"));

        guest.did.clear();
        assert_eq!(identity.take(&goal("shop-web-0"), &mut guest), Ok(false));
        assert_eq!(guest.did, ["entropy [1, 2, 3]", "clock"]);
        guest.did.clear();
        assert_eq!(identity.take(&goal("shop-web-1"), &mut guest), Ok(false));
        assert_eq!(
            guest.did.last().map(String::as_str),
            Some("host name shop-web-1")
        );
    }

    #[test]
    fn whose_random_numbers_are_not_its_own_is_nobody_and_reads_no_boot_id() {
        let (mut identity, mut guest) = (Identity::default(), Recorder::default());
        guest.closed = true;
        let refused = identity.take(&goal("shop-web-0"), &mut guest).unwrap_err();
        assert!(
            refused.to_string().ends_with("permission denied"),
            "{refused}"
        );
        assert!(guest.did.is_empty(), "{:?}", guest.did);
        assert_eq!(identity.boot_id().get(), None);

        guest.closed = false;
        assert_eq!(identity.take(&goal("shop-web-0"), &mut guest), Ok(true));
        guest.closed = true;
        assert_eq!(
            identity.take(&goal("shop-web-0"), &mut guest),
            Ok(false),
            "they stay its own"
        );
    }

    #[test]
    fn outside_a_guest_there_is_a_boot_id_all_the_same() {
        let mut identity = Identity::default();
        assert_eq!(identity.take(&goal("shop-web-0"), &mut NoGuest), Ok(true));
        assert_eq!(identity.boot_id().get().map(String::len), Some(36));
    }
}
