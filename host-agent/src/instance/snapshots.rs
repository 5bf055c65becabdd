//! Snapshots of an instance: what its VMM wrote of memory and devices, with the disk
//! that belongs to them.
//!
//! ```text
//! INSTANCE/snapshots/.taking-XXXXXX/   being taken
//! INSTANCE/snapshots/NAME/record.json  what it was taken of, and when
//!                         snapshot/    memory and state, as the VMM wrote them
//!                         disk.vhd     a copy of os.vhd at that moment
//!                         template.vhd what that stands on, if it does
//! ```
//!
//! The machine stands still until its differencing disk has been copied: no chain of
//! disks gets longer, and the running disk is never touched. What the copy shares
//! with its parents, it shares with the running disk too.
//!
//! A snapshot is read as a whole before an instance goes back to it, and its VMM is
//! ended only then. It lives in its instance's directory and goes with it.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use fabric_proto::id::{Digest, SnapshotName};
use fabric_vmm::control::Request;
use serde::{Deserialize, Serialize};

use super::{
    directory::{InstanceDirectory, JAIL, OS_DISK, SNAPSHOTS, TEMPLATE_DISK},
    state::{Snapshot, Taken},
};
use crate::{
    clock,
    fail_point::{self, Step},
    files::{self, FileError, blocking},
    goal::InstanceGoal,
    hypervisor::{Hypervisor, OrderError, Vm},
};

/// What a VMM writes, in a snapshot's directory and in a jail.
pub const SNAPSHOT: &str = "snapshot";
/// The copy of the disk in it.
const DISK: &str = "disk.vhd";
/// What is on record of it.
const RECORD: &str = "record.json";
/// How the directories of snapshots begin that are none yet.
const TAKING: &str = ".taking-";
/// Format of the record; counts up.
const FORMAT: u32 = 1;
/// With less than this left, a disk is taken for full; no snapshot takes it.
const FULL: u64 = 64 << 20;

/// Why a snapshot cannot be taken or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The VMM did not do its part.
    #[error("its virtual machine monitor did not {order}")]
    Order {
        /// What it was told.
        order: &'static str,
        /// Why not.
        #[source]
        source: OrderError,
    },
    /// There is no room for it.
    #[error(
        "it may take {need}, and {free} are left on the node's disk: free some, or delete other \
         snapshots, and take it anew"
    )]
    NoRoom {
        /// What it may take, and what is to be left to others.
        need: bytesize::ByteSize,
        /// What is left.
        free: bytesize::ByteSize,
    },
    /// The same, and the disk was full before it was there.
    #[error(
        "the node's disk is full, {free} are left: free some, or delete other snapshots, and take it anew"
    )]
    Full {
        /// What is left.
        free: bytesize::ByteSize,
        /// What failed.
        #[source]
        source: Box<SnapshotError>,
    },
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is none.
    #[error("there is no snapshot {name} on this node: take one, or name another")]
    Missing {
        /// Its name.
        name: SnapshotName,
    },
    /// Its record is damaged.
    #[error("the record of snapshot {name} is damaged: delete it, and take another")]
    Record {
        /// Its name.
        name: SnapshotName,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was taken by another version of the host agent.
    #[error(
        "snapshot {name} is of format {format}, and this host agent knows up to {FORMAT}: use the \
         version that took it, or a newer one"
    )]
    Format {
        /// Its name.
        name: SnapshotName,
        /// Its format.
        format: u32,
    },
    /// It was taken of another machine than the instance is now.
    #[error(
        "snapshot {name} was taken with {field} {then}, and the instance has {now} now: apply the \
         service as it was then, or take another"
    )]
    Differs {
        /// Its name.
        name: SnapshotName,
        /// What differs.
        field: &'static str,
        /// What it was.
        then: String,
        /// What it is.
        now: String,
    },
    /// Its files are not what was written.
    #[error("snapshot {name} cannot be used: {why}")]
    Unsound {
        /// Its name.
        name: SnapshotName,
        /// What is wrong with it.
        why: String,
    },
}

/// What an instance is made of, as far as memory depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeOf {
    image: Digest,
    package: Option<Digest>,
    vcpus: u8,
    memory_mib: u32,
}

