//! Opening disk images, alone and in chains, and using what opens.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use fabric_fuzz::disk::{self, Images, MemoryFile};
use fabric_fuzz::scratch::Scratch;
use libfuzzer_sys::fuzz_target;
use vhd::{BlockDevice, Disk, DiskType, OpenOptions, Raw};

static IMAGES: LazyLock<Images> = LazyLock::new(Images::new);

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

/// How much is read and written of a disk that opens.
const USED: u64 = 256 << 10;
/// Extents that are listed: a disk may have millions.
const EXTENTS: usize = 64;

#[derive(Arbitrary, Debug)]
struct Input {
    image: Image,
    patches: Vec<Patch>,
    parent_patches: Vec<Patch>,
    read_only: bool,
    expect: Option<u8>,
    /// Whether the tools that take paths look at it too.
    tools: u8,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Image {
    Fixed,
    Dynamic,
    Child,
    Grandchild,
    /// A child on a parent that is not its own.
    Stranger,
    Nothing,
}

#[derive(Arbitrary, Debug)]
struct Patch {
    place: Place,
    change: Change,
    /// Whether the checksum is mended: mostly.
    unmended: u8,
}

#[derive(Arbitrary, Debug)]
enum Place {
    Footer(u16),
    Copy(u16),
    /// The same in both.
    Footers(u16),
    Header(u16),
    Table(u8),
    Block(u16),
    Anywhere(u32),
}

#[derive(Arbitrary, Debug)]
enum Change {
    Byte(u8),
    Short(u16),
    Word(u32),
    Long(u64),
    Cut,
    Extend(u16),
}

fuzz_target!(|input: Input| {
    let image = patched(base(input.image), &input.patches);
    let options = OpenOptions {
        read_only: input.read_only,
        expect: input.expect.map(|which| {
            [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing][usize::from(which % 3)]
        }),
        ..OpenOptions::default()
    };
    let file = MemoryFile::new(image.clone());
    if let Ok(disk) = disk::open(&file, &options, parent(&input)) {
        use_disk(&disk);
        let flushed = disk.flush().is_ok();
        drop(disk);
        if flushed && !options.read_only {
            let again = disk::open(&file, &options, parent(&input));
            assert!(
                again.is_ok(),
                "a disk that was flushed opens: {:?}",
                again.err()
            );
        }
    }
    if input.tools & 7 == 7 {
        SCRATCH.with(|scratch| look_at(scratch, &image, &input));
    }
});

fn base(image: Image) -> &'static [u8] {
    match image {
        Image::Fixed => &IMAGES.fixed,
        Image::Dynamic => &IMAGES.dynamic,
        Image::Child => &IMAGES.child,
        Image::Grandchild | Image::Stranger => &IMAGES.grandchild,
        Image::Nothing => &[],
    }
}

/// What is below the disk, if that opens.
fn parent(input: &Input) -> Option<Arc<Disk>> {
    let open = |image: &[u8], parent| {
        disk::open(
            &MemoryFile::new(image.to_vec()),
            &OpenOptions::read_only(),
            parent,
        )
        .ok()
        .map(Arc::new)
    };
    let dynamic = |patches| open(&patched(&IMAGES.dynamic, patches), None);
    match input.image {
        Image::Child | Image::Stranger => dynamic(&input.parent_patches),
        Image::Grandchild => open(&patched(&IMAGES.child, &input.parent_patches), dynamic(&[])),
        _ => None,
    }
}

fn patched(image: &[u8], patches: &[Patch]) -> Vec<u8> {
    let mut image = image.to_vec();
    for patch in patches.iter().take(4) {
        patch.apply(&mut image);
    }
    image
}

