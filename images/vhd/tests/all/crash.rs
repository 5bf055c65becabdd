//! Data survives: whatever moment a crash hits, the disk opens and each
//! sector holds the value of its last flush or one written later.
//!
//! A disk in a recording file is used at random. Then, for each number of
//! calls to the file that it could have got to, the file is put together as a
//! crash would leave it: all calls made (the process died), or all up to the
//! last sync and any of those behind it, torn between sectors (the machine
//! died). What opens from that is compared with what the promise allows.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use proptest::prelude::*;
use vhd::{BlockDevice, DifferencingOptions, Disk, DiskType, Error, OpenOptions};

use crate::support::actions::{Action, actions, first_tag};
use crate::support::faulty::FaultyFile;
use crate::support::{SECTOR, contents, identity, noise, options, sector, sectors};

const SECTORS: u64 = 40;
const SIZE: u64 = SECTORS * SECTOR as u64;

/// A kind of disk to crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Dynamic,
    Differencing,
    /// A dynamic disk of another tool, in whose blocks not all bits are set.
    Partial,
}

/// Starts that have been made.
type Made = Mutex<HashMap<(Kind, u32), Arc<Start>>>;

/// The files that a test starts from.
struct Start {
    image: Vec<u8>,
    parent: Option<Vec<u8>>,
    expect: DiskType,
}

impl Start {
    /// The files for this kind, made once.
    fn of(kind: Kind, block_size: u32) -> Arc<Self> {
        static MADE: LazyLock<Made> = LazyLock::new(Mutex::default);
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry((kind, block_size))
            .or_insert_with(|| Self::new(kind, block_size).into())
            .clone()
    }

    fn new(kind: Kind, block_size: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (base, child) = (
            folder.path().join("base.vhd"),
            folder.path().join("child.vhd"),
        );
        vhd::create_dynamic(&base, &options(SIZE, block_size)).unwrap();
        if matches!(kind, Kind::Dynamic) {
            let image = std::fs::read(base).unwrap();
            return Self {
                image,
                parent: None,
                expect: DiskType::Dynamic,
            };
        }
        {
            let disk = Disk::open(&base, &OpenOptions::read_write()).unwrap();
            disk.write_at(&sectors(1, SECTORS / 2), 0).unwrap();
        }
        if matches!(kind, Kind::Partial) {
            let mut image = std::fs::read(base).unwrap();
            clear_bits(&mut image);
            return Self {
                image,
                parent: None,
                expect: DiskType::Dynamic,
            };
        }
        let options = DifferencingOptions {
            size: None,
            block_size,
            identity: identity(2),
        };
        vhd::create_differencing(&child, &base, &options).unwrap();
        let image = std::fs::read(child).unwrap();
        Self {
            image,
            parent: std::fs::read(base).ok(),
            expect: DiskType::Differencing,
        }
    }

    fn open(&self, file: &FaultyFile, read_only: bool) -> vhd::Result<Disk> {
        let parent = self.parent.as_ref().map(|bytes| {
            let parent = Box::new(FaultyFile::new(bytes.clone()));
            let options = OpenOptions::read_only();
            Arc::new(Disk::open_storage(Path::new("base"), parent, &options, None).unwrap())
        });
        let options = OpenOptions {
            read_only,
            ..OpenOptions::default()
        }
        .expecting(self.expect);
        Disk::open_storage(Path::new("child"), Box::new(file.clone()), &options, parent)
    }
}

/// Clears every other bit of the first block, whose sectors must then read as
/// zeroes.
fn clear_bits(image: &mut [u8]) {
    let bitmap = &mut image[4096 - SECTOR..4096];
    assert!(
        bitmap.iter().all(|byte| *byte == 0xff),
        "the first block has moved"
    );
    bitmap.fill(0x55);
}

/// What each sector may hold: the flushed value first, then later ones.
#[derive(Clone)]
struct Allowed(Vec<Vec<[u8; SECTOR]>>);

impl Allowed {
    fn new(contents: &[u8]) -> Self {
        Self(
            contents
                .as_chunks()
                .0
                .iter()
                .map(|sector| vec![*sector])
                .collect(),
        )
    }

    fn later(&mut self, first: u64, values: impl Iterator<Item = [u8; SECTOR]>) {
        for (at, value) in (first as usize..).zip(values) {
            self.0[at].push(value);
        }
    }

    /// Adds what an action may leave behind when it does not get to its end.
    fn begin(&mut self, number: usize, action: &Action) {
        match action {
            Action::Write { sector: at, count } => {
                let tags = first_tag(number)..first_tag(number) + count;
                self.later(*at, tags.map(sector));
            }
            Action::WriteZeroes { sector: at, count } | Action::Discard { sector: at, count } => {
                self.later(*at, (0..*count).map(|_| sector(0)));
            }
            Action::Flush | Action::Reopen => {}
        }
    }

    fn check(&self, contents: &[u8], when: &str) {
        for (number, (found, allowed)) in contents.as_chunks().0.iter().zip(&self.0).enumerate() {
            assert!(
                allowed.contains(found),
                "{when}: sector {number} begins with {:?}; allowed are {:?}",
                &found[..16],
                allowed.iter().map(|value| &value[..16]).collect::<Vec<_>>()
            );
        }
    }
}

/// A run that was recorded: the file, and what is allowed after how many
/// changes of it.
struct Run {
    file: FaultyFile,
    moments: Vec<(usize, Allowed)>,
}

