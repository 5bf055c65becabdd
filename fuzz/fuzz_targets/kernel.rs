//! The kernel loader: ELF files and bzImages, and what is put beside them.

#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use fabric_fuzz::rarely::Rarely;
use fabric_fuzz::scratch::Scratch;
use fabric_vmm::boot::layout::MmioSlot;
use fabric_vmm::boot::{BootFile, BootPlan, finish, load_kernel};
use fabric_vmm::memory::{self, GuestMemory};
use libfuzzer_sys::fuzz_target;

const MIB: u64 = 32;
const SIZE: u64 = MIB << 20;

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| memory::create(MIB).expect("memory"));

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

#[derive(Arbitrary, Debug)]
struct Input {
    kernel: Kernel,
    /// Bytes that are put anywhere in the file, big ones of them as numbers.
    patches: Vec<Rarely<(u16, u64)>>,
    cut: Rarely<u16>,
    initrd: Option<u16>,
    vcpus: u8,
    devices: u8,
    cmdline: String,
}

#[derive(Arbitrary, Debug)]
enum Kernel {
    Elf(Elf),
    BzImage(BzImage),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Elf {
    entry: u16,
    odd_entry: Rarely<u64>,
    table: Rarely<u64>,
    entry_size: Rarely<u16>,
    count: Rarely<u16>,
    segments: Vec<Segment>,
}

#[derive(Arbitrary, Debug)]
struct Segment {
    kind: Rarely<u32>,
    address: u16,
    odd_address: Rarely<u64>,
    offset: Rarely<u64>,
    in_file: u16,
    odd_in_file: Rarely<u64>,
    in_memory: u16,
    odd_in_memory: Rarely<u64>,
}

#[derive(Arbitrary, Debug)]
struct BzImage {
    setup_sectors: u8,
    version: Rarely<u16>,
    load_flags: Rarely<u8>,
    extended_flags: Rarely<u16>,
    payload: u16,
    paragraphs: Rarely<u32>,
    preferred: u8,
    odd_preferred: Rarely<u64>,
    needed: u16,
    odd_needed: Rarely<u32>,
    initrd_max: Rarely<u32>,
    code32_start: Rarely<u32>,
}

fuzz_target!(|input: Input| {
    SCRATCH.with(|scratch| run(scratch, &input));
});

fn run(scratch: &Scratch, input: &Input) {
    let mut file = match &input.kernel {
        Kernel::Elf(elf) => elf.file(),
        Kernel::BzImage(image) => image.file(),
        Kernel::Bytes(bytes) => bytes.clone(),
    };
    for (at, value) in input.patches.iter().take(4).filter_map(|patch| patch.0) {
        put(&mut file, usize::from(at) % 0x400, &value.to_le_bytes());
    }
    if let Some(cut) = input.cut.0 {
        file.truncate(usize::from(cut));
    }
    let open = |name, bytes: &[u8]| BootFile::open(&scratch.file(name, bytes)).unwrap();
    let Ok(kernel) = load_kernel(&MEMORY, SIZE, &open("kernel", &file)) else {
        return;
    };
    assert!(kernel.end <= SIZE, "it ends at {:#x}", kernel.end);
    let initrd = input
        .initrd
        .map(|len| open("initrd", &vec![7; usize::from(len)]));
    let devices: Vec<_> = (0..usize::from(input.devices % 18))
        .filter_map(MmioSlot::nth)
        .collect();
    let cmdline: String = input.cmdline.chars().take(400).collect();
    let plan = BootPlan {
        kernel: &kernel,
        cmdline: &cmdline,
        initrd: initrd.as_ref(),
        memory_size: SIZE,
        vcpus: input.vcpus % 8 + 1,
        devices: &devices,
    };
    let _ = finish(&MEMORY, &plan);
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = file.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

impl Elf {
    fn file(&self) -> Vec<u8> {
        let segments = &self.segments[..self.segments.len().min(5)];
        let mut file = vec![0; 64];
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 16, &[2, 0, 62, 0]);
        let entry = self.odd_entry.or((1 << 20) + u64::from(self.entry));
        put(&mut file, 24, &entry.to_le_bytes());
        put(&mut file, 32, &self.table.or(64).to_le_bytes());
        put(&mut file, 54, &self.entry_size.or(56).to_le_bytes());
        put(
            &mut file,
            56,
            &self.count.or(segments.len() as u16).to_le_bytes(),
        );
        let mut offset = 64 + 56 * segments.len() as u64;
        for segment in segments {
            let in_file = u64::from(segment.in_file % 0x1000);
            let in_memory = in_file + u64::from(segment.in_memory);
            let fields = [
                u64::from(segment.kind.or(1)),
                segment.offset.or(offset),
                0,
                segment
                    .odd_address
                    .or((1 << 20) + u64::from(segment.address) * 256),
                segment.odd_in_file.or(in_file),
                segment.odd_in_memory.or(in_memory),
                0,
            ];
            file.extend(fields.into_iter().flat_map(u64::to_le_bytes));
            offset += in_file;
        }
        file.resize(offset as usize, 0x90);
        file
    }
}

impl BzImage {
    fn file(&self) -> Vec<u8> {
        let payload = usize::from(self.payload % 0x2000) & !15;
        let sectors = self.setup_sectors % 8;
        let setup = (usize::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512;
        let mut file = vec![0; setup + payload];
        put(&mut file, 0x1f1, &[sectors]);
        put(
            &mut file,
            0x1f4,
            &self.paragraphs.or(payload as u32 / 16).to_le_bytes(),
        );
        put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
        put(&mut file, 0x202, b"HdrS");
        put(&mut file, 0x206, &self.version.or(0x20f).to_le_bytes());
        put(&mut file, 0x211, &[self.load_flags.or(1)]);
        put(
            &mut file,
            0x214,
            &self.code32_start.or(0x10_0000).to_le_bytes(),
        );
        put(
            &mut file,
            0x22c,
            &self.initrd_max.or(0x7fff_ffff).to_le_bytes(),
        );
        put(&mut file, 0x236, &self.extended_flags.or(1).to_le_bytes());
        let preferred = self.odd_preferred.or(u64::from(self.preferred % 32) << 20);
        put(&mut file, 0x258, &preferred.to_le_bytes());
        let needed = self.odd_needed.or(u32::from(self.needed) * 16);
        put(&mut file, 0x260, &needed.to_le_bytes());
        file
    }
}