impl Patch {
    fn apply(&self, image: &mut Vec<u8>) {
        let tail = image.len().saturating_sub(512);
        match self.place {
            Place::Footer(field) => self.structure(image, tail, 512, 64, field),
            Place::Copy(field) => self.structure(image, 0, 512, 64, field),
            Place::Footers(field) => {
                self.structure(image, 0, 512, 64, field);
                let tail = image.len().saturating_sub(512);
                self.structure(image, tail, 512, 64, field);
            }
            Place::Header(field) => self.structure(image, 512, 1024, 36, field),
            Place::Table(entry) => self.change(image, 1536 + usize::from(entry) * 4),
            Place::Block(at) => self.change(image, 2048 + usize::from(at)),
            Place::Anywhere(at) => self.change(image, at as usize),
        }
    }

    fn structure(&self, image: &mut Vec<u8>, at: usize, len: usize, sum_at: usize, field: u16) {
        // Fields are at the beginning of each structure.
        self.change(image, at + usize::from(field) % 96);
        if self.unmended & 15 != 15
            && let Some(bytes) = image.get_mut(at..at + len)
        {
            bytes[sum_at..sum_at + 4].fill(0);
            let sum = bytes
                .iter()
                .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            bytes[sum_at..sum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }

    fn change(&self, image: &mut Vec<u8>, at: usize) {
        let mut put = |bytes: &[u8]| {
            if let Some(place) = image.get_mut(at..at.saturating_add(bytes.len())) {
                place.copy_from_slice(bytes);
            }
        };
        match self.change {
            Change::Byte(value) => put(&[value]),
            Change::Short(value) => put(&value.to_be_bytes()),
            Change::Word(value) => put(&value.to_be_bytes()),
            Change::Long(value) => put(&value.to_be_bytes()),
            Change::Cut => image.truncate(at),
            Change::Extend(by) => image.resize(image.len() + usize::from(by), 0),
        }
    }
}

/// Does to a disk what a guest may; whether it succeeds is its own business.
fn use_disk(disk: &dyn BlockDevice) {
    let used = disk.size().min(USED);
    let mut buffer = vec![0; 8 << 10];
    for at in (0..used).step_by(buffer.len()) {
        let len = (used - at).min(buffer.len() as u64) as usize;
        let _ = disk.read_at(&mut buffer[..len], at);
    }
    let last = disk.size() - 512;
    let _ = disk.read_at(&mut buffer[..512], last);
    for extent in vhd::extents(disk).take(EXTENTS).map_while(Result::ok) {
        assert!(extent.len > 0 && extent.end() <= disk.size(), "{extent:?}");
    }
    let written = [0x5a; 512];
    for at in [0, used / 1024 * 512, last] {
        if disk.write_at(&written, at).is_ok() {
            let mut read = [0; 512];
            disk.read_at(&mut read, at)
                .expect("what was written is read");
            assert_eq!(read, written, "at {at}");
        }
        let _ = disk.discard(at, 512);
        let _ = disk.write_zeroes(at, 512);
    }
    disk.read_at(&mut [0; 512], disk.size())
        .expect_err("beyond the end");
}

fn look_at(scratch: &Scratch, image: &[u8], input: &Input) {
    let path = scratch.file("disk.vhd", image);
    let parents: Vec<PathBuf> = match input.image {
        Image::Child => vec![scratch.file("dynamic.vhd", &IMAGES.dynamic)],
        Image::Grandchild => vec![
            scratch.file("child.vhd", &IMAGES.child),
            scratch.file("dynamic.vhd", &IMAGES.dynamic),
        ],
        _ => Vec::new(),
    };
    let options = OpenOptions::read_only().with_parents(parents.iter());
    let opens = Disk::open(&path, &options).is_ok();
    let report = vhd::check(&path, &parents);
    assert!(report.is_ok_and(|report| opens || !report.is_clean()) || !opens);
    let _ = vhd::info(&path);
    if let Ok(raw) = Raw::open(Path::new(&path), true)
        && raw.size() > 0
    {
        raw.read_at(&mut [0; 512], raw.size() - 512)
            .expect("a raw disk reads");
    }
}
