//! What the guest finds in its memory when it starts.
//!
//! | file | what it writes |
//! |---|---|
//! | [`layout`] | nothing: it says where everything lies |
//! | [`mod@file`] | nothing: it is a file to boot from, kept open for resets |
//! | [`kernel`] | the kernel, an ELF or a bzImage |
//! | [`cmdline`] | composes the kernel command line |
//! | [`params`] | the boot parameters with the memory map |
//! | [`mptable`] | processors and interrupt lines |
//! | [`acpi`] | the same and the devices, for kernels that know no MP table |
//! | [`tables`] | segments and page tables |
//!
//! A kernel takes what it knows: the lean one the MP table and the devices on its
//! command line, a distribution's the ACPI tables. Both are always there.
//!
//! It goes in two steps, because reading the kernel takes a while in which the
//! rest is not known yet: [`load_kernel`], then [`finish`].

pub mod acpi;
pub mod cmdline;
pub mod file;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod params;
pub mod tables;

use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

pub use cmdline::{CmdlineParts, CmdlineTooLong};
pub use file::BootFile;
pub use kernel::{KernelError, KernelFormat, LoadedKernel};
use layout::{ACPI, BOOT_PARAMS, CMDLINE, EBDA, MmioSlot};
use params::InitrdPlace;

use crate::memory::GAP_START;

const PAGE: u64 = 0x1000;

/// Why the guest's memory cannot be prepared.
#[derive(Debug, Error)]
pub enum BootError {
    /// The initial RAM disk could not be read.
    #[error("cannot read initial RAM disk {path}")]
    InitrdRead {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The initial RAM disk does not fit.
    #[error(
        "initial RAM disk {path} of {size} bytes does not fit behind the kernel: \
        raise `memory_mib`"
    )]
    InitrdSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// The guest's memory could not be written.
    #[error("cannot write the guest's boot tables")]
    Memory(#[from] GuestMemoryError),
}

/// What the second step needs to know.
#[derive(Debug)]
pub struct BootPlan<'a> {
    /// The kernel that the first step loaded.
    pub kernel: &'a LoadedKernel,
    /// The composed command line.
    pub cmdline: &'a str,
    /// The initial RAM disk, if there is one.
    pub initrd: Option<&'a BootFile>,
    /// The guest's memory in bytes.
    pub memory_size: u64,
    /// The number of virtual CPUs.
    pub vcpus: u8,
    /// The virtio-mmio devices.
    pub devices: &'a [MmioSlot],
}

/// Reads the kernel into memory.
///
/// # Errors
///
/// As [`kernel::load`].
pub fn load_kernel(
    memory: &GuestMemoryMmap,
    memory_size: u64,
    file: &BootFile,
) -> Result<LoadedKernel, KernelError> {
    kernel::load(memory, memory_size.min(GAP_START), file)
}

/// Opens the initial RAM disk at `path`.
///
/// # Errors
///
/// When it cannot be read.
pub fn open_initrd(path: &Path) -> Result<BootFile, BootError> {
    BootFile::open(path).map_err(|source| unreadable_initrd(path, source))
}

fn unreadable_initrd(path: &Path, source: std::io::Error) -> BootError {
    BootError::InitrdRead {
        path: path.to_owned(),
        source,
    }
}

/// Writes everything else.
///
/// # Errors
///
/// When the initial RAM disk cannot be read or does not fit.
pub fn finish(memory: &GuestMemoryMmap, plan: &BootPlan<'_>) -> Result<(), BootError> {
    let initrd = plan
        .initrd
        .map(|file| load_initrd(memory, plan, file))
        .transpose()?;
    let mut cmdline = plan.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    memory.write_slice(&cmdline, GuestAddress(CMDLINE))?;
    memory.write_slice(&mptable::build(plan.vcpus, EBDA), GuestAddress(EBDA))?;
    let acpi = acpi::build(plan.vcpus, plan.devices, ACPI);
    memory.write_slice(&acpi, GuestAddress(ACPI))?;
    let params = params::build(plan.kernel.setup, plan.memory_size, cmdline.len(), initrd);
    memory.write_slice(&params, GuestAddress(BOOT_PARAMS))?;
    tables::write(memory)?;
    Ok(())
}

/// Puts the initial RAM disk as high as the kernel takes it.
fn load_initrd(
    memory: &GuestMemoryMmap,
    plan: &BootPlan<'_>,
    file: &BootFile,
) -> Result<InitrdPlace, BootError> {
    let size = file.length();
    let too_big = || BootError::InitrdSize {
        path: file.path().to_owned(),
        size,
    };
    let highest = u64::from(plan.kernel.setup.initrd_addr_max) + 1;
    let top = plan.memory_size.min(GAP_START).min(highest);
    let start = top.checked_sub(size).ok_or_else(too_big)? & !(PAGE - 1);
    if start < plan.kernel.end {
        return Err(too_big());
    }
    let (address, length) = (start as u32, size as usize);
    let mut reader = file
        .reader()
        .map_err(|source| unreadable_initrd(file.path(), source))?;
    memory.read_exact_volatile_from(GuestAddress(start), &mut reader, length)?;
    Ok(InitrdPlace {
        address,
        length: length as u32,
    })
}
