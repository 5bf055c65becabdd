//! Reads a kernel into guest memory: an ELF `vmlinux`, or a bzImage by the
//! 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol").
//!
//! The file's header is judged here, field by field, so that a wrong or
//! truncated file is named as such; the reading itself is `linux-loader`'s.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{self, KernelLoader};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::file::BootFile;
use super::layout::HIGH_MEMORY;

/// What a kernel comes as, which tells what to expect of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An ELF `vmlinux`, made for a machine like this.
    Elf,
    /// A bzImage, as distributions ship it: made for any machine, with modules.
    BzImage,
}

/// A kernel in memory, and where it begins.
#[derive(Debug, Clone)]
pub struct LoadedKernel {
    /// What it came as.
    pub format: KernelFormat,
    /// Where the boot processor starts, in 64-bit mode.
    pub entry: u64,
    /// The header that the boot parameters carry on to the kernel.
    pub setup: setup_header,
    /// The first byte after what the kernel needs until it manages its memory.
    pub end: u64,
}

/// Why a kernel cannot be booted.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file could not be read.
    #[error("cannot read kernel {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A field of the file breaks a rule.
    #[error("{path} is not a kernel that can be booted: {field} is {value}: {rule}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, by the name that its document gives it.
        field: String,
        /// Its value.
        value: String,
        /// What it has to be.
        rule: String,
    },
    /// The guest has too little memory for it.
    #[error(
        "kernel {path} needs memory up to {needed_mib} MiB, the guest has {have_mib} MiB: \
        raise `memory_mib`"
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// What it needs.
        needed_mib: u64,
        /// What there is.
        have_mib: u64,
    },
    /// Reading it into memory failed.
    #[error("cannot load kernel {path}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: loader::Error,
    },
}