impl MadeOf {
    /// That of an instance as its goal has it.
    #[must_use]
    pub fn of(goal: &InstanceGoal) -> Self {
        Self {
            image: goal.image.digest.clone(),
            package: goal.package.as_ref().map(|package| package.digest.clone()),
            vcpus: goal.vcpus,
            memory_mib: goal.memory_mib,
        }
    }

    /// The first thing that is not the same: what, then, now.
    fn difference(&self, now: &Self) -> Option<(&'static str, String, String)> {
        let package = |of: &Self| {
            let none = || "none".to_owned();
            of.package.as_ref().map_or_else(none, ToString::to_string)
        };
        let pairs = [
            ("image", self.image.to_string(), now.image.to_string()),
            ("package", package(self), package(now)),
            ("vcpus", self.vcpus.to_string(), now.vcpus.to_string()),
            (
                "memory",
                format!("{} MiB", self.memory_mib),
                format!("{} MiB", now.memory_mib),
            ),
        ];
        pairs.into_iter().find(|(_, then, now)| then != now)
    }
}

/// A snapshot's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    name: SnapshotName,
    made_of: MadeOf,
    taken: SystemTime,
    /// Digest of the disk; what the VMM wrote has digests of its own.
    disk: Digest,
}

/// Takes a snapshot. The machine stands still then, whatever comes of it.
///
/// # Errors
///
/// Says what failed; nothing is left of it.
pub async fn take(
    vm: Arc<dyn Vm>,
    directory: Arc<InstanceDirectory>,
    name: SnapshotName,
    made_of: MadeOf,
) -> Result<Taken, SnapshotError> {
    let place = directory.path().to_owned();
    let jail = directory.file(JAIL);
    let taken = try_take(vm, directory, name, made_of).await;
    if let Err(error) = clear(&jail) {
        tracing::warn!(path = %jail.display(), %error, "cannot remove what is left of a snapshot");
    }
    taken.map_err(|error| match files::free_bytes(&place) {
        Ok(free) if free < FULL && !matches!(error, SnapshotError::NoRoom { .. }) => {
            SnapshotError::Full {
                free: bytesize::ByteSize::b(free),
                source: Box::new(error),
            }
        }
        _ => error,
    })
}

async fn try_take(
    vm: Arc<dyn Vm>,
    directory: Arc<InstanceDirectory>,
    name: SnapshotName,
    made_of: MadeOf,
) -> Result<Taken, SnapshotError> {
    let failed = |order| move |source| SnapshotError::Order { order, source };
    vm.order(Request::Pause).await.map_err(failed("pause"))?;
    fail_point::reached(Step::SnapshotStill);
    let jail = directory.file(JAIL);
    clear(&jail).map_err(FileError::at("clear", &jail))?;
    let jail = jail.join(SNAPSHOT);
    find_room(&directory, &made_of)?;
    let path = Path::new(JAIL).join(SNAPSHOT);
    vm.order(Request::Snapshot { path })
        .await
        .map_err(failed("write a snapshot"))?;
    fail_point::reached(Step::SnapshotWritten);
    blocking(move || Ok(keep(&directory, &jail, name, made_of)))
        .await
        .map_err(FileError::at("keep", Path::new(SNAPSHOTS)))?
}

/// Says whether the node's disk, which others need too, has room for all of a guest's
/// memory and its disk.
fn find_room(directory: &InstanceDirectory, made_of: &MadeOf) -> Result<(), SnapshotError> {
    let disk = directory.file(OS_DISK);
    let disk_bytes = fs::metadata(&disk).map_err(FileError::at("look at", &disk))?;
    let memory_bytes = u64::from(made_of.memory_mib) << 20;
    let need = disk_bytes
        .len()
        .saturating_add(memory_bytes)
        .saturating_add(FULL);
    let free = files::free_bytes(directory.path())
        .map_err(FileError::at("look for room in", directory.path()))?;
    if free < need {
        let [need, free] = [need, free].map(bytesize::ByteSize::b);
        return Err(SnapshotError::NoRoom { need, free });
    }
    Ok(())
}

