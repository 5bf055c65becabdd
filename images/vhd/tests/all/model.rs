//! A disk behaves like a vector of bytes, whatever is done to it and however
//! often it is reopened.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vhd::{BlockDevice, DifferencingOptions, ExtentKind, Raw, extents};

use crate::support::actions::{Action, actions, first_tag};
use crate::support::{SECTOR, contents, identity, open_ro, open_rw, options, sectors};

const SECTORS: u64 = 100;
const SIZE: u64 = SECTORS * SECTOR as u64;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Raw,
    Fixed,
    Dynamic,
    /// With so many parents, each of which has changed some sectors.
    Differencing(usize),
}

/// A disk in files, and what must be on it.
struct Subject {
    _folder: TempDir,
    kind: Kind,
    path: PathBuf,
    parents: Vec<PathBuf>,
    model: Vec<u8>,
}

impl Subject {
    fn new(kind: Kind, block_size: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut subject = Self {
            _folder: folder,
            kind,
            path,
            parents: vec![],
            model: vec![0; SIZE as usize],
        };
        let options = options(SIZE, block_size);
        match kind {
            Kind::Raw => drop(Raw::create(&subject.path, SIZE).unwrap()),
            Kind::Fixed => vhd::create_fixed(&subject.path, &options).unwrap(),
            Kind::Dynamic => vhd::create_dynamic(&subject.path, &options).unwrap(),
            Kind::Differencing(parents) => {
                vhd::create_dynamic(&subject.path, &options).unwrap();
                for depth in 0..parents {
                    subject.change_some(depth as u64);
                    subject.put_child_on_top(depth, block_size);
                }
            }
        }
        subject
    }

    fn open(&self) -> Box<dyn BlockDevice> {
        let parents: Vec<&Path> = self.parents.iter().map(PathBuf::as_path).collect();
        match self.kind {
            Kind::Raw => Box::new(Raw::open(&self.path, false).unwrap()),
            _ => Box::new(open_rw(&self.path, &parents)),
        }
    }

    /// Writes sectors that only this depth writes, and some that others do.
    fn change_some(&mut self, depth: u64) {
        let disk = self.open();
        for at in [depth * 10, 50] {
            let bytes = sectors(1000 + depth * 100, 7);
            let offset = at as usize * SECTOR;
            disk.write_at(&bytes, offset as u64).unwrap();
            self.model[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn put_child_on_top(&mut self, depth: usize, block_size: u32) {
        let child = self.path.with_file_name(format!("child{depth}"));
        let identity = identity(100 + depth as u128);
        let options = DifferencingOptions {
            size: None,
            block_size,
            identity,
        };
        vhd::create_differencing(&child, &self.path, &options).unwrap();
        self.parents
            .insert(0, std::mem::replace(&mut self.path, child));
    }

    /// Does to the model what the action did to the disk.
    fn follow(&mut self, number: usize, action: &Action, disk: &dyn BlockDevice) {
        let range =
            |sector: u64, count: u64| sector as usize * SECTOR..(sector + count) as usize * SECTOR;
        match *action {
            Action::Write { sector, count } => {
                let bytes = sectors(first_tag(number), count);
                self.model[range(sector, count)].copy_from_slice(&bytes);
            }
            Action::WriteZeroes { sector, count } => self.model[range(sector, count)].fill(0),
            Action::Discard { sector, count } => {
                let mut now = vec![0; count as usize * SECTOR];
                disk.read_at(&mut now, sector * SECTOR as u64).unwrap();
                let before = &mut self.model[range(sector, count)];
                for (now, before) in now.chunks(SECTOR).zip(before.chunks_mut(SECTOR)) {
                    assert!(
                        now == before || now.iter().all(|byte| *byte == 0),
                        "discard"
                    );
                    before.copy_from_slice(now);
                }
            }
            Action::Flush | Action::Reopen => {}
        }
    }
}

/// Extents cover the disk in order, and what they call zeroes is zeroes.
fn check_extents(disk: &dyn BlockDevice, model: &[u8]) {
    let mut at = 0;
    for extent in extents(disk) {
        let extent = extent.unwrap();
        assert_eq!(extent.offset, at);
        assert!(extent.len > 0 && extent.len.is_multiple_of(SECTOR as u64));
        at = extent.end();
        if extent.kind == ExtentKind::Zero {
            let range = extent.offset as usize..extent.end() as usize;
            assert!(
                model[range].iter().all(|byte| *byte == 0),
                "data at {extent:?}"
            );
        }
    }
    assert_eq!(at, disk.size());
}

fn subjects() -> impl Strategy<Value = (Kind, u32)> {
    let kind = prop_oneof![
        1 => Just(Kind::Raw),
        1 => Just(Kind::Fixed),
        2 => Just(Kind::Dynamic),
        4 => (1usize..4).prop_map(Kind::Differencing),
    ];
    (
        kind,
        prop_oneof![Just(512), Just(4096), Just(16384), Just(2 << 20)],
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_like_a_vector_of_bytes(
        (kind, block_size) in subjects(),
        actions in actions(SECTORS, 30, 40),
    ) {
        let mut subject = Subject::new(kind, block_size);
        let mut disk = subject.open();
        for (number, action) in actions.iter().enumerate() {
            if matches!(action, Action::Reopen) {
                drop(disk);
                disk = subject.open();
            }
            action.apply(number, &*disk).unwrap();
            subject.follow(number, action, &*disk);
            prop_assert!(contents(&*disk) == subject.model, "after {number}: {action:?}");
        }
        check_extents(&*disk, &subject.model);
        drop(disk);
        if !matches!(kind, Kind::Raw) {
            let parents: Vec<&Path> = subject.parents.iter().map(PathBuf::as_path).collect();
            let disk = open_ro(&subject.path, &parents);
            prop_assert!(contents(&disk) == subject.model, "reopened");
            drop(disk);
            let report = vhd::check(&subject.path, &subject.parents).unwrap();
            prop_assert!(report.is_clean(), "{:?}", report.problems);
        }
    }
}