/// Opens the kernel at `path`.
///
/// # Errors
///
/// When it cannot be read.
pub fn open(path: &Path) -> Result<BootFile, KernelError> {
    BootFile::open(path).map_err(|source| KernelError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a kernel into `memory`, whose low part ends at `ram_end`.
///
/// # Errors
///
/// When the file is not a kernel for 64-bit x86, is cut short, or does not fit.
pub fn load(
    memory: &GuestMemoryMmap,
    ram_end: u64,
    file: &BootFile,
) -> Result<LoadedKernel, KernelError> {
    let image = Image { file, ram_end };
    let magic = image.bytes::<4>("the first four bytes", 0)?;
    if magic == *b"\x7fELF" {
        return image.load_elf(memory);
    }
    let signature = image.bytes::<4>("the boot sector's signature `header`", HDRS_AT);
    match signature {
        Ok(signature) if signature == *b"HdrS" => image.load_bzimage(memory),
        _ => Err(image.wrong(
            "the first four bytes",
            format!("{magic:02x?}"),
            "an ELF vmlinux begins with 7f 45 4c 46, and a bzImage has \"HdrS\" at 0x202",
        )),
    }
}

const HDRS_AT: u64 = 0x202;

// ELF-64 Object File Format 1.5, figures 2 and 6.
const EI_CLASS: u64 = 4;
const EI_DATA: u64 = 5;
const E_MACHINE: u64 = 18;
const E_ENTRY: u64 = 24;
const E_PHOFF: u64 = 32;
const E_PHENTSIZE: u64 = 54;
const E_PHNUM: u64 = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const X86_64: u16 = 62;
const PROGRAM_HEADER: u16 = 56;
const SEGMENTS_MAX: u16 = 64;
const PT_LOAD: u32 = 1;

// boot.rst, "The Real-Mode Kernel Header".
const SETUP_SECTS: u64 = 0x1f1;
const VERSION: u64 = 0x206;
const LOADFLAGS: u64 = 0x211;
const XLOADFLAGS: u64 = 0x236;
const SYSSIZE: u64 = 0x1f4;
const PREF_ADDRESS: u64 = 0x258;
const INIT_SIZE: u64 = 0x260;
const VERSION_MIN: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

struct Image<'a> {
    file: &'a BootFile,
    ram_end: u64,
}

impl Image<'_> {
    fn load_elf(self, memory: &GuestMemoryMmap) -> Result<LoadedKernel, KernelError> {
        self.expect(
            "e_ident[EI_CLASS]",
            self.bytes::<1>("e_ident", EI_CLASS)?[0],
            CLASS_64,
        )?;
        self.expect(
            "e_ident[EI_DATA]",
            self.bytes::<1>("e_ident", EI_DATA)?[0],
            LITTLE_ENDIAN,
        )?;
        self.expect("e_machine", self.u16("e_machine", E_MACHINE)?, X86_64)?;
        self.expect(
            "e_phentsize",
            self.u16("e_phentsize", E_PHENTSIZE)?,
            PROGRAM_HEADER,
        )?;
        let entry = self.u64("e_entry", E_ENTRY)?;
        let segments = self.elf_segments()?;
        if !segments
            .iter()
            .any(|s| (s.address..s.address + s.in_file).contains(&entry))
        {
            let rule = "it must lie in a loaded segment, by physical address";
            return Err(self.wrong("e_entry", format!("{entry:#x}"), rule));
        }
        let end = segments
            .iter()
            .map(|s| s.address + s.in_memory)
            .max()
            .unwrap_or(0);
        self.fits(end)?;
        let mut reader = self.file.reader().map_err(|source| self.unread(source))?;
        Elf::load(memory, None, &mut reader, None).map_err(|source| self.unloadable(source))?;
        Ok(LoadedKernel {
            format: KernelFormat::Elf,
            entry,
            setup: elf_setup(),
            end,
        })
    }

    fn elf_segments(&self) -> Result<Vec<Segment>, KernelError> {
        let count = self.u16("e_phnum", E_PHNUM)?;
        if !(1..=SEGMENTS_MAX).contains(&count) {
            let rule = format!("a kernel has from 1 to {SEGMENTS_MAX} segments");
            return Err(self.wrong("e_phnum", count, rule));
        }
        let table = self.u64("e_phoff", E_PHOFF)?;
        let mut segments = Vec::new();
        for index in 0..u64::from(count) {
            let name = |field: &str| format!("program header {index}'s {field}");
            let at = table.saturating_add(index * u64::from(PROGRAM_HEADER));
            let header: [u8; PROGRAM_HEADER as usize] = self.bytes(&name("place"), at)?;
            if u32_at(&header, 0) != PT_LOAD {
                continue;
            }
            let segment = Segment {
                offset: u64_at(&header, 8),
                address: u64_at(&header, 24),
                in_file: u64_at(&header, 32),
                in_memory: u64_at(&header, 40),
            };
            if segment.in_file == 0 {
                continue;
            }
            self.check_segment(&segment, name)?;
            segments.push(segment);
        }
        Ok(segments)
    }

    fn check_segment(
        &self,
        segment: &Segment,
        name: impl Fn(&str) -> String,
    ) -> Result<(), KernelError> {
        let end = segment.offset.checked_add(segment.in_file);
        if end.is_none_or(|end| end > self.file.length()) {
            let value = format!("{:#x} bytes at {:#x}", segment.in_file, segment.offset);
            let rule = format!(
                "the file ends at {:#x}: it is cut short",
                self.file.length()
            );
            return Err(self.wrong(name("p_filesz"), value, rule));
        }
        if segment.in_memory < segment.in_file {
            let rule = format!("p_filesz is more: {:#x}", segment.in_file);
            return Err(self.wrong(name("p_memsz"), format!("{:#x}", segment.in_memory), rule));
        }
        let end = segment.address.checked_add(segment.in_memory);
        if segment.address < HIGH_MEMORY || end.is_none_or(|end| end > u64::from(u32::MAX)) {
            let rule = "a kernel loads between 1 MiB and 4 GiB";
            return Err(self.wrong(name("p_paddr"), format!("{:#x}", segment.address), rule));
        }
        Ok(())
    }

    fn load_bzimage(self, memory: &GuestMemoryMmap) -> Result<LoadedKernel, KernelError> {
        let version = self.u16("version", VERSION)?;
        if version < VERSION_MIN {
            let rule = format!("the boot protocol must be {VERSION_MIN:#x} or later (Linux 3.8)");
            return Err(self.wrong("version", format!("{version:#x}"), rule));
        }
        let loadflags = self.bytes::<1>("loadflags", LOADFLAGS)?[0];
        if loadflags & LOADED_HIGH == 0 {
            let rule = "LOADED_HIGH must be set: a zImage cannot be booted";
            return Err(self.wrong("loadflags", format!("{loadflags:#x}"), rule));
        }
        let xloadflags = self.u16("xloadflags", XLOADFLAGS)?;
        if xloadflags & XLF_KERNEL_64 == 0 {
            let rule = "XLF_KERNEL_64 must be set: the kernel has no 64-bit entry";
            return Err(self.wrong("xloadflags", format!("{xloadflags:#x}"), rule));
        }
        self.check_bzimage_length()?;
        let preferred = self.u64("pref_address", PREF_ADDRESS)?.max(HIGH_MEMORY);
        let end = preferred.saturating_add(u64::from(self.u32("init_size", INIT_SIZE)?));
        self.fits(end)?;
        let load_at = Some(GuestAddress(HIGH_MEMORY));
        let mut reader = self.file.reader().map_err(|source| self.unread(source))?;
        let loaded = BzImage::load(memory, load_at, &mut reader, None)
            .map_err(|source| self.unloadable(source))?;
        let setup = loaded.setup_header.unwrap_or_else(elf_setup);
        Ok(LoadedKernel {
            format: KernelFormat::BzImage,
            entry: HIGH_MEMORY + ENTRY_64,
            setup,
            end,
        })
    }

    fn check_bzimage_length(&self) -> Result<(), KernelError> {
        let setup_sects = match self.bytes::<1>("setup_sects", SETUP_SECTS)?[0] {
            0 => 4,
            sects => u64::from(sects),
        };
        // In paragraphs of 16 bytes.
        let payload = u64::from(self.u32("syssize", SYSSIZE)?) * 16;
        let needed = (setup_sects + 1) * 512 + payload;
        // The last paragraph need not be whole.
        if needed <= self.file.length() + 15 {
            return Ok(());
        }
        let rule = format!(
            "the file ends at {:#x}, not at {needed:#x}: it is cut short",
            self.file.length()
        );
        Err(self.wrong("syssize", format!("{payload:#x} bytes"), rule))
    }

    fn fits(&self, end: u64) -> Result<(), KernelError> {
        if end <= self.ram_end {
            return Ok(());
        }
        let (path, needed_mib) = (self.file.path().to_owned(), end.div_ceil(1 << 20));
        Err(KernelError::Memory {
            path,
            needed_mib,
            have_mib: self.ram_end >> 20,
        })
    }

    fn expect<T: PartialEq + std::fmt::Display>(
        &self,
        field: &str,
        value: T,
        wanted: T,
    ) -> Result<(), KernelError> {
        if value == wanted {
            return Ok(());
        }
        let rule = format!("a kernel for 64-bit x86 has {wanted} there");
        Err(self.wrong(field, value, rule))
    }

    fn bytes<const N: usize>(&self, field: &str, at: u64) -> Result<[u8; N], KernelError> {
        let mut bytes = [0; N];
        match self.file.file().read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let value = format!("at {at:#x}");
                let rule = format!(
                    "the file ends at {:#x}: it is cut short",
                    self.file.length()
                );
                Err(self.wrong(field, value, rule))
            }
            Err(source) => Err(self.unread(source)),
        }
    }

    fn u16(&self, field: &str, at: u64) -> Result<u16, KernelError> {
        Ok(u16::from_le_bytes(self.bytes(field, at)?))
    }

    fn u32(&self, field: &str, at: u64) -> Result<u32, KernelError> {
        Ok(u32::from_le_bytes(self.bytes(field, at)?))
    }

    fn u64(&self, field: &str, at: u64) -> Result<u64, KernelError> {
        Ok(u64::from_le_bytes(self.bytes(field, at)?))
    }

    fn wrong(
        &self,
        field: impl Into<String>,
        value: impl ToString,
        rule: impl Into<String>,
    ) -> KernelError {
        let (field, value, rule) = (field.into(), value.to_string(), rule.into());
        KernelError::Field {
            path: self.file.path().to_owned(),
            field,
            value,
            rule,
        }
    }

    fn unread(&self, source: std::io::Error) -> KernelError {
        KernelError::Read {
            path: self.file.path().to_owned(),
            source,
        }
    }

    fn unloadable(&self, source: loader::Error) -> KernelError {
        KernelError::Load {
            path: self.file.path().to_owned(),
            source,
        }
    }
}

