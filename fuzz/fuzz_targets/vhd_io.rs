//! Reading and writing disks of each kind: they are like a vector of bytes, and
//! still are when they are opened again.

#![no_main]

use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use fabric_fuzz::disk::{self, Images, MemoryFile, SIZE};
use libfuzzer_sys::fuzz_target;
use vhd::{BlockDevice, Disk, ExtentKind, OpenOptions};

static IMAGES: LazyLock<Images> = LazyLock::new(Images::new);
const SECTORS: u64 = SIZE / 512;

#[derive(Arbitrary, Debug)]
struct Input {
    kind: Kind,
    acts: Vec<Act>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Kind {
    Fixed,
    Dynamic,
    Child,
    Grandchild,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Write(Range, u8),
    Zero(Range),
    Discard(Range),
    Read(Range),
    Flush,
    Reopen,
    Extents,
    /// A change of the file fails; from then on nothing is known but that the disk
    /// opens again.
    Fail(u8),
    /// A range that need not be in the disk, nor of whole sectors.
    Odd(u64, u16),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Range {
    sector: u8,
    sectors: u8,
}

impl Range {
    fn place(self) -> (u64, usize) {
        let sector = u64::from(self.sector) % SECTORS;
        let sectors = u64::from(self.sectors % 24).min(SECTORS - sector);
        (sector * 512, sectors as usize * 512)
    }
}

struct Subject {
    kind: Kind,
    file: MemoryFile,
    disk: Option<Disk>,
    model: Vec<u8>,
    /// Whether nothing has failed so far.
    known: bool,
}

fuzz_target!(|input: Input| {
    let mut subject = Subject::new(input.kind);
    for act in &input.acts {
        subject.act(act);
    }
    subject.act(&Act::Flush);
    subject.act(&Act::Reopen);
    subject.compare();
});

fn options() -> OpenOptions {
    OpenOptions::read_write()
}

fn parent(kind: Kind) -> Option<Arc<Disk>> {
    let open = |image: &[u8], parent| {
        let disk = disk::open(
            &MemoryFile::new(image.to_vec()),
            &OpenOptions::read_only(),
            parent,
        );
        Some(Arc::new(disk.expect("an image that is in order")))
    };
    match kind {
        Kind::Fixed | Kind::Dynamic => None,
        Kind::Child => open(&IMAGES.dynamic, None),
        Kind::Grandchild => open(&IMAGES.child, open(&IMAGES.dynamic, None)),
    }
}

impl Subject {
    fn new(kind: Kind) -> Self {
        let image = match kind {
            Kind::Fixed => &IMAGES.fixed,
            Kind::Dynamic => &IMAGES.dynamic,
            Kind::Child => &IMAGES.child,
            Kind::Grandchild => &IMAGES.grandchild,
        };
        let file = MemoryFile::new(image.clone());
        let disk = disk::open(&file, &options(), parent(kind)).expect("an image that is in order");
        let mut model = vec![0; SIZE as usize];
        disk.read_at(&mut model, 0).expect("a disk reads");
        Self {
            kind,
            file,
            disk: Some(disk),
            model,
            known: true,
        }
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("an open disk")
    }

    /// Notes whether something was done. Only an injected failure lets it fail.
    fn done(&mut self, result: vhd::Result<()>) -> bool {
        assert!(result.is_ok() || !self.known, "{result:?}");
        result.is_ok()
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Write(range, value) => {
                let (at, len) = range.place();
                let result = self.disk().write_at(&vec![*value; len], at);
                if self.done(result) {
                    self.model[at as usize..][..len].fill(*value);
                }
            }
            Act::Zero(range) => {
                let (at, len) = range.place();
                let result = self.disk().write_zeroes(at, len as u64);
                if self.done(result) {
                    self.model[at as usize..][..len].fill(0);
                }
            }
            Act::Discard(range) => self.discard(*range),
            Act::Read(range) => {
                let (at, len) = range.place();
                let mut read = vec![0; len];
                let result = self.disk().read_at(&mut read, at);
                if self.done(result) && self.known {
                    assert!(read == self.model[at as usize..][..len], "at {at}");
                }
            }
            Act::Flush => {
                let result = self.disk().flush();
                self.done(result);
            }
            Act::Reopen => self.reopen(),
            Act::Extents => self.check_extents(),
            Act::Fail(after) => {
                self.known = false;
                self.file.fail_after(*after);
            }
            Act::Odd(at, len) => {
                let mut bytes = vec![0; usize::from(*len)];
                let right = at % 512 == 0
                    && len % 512 == 0
                    && at
                        .checked_add(u64::from(*len))
                        .is_some_and(|end| end <= SIZE);
                let read = self.disk().read_at(&mut bytes, *at);
                assert!(read.is_ok() == right || !self.known, "{at} {len}");
            }
        }
    }

    /// Each sector reads as before, or as zeroes.
    fn discard(&mut self, range: Range) {
        let (at, len) = range.place();
        let result = self.disk().discard(at, len as u64);
        let mut now = vec![0; len];
        let read = self.disk().read_at(&mut now, at);
        if !self.done(result) || !self.done(read) || !self.known {
            return;
        }
        let before = &mut self.model[at as usize..][..len];
        for (now, before) in now.chunks(512).zip(before.chunks_mut(512)) {
            assert!(
                now == before || now.iter().all(|byte| *byte == 0),
                "a discarded sector"
            );
            before.copy_from_slice(now);
        }
    }

    fn reopen(&mut self) {
        self.disk = None;
        let opened = disk::open(&self.file, &options(), parent(self.kind));
        if opened.is_err() && !self.known {
            // The failure may have been that of mending it; it comes only once.
            let again = disk::open(&self.file, &options(), parent(self.kind));
            self.disk = Some(again.expect("a disk opens again"));
        } else {
            self.disk = Some(opened.expect("a disk opens again"));
        }
    }

    fn check_extents(&mut self) {
        let mut at = 0;
        for extent in vhd::extents(self.disk()) {
            let extent = extent.expect("an extent");
            assert_eq!(extent.offset, at);
            assert!(extent.len > 0 && extent.len.is_multiple_of(512));
            at = extent.end();
            if extent.kind == ExtentKind::Zero && self.known {
                let there = &self.model[extent.offset as usize..at as usize];
                assert!(there.iter().all(|byte| *byte == 0), "data in {extent:?}");
            }
        }
        assert_eq!(at, SIZE);
    }

    fn compare(&self) {
        if self.known {
            let mut now = vec![0; SIZE as usize];
            self.disk().read_at(&mut now, 0).expect("a disk reads");
            assert!(now == self.model, "opened again, it is another");
        }
    }
}