/// Gives a snapshot its disk, its record and its name.
fn keep(
    directory: &InstanceDirectory,
    jail: &Path,
    name: SnapshotName,
    made_of: MadeOf,
) -> Result<Taken, SnapshotError> {
    let all = directory.file(SNAPSHOTS);
    let all = files::private_directory(&all).map_err(FileError::at("use", &all))?;
    let target = all.join(name.as_str());
    let keep = || {
        let place = tempfile::Builder::new().prefix(TAKING).tempdir_in(&all)?;
        let at = |name: &str| place.path().join(name);
        files::take_over(jail, &at(SNAPSHOT))?;
        fail_point::reached(Step::SnapshotTakenOver);
        fs::copy(directory.file(OS_DISK), at(DISK))?;
        File::open(at(DISK))?.sync_all()?;
        fs::set_permissions(at(DISK), Permissions::from_mode(0o444))?;
        let parent = directory.file(TEMPLATE_DISK);
        if parent.exists() {
            files::link_or_copy(&parent, &at(TEMPLATE_DISK))?;
        }
        let record = Record {
            format: FORMAT,
            name: name.clone(),
            made_of,
            taken: clock::wall_time(),
            disk: files::sha256(&at(DISK))?,
        };
        files::write_atomically(&at(RECORD), &serde_json::to_vec_pretty(&record)?)?;
        let own = [at(SNAPSHOT), place.path().to_owned()];
        let bytes = own
            .iter()
            .map(|path| files::bytes_on_disk(path))
            .sum::<io::Result<u64>>()?;
        fail_point::reached(Step::SnapshotWhole);
        files::remove_directory_if_there(&target)?;
        fs::rename(place.path(), &target)?;
        // There is nothing left to remove under the old name.
        let _ = place.keep();
        files::sync_directory(&all)?;
        Ok(Taken {
            at: record.taken,
            bytes,
        })
    };
    Ok(keep().map_err(FileError::at("keep", &target))?)
}

/// Reads a snapshot as a whole. Blocks.
///
/// # Errors
///
/// Says why an instance that is made of `now` cannot go back to it.
pub fn check(
    directory: &InstanceDirectory,
    name: &SnapshotName,
    now: &MadeOf,
    hypervisor: &dyn Hypervisor,
) -> Result<(), SnapshotError> {
    let place = directory.file(SNAPSHOTS).join(name.as_str());
    let record = load(&place, name)?;
    if let Some((field, then, now)) = record.made_of.difference(now) {
        return Err(SnapshotError::Differs {
            name: name.clone(),
            field,
            then,
            now,
        });
    }
    let unsound = |why| SnapshotError::Unsound {
        name: name.clone(),
        why,
    };
    hypervisor
        .verify_snapshot(&place.join(SNAPSHOT))
        .map_err(unsound)?;
    let disk = place.join(DISK);
    let found = files::sha256(&disk).map_err(FileError::at("read", &disk))?;
    if found != record.disk {
        let was = &record.disk;
        return Err(unsound(format!("its disk is {found}, and it was {was}")));
    }
    Ok(())
}

fn load(place: &Path, name: &SnapshotName) -> Result<Record, SnapshotError> {
    #[derive(Deserialize)]
    struct Envelope {
        format: u32,
    }
    let path = place.join(RECORD);
    let damaged = |source| SnapshotError::Record {
        name: name.clone(),
        source,
    };
    let text = fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SnapshotError::Missing { name: name.clone() },
        _ => FileError::at("read", &path)(error).into(),
    })?;
    let Envelope { format } = serde_json::from_slice(&text).map_err(damaged)?;
    if format > FORMAT {
        return Err(SnapshotError::Format {
            name: name.clone(),
            format,
        });
    }
    serde_json::from_slice(&text).map_err(damaged)
}