struct Segment {
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

/// A vmlinux carries no setup header: what a boot loader fills in for it.
fn elf_setup() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        kernel_alignment: 0x0100_0000,
        initrd_addr_max: 0x7fff_ffff,
        ..setup_header::default()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const RAM: u64 = 32 << 20;

    /// An ELF with one segment of `code` at 16 MiB.
    fn elf(code: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..4].copy_from_slice(b"\x7fELF");
        file[4..7].copy_from_slice(&[2, 1, 1]);
        file[16] = 2;
        file[18] = 62;
        file[24..32].copy_from_slice(&0x0100_0000u64.to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = 1;
        file[72] = 120;
        file[88..96].copy_from_slice(&0x0100_0000u64.to_le_bytes());
        file[96..104].copy_from_slice(&(code.len() as u64).to_le_bytes());
        file[104..112].copy_from_slice(&(code.len() as u64 + 100).to_le_bytes());
        file.extend(code);
        file
    }

    fn bzimage() -> Vec<u8> {
        let mut file = vec![0; 1024 + 64];
        file[0x1f1] = 1;
        file[0x1f4] = 4;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x211] = 1;
        file[0x236] = 1;
        file[0x258..0x260].copy_from_slice(&0x0100_0000u64.to_le_bytes());
        file[0x260..0x264].copy_from_slice(&0x1000u32.to_le_bytes());
        file[1024..1024 + 4].copy_from_slice(b"code");
        file
    }

    fn try_load(contents: &[u8]) -> Result<(LoadedKernel, GuestMemoryMmap), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        match open(file.path()).and_then(|kernel| load(&memory, RAM, &kernel)) {
            Ok(kernel) => Ok((kernel, memory)),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains(file.path().to_str().unwrap()),
                    "{text} names the file"
                );
                Err(text)
            }
        }
    }

    #[test]
    fn an_elf_is_read_to_where_it_says() {
        let (kernel, memory) = try_load(&elf(b"kernel code")).unwrap();
        assert_eq!((kernel.entry, kernel.end), (0x0100_0000, 0x0100_0000 + 111));
        let mut code = [0; 11];
        memory
            .read_slice(&mut code, GuestAddress(0x0100_0000))
            .unwrap();
        assert_eq!(&code, b"kernel code");
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_entry() {
        let (kernel, memory) = try_load(&bzimage()).unwrap();
        assert_eq!((kernel.entry, kernel.end), (0x10_0200, 0x0100_1000));
        let mut code = [0; 4];
        memory
            .read_slice(&mut code, GuestAddress(0x10_0000))
            .unwrap();
        assert_eq!(&code, b"code");
    }

    #[test]
    fn a_file_cut_short_anywhere_is_refused() {
        let whole = elf(b"kernel code");
        for length in 0..whole.len() {
            let error = try_load(&whole[..length]).unwrap_err();
            assert!(
                error.contains("cut short") || length < 4,
                "{length}: {error}"
            );
        }
        let whole = bzimage();
        for length in [0, 0x201, 0x210, 0x260, 1000, 1024 + 40] {
            try_load(&whole[..length]).unwrap_err();
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_its_value_and_rule() {
        let wrong = |at: usize, byte: u8| {
            let mut file = elf(b"kernel code");
            file[at] = byte;
            try_load(&file).unwrap_err()
        };
        assert!(wrong(4, 1).contains("e_ident[EI_CLASS] is 1"));
        assert!(wrong(18, 183).contains("e_machine is 183"));
        assert!(wrong(56, 0).contains("e_phnum is 0"));
        assert!(wrong(27, 2).contains("e_entry is 0x2000000"));
        assert!(wrong(91, 0).contains("program header 0's p_paddr is 0x0"));
        assert!(wrong(107, 4).contains("raise `memory_mib`"));
        assert!(
            try_load(b"#!/bin/sh\n")
                .unwrap_err()
                .contains("an ELF vmlinux begins with")
        );

        let mut file = bzimage();
        file[0x236] = 0;
        assert!(try_load(&file).unwrap_err().contains("xloadflags is 0x0"));
    }

    #[test]
    fn a_folder_is_no_kernel() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(open(folder.path()), Err(KernelError::Read { .. })));
    }
}