impl Run {
    /// Uses a disk, not failing when it fails.
    fn record(start: &Start, actions: &[Action], fail_at: Option<usize>) -> Self {
        let file = FaultyFile::new(start.image.clone());
        let mut disk = start.open(&file, false).unwrap();
        let mut allowed = Allowed::new(&contents(&disk));
        let mut moments = vec![(0, allowed.clone())];
        if let Some(number) = fail_at {
            file.fail_at(number);
        }
        for (number, action) in actions.iter().enumerate() {
            allowed.begin(number, action);
            moments.push((file.changes(), allowed.clone()));
            if matches!(action, Action::Reopen) {
                drop(disk);
                disk = start
                    .open(&file, false)
                    .or_else(|_| start.open(&file, false))
                    .unwrap();
            }
            let done = action.apply(number, &disk);
            let flushed = matches!(action, Action::Flush) && done.is_ok();
            if flushed {
                allowed = Allowed::new(&contents(&disk));
                moments.push((file.changes(), allowed.clone()));
            }
            if let Err(error) = done {
                assert!(
                    matches!(error, Error::Io { .. } | Error::Poisoned { .. }),
                    "{error}"
                );
            }
        }
        drop(disk);
        Self { file, moments }
    }

    /// What is allowed when `count` changes had been made.
    fn allowed(&self, count: usize) -> &Allowed {
        // The last moment before, and none that came after: of several with
        // the same number of changes, the last.
        &self.moments.iter().rfind(|(at, _)| *at <= count).unwrap().1
    }
}

/// Opens what a crash has left and checks it, and that it can be used on.
fn check_crashed(start: &Start, bytes: Vec<u8>, allowed: &Allowed, when: &str) {
    let file = FaultyFile::new(bytes.clone());
    let before = contents(&start.open(&file, true).unwrap());
    allowed.check(&before, when);
    assert_eq!(file.bytes(), bytes, "{when}: opened read-only and changed");

    let disk = start.open(&file, false).unwrap();
    assert!(
        contents(&disk) == before,
        "{when}: mending changed the contents"
    );
    let last = SIZE - SECTOR as u64;
    disk.write_at(&sector(7), last).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let disk = start.open(&file, true).unwrap();
    assert!(
        disk.repaired().is_none(),
        "{when}: not mended: {:?}",
        disk.repaired()
    );
    let after = contents(&disk);
    assert!(
        after[..last as usize] == before[..last as usize],
        "{when}: a write disturbed others"
    );
    assert_eq!(
        after[last as usize..],
        sector(7),
        "{when}: a write after the crash was lost"
    );
}

/// A source of coins that is the same for one seed.
fn coins(seed: u64) -> impl FnMut() -> bool {
    let mut bits = noise(seed + 1, 4096).into_iter().cycle();
    move || bits.next().is_some_and(|byte| byte & 1 == 1)
}

fn crash_everywhere(start: &Start, run: &Run) {
    for count in 0..=run.file.changes() {
        let allowed = run.allowed(count);
        check_crashed(
            start,
            run.file.after_kill(count),
            allowed,
            &format!("killed after {count}"),
        );
        for seed in 0..3 {
            let bytes = run
                .file
                .after_power_loss(count, coins(seed + 17 * count as u64));
            check_crashed(
                start,
                bytes,
                allowed,
                &format!("power lost after {count}, {seed}"),
            );
        }
        let bytes = run.file.after_power_loss(count, || false);
        check_crashed(
            start,
            bytes,
            allowed,
            &format!("power lost after {count}, all lost"),
        );
    }
}

fn kinds() -> impl Strategy<Value = (Kind, u32)> {
    let kind = prop_oneof![
        Just(Kind::Dynamic),
        Just(Kind::Differencing),
        Just(Kind::Partial)
    ];
    (kind, prop_oneof![Just(512), Just(4096), Just(16384)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_between_any_two_writes_loses_nothing_flushed(
        (kind, block_size) in kinds(),
        actions in actions(SECTORS, 12, 16),
    ) {
        let start = Start::of(kind, block_size);
        crash_everywhere(&start, &Run::record(&start, &actions, None));
    }

    #[test]
    fn an_error_of_the_file_loses_nothing_flushed(
        (kind, block_size) in kinds(),
        actions in actions(SECTORS, 12, 12),
    ) {
        let start = Start::of(kind, block_size);
        for number in 0..Run::record(&start, &actions, None).file.changes() {
            let run = Run::record(&start, &actions, Some(number));
            let count = run.file.changes();
            let left = run.file.after_kill(count);
            check_crashed(&start, left, run.allowed(count), &format!("error at {number}"));
        }
    }

    #[test]
    fn a_crash_while_mending_loses_nothing(
        (kind, block_size) in kinds(),
        actions in actions(SECTORS, 12, 10),
        seed in any::<u64>(),
    ) {
        let start = Start::of(kind, block_size);
        let run = Run::record(&start, &actions, None);
        let crash = seed as usize % (run.file.changes() + 1);
        let mending = FaultyFile::new(run.file.after_power_loss(crash, coins(seed)));
        drop(start.open(&mending, false).unwrap());
        for count in 0..=mending.changes() {
            for seed in 0..4 {
                let bytes = mending.after_power_loss(count, coins(seed));
                check_crashed(&start, bytes, run.allowed(crash), "mending");
            }
        }
    }
}