/// Gives an instance the disk of a snapshot; what it had is gone then. Returns where
/// its memory and state are.
///
/// # Errors
///
/// What the file system says.
pub fn lay_out(
    directory: &InstanceDirectory,
    name: &SnapshotName,
) -> Result<PathBuf, SnapshotError> {
    let place = directory.file(SNAPSHOTS).join(name.as_str());
    let disk = directory.file(OS_DISK);
    let lay_out = || {
        let copy = tempfile::Builder::new()
            .prefix(".new-")
            .tempfile_in(directory.path())?;
        io::copy(&mut File::open(place.join(DISK))?, &mut copy.as_file())?;
        let parent = directory.file(TEMPLATE_DISK);
        files::remove_if_there(&parent)?;
        if place.join(TEMPLATE_DISK).exists() {
            files::link_or_copy(&place.join(TEMPLATE_DISK), &parent)?;
        }
        copy.as_file().sync_all()?;
        fail_point::reached(Step::DiskCopied);
        copy.persist(&disk)?;
        fail_point::reached(Step::DiskBack);
        files::sync_directory(directory.path())
    };
    lay_out().map_err(FileError::at("write", &disk))?;
    Ok(place.join(SNAPSHOT))
}

/// Deletes a snapshot, if it is there.
///
/// # Errors
///
/// What the file system says.
pub fn delete(directory: &InstanceDirectory, name: &SnapshotName) -> io::Result<()> {
    files::remove_directory_if_there(&directory.file(SNAPSHOTS).join(name.as_str()))
}

/// Removes what an earlier process was taking or deleting when it was ended: whatever
/// is not on record as a snapshot that is there.
///
/// # Errors
///
/// What the file system says.
pub fn sweep(directory: &InstanceDirectory, on_record: &[Snapshot]) -> io::Result<()> {
    let there = |name: &OsStr| {
        let mut taken = on_record.iter().filter(|one| one.taken.is_ok());
        taken.any(|one| name == one.wanted.name.as_str())
    };
    remove_all(&directory.file(SNAPSHOTS), |name| !there(name))?;
    clear(&directory.file(JAIL))
}

/// Removes what a VMM has written in its jail, to its end or not.
fn clear(jail: &Path) -> io::Result<()> {
    remove_all(jail, |name| {
        name.as_encoded_bytes().starts_with(SNAPSHOT.as_bytes())
    })
}

/// Removes the directories in `place` that are `condemned` by their names.
fn remove_all(place: &Path, condemned: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    let all = match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        all => all?,
    };
    for entry in all {
        let entry = entry?;
        if condemned(&entry.file_name()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        goal::{NodeGoal, tests::instance},
        hypervisor::{Origin, VmSpec, fake::FakeHypervisor},
    };

    /// An instance with a disk, and its machine.
    struct Stage {
        _data: tempfile::TempDir,
        directory: Arc<InstanceDirectory>,
        hypervisor: FakeHypervisor,
        vm: Arc<dyn Vm>,
        made_of: MadeOf,
    }

    async fn stage() -> Stage {
        let data = tempfile::tempdir().unwrap();
        let directory = InstanceDirectory::open(data.path().join("shop-web-0")).unwrap();
        fs::write(directory.file(OS_DISK), "then").unwrap();
        fs::write(directory.file(TEMPLATE_DISK), "template").unwrap();
        let spec = VmSpec {
            name: "shop-web-0".to_owned(),
            vcpus: 1,
            memory_mib: 128,
            cpu_weight: 100,
            os_disk: OS_DISK,
            os_parents: Vec::new(),
            package: None,
            cid: 3,
            origin: Origin::Boot,
            booted: None,
        };
        let hypervisor = FakeHypervisor::default();
        let vm = hypervisor.launch(&directory, &spec).await.unwrap();
        let goal = NodeGoal::check(fabric_proto::node::v1::NodeGoal {
            instances: vec![instance("shop-web-0")],
            ..Default::default()
        });
        let goal = goal.instances.into_values().next().unwrap().unwrap();
        Stage {
            _data: data,
            directory: Arc::new(directory),
            hypervisor,
            vm,
            made_of: MadeOf::of(&goal),
        }
    }

    impl Stage {
        async fn take(&self) -> Result<Taken, SnapshotError> {
            let (vm, directory) = (Arc::clone(&self.vm), Arc::clone(&self.directory));
            take(vm, directory, name(), self.made_of.clone()).await
        }

        fn check(&self) -> Result<(), SnapshotError> {
            check(&self.directory, &name(), &self.made_of, &self.hypervisor)
        }

        fn at(&self, file: &str) -> PathBuf {
            self.directory.file(SNAPSHOTS).join("early").join(file)
        }
    }

    fn name() -> SnapshotName {
        "early".parse().unwrap()
    }

    #[tokio::test]
    async fn the_disk_goes_back_with_the_memory_as_often_as_one_likes() {
        let stage = stage().await;
        stage.take().await.unwrap();
        assert!(!stage.directory.file("jail/snapshot").exists());
        for _ in 0..2 {
            fs::write(stage.directory.file(OS_DISK), "now").unwrap();
            files::remove_if_there(&stage.directory.file(TEMPLATE_DISK)).unwrap();
            stage.check().unwrap();
            let snapshot = lay_out(&stage.directory, &name()).unwrap();
            assert!(snapshot.join("memory").exists());
            let read = |file| fs::read_to_string(stage.directory.file(file)).unwrap();
            assert_eq!(
                (read(OS_DISK).as_str(), read(TEMPLATE_DISK).as_str()),
                ("then", "template")
            );
        }
        delete(&stage.directory, &name()).unwrap();
        let missing = stage.check().unwrap_err();
        assert!(missing.to_string().contains("early"), "{missing}");
    }

    #[tokio::test]
    async fn what_is_not_what_was_taken_is_refused_by_name_with_what_to_do() {
        let stage = stage().await;
        stage.take().await.unwrap();
        let refusal = || stage.check().unwrap_err().to_string();

        let other = MadeOf {
            memory_mib: 256,
            ..stage.made_of.clone()
        };
        let differs = check(&stage.directory, &name(), &other, &stage.hypervisor).unwrap_err();
        let differs = differs.to_string();
        assert!(
            differs.contains("memory 128 MiB") && differs.contains("256 MiB"),
            "{differs}"
        );

        let record = fs::read_to_string(stage.at(RECORD)).unwrap();
        let newer = record.replace("\"format\": 1", "\"format\": 2");
        fs::write(stage.at(RECORD), newer).unwrap();
        let newer = refusal();
        assert!(
            newer.contains("format 2") && newer.contains("up to 1"),
            "{newer}"
        );
        fs::write(stage.at(RECORD), "{").unwrap();
        assert!(refusal().contains("damaged"));
        fs::write(stage.at(RECORD), record).unwrap();
        stage.check().unwrap();

        fs::remove_file(stage.at(DISK)).unwrap();
        fs::write(stage.at(DISK), "thin").unwrap();
        assert!(refusal().contains("its disk is sha256:"));
    }

    #[tokio::test]
    async fn none_is_begun_for_which_there_is_no_room() {
        let mut stage = stage().await;
        stage.made_of.memory_mib = u32::MAX;
        let error = stage.take().await.unwrap_err();
        assert!(matches!(error, SnapshotError::NoRoom { .. }), "{error}");
        assert!(error.to_string().contains("PiB"), "{error}");
        assert!(!stage.directory.file(SNAPSHOTS).exists());
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_snapshot_that_could_not_be_taken() {
        let stage = stage().await;
        stage.hypervisor.refuse(true);
        let error = stage.take().await.unwrap_err();
        assert!(matches!(error, SnapshotError::Order { .. }), "{error}");
        stage.hypervisor.refuse(false);
        let disk = stage.directory.file(OS_DISK);
        fs::remove_file(&disk).unwrap();
        fs::create_dir(&disk).unwrap();
        stage.take().await.unwrap_err();
        let left = fs::read_dir(stage.directory.file(SNAPSHOTS))
            .unwrap()
            .count();
        assert_eq!(left, 0);
        // Nor of one that nobody came to take, to name or to write to its end.
        for name in ["snapshots/.taking-x", "snapshots/x", "jail/snapshot.1.part"] {
            fs::create_dir(stage.directory.file(name)).unwrap();
        }
        sweep(&stage.directory, &[]).unwrap();
        assert!(!stage.directory.file("jail/snapshot.1.part").exists());
        let left = fs::read_dir(stage.directory.file(SNAPSHOTS))
            .unwrap()
            .count();
        assert_eq!(left, 0);
    }
}
