//! `vhd create`.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Result;
use bytesize::ByteSize;
use clap::ValueEnum;
use uuid::Uuid;
use vhd::format::TimeStamp;
use vhd::{CreateOptions, DifferencingOptions, Identity};

/// Make an empty disk, or a differencing disk over another
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Make an empty disk, or a differencing disk over another.\n\n\
        With --parent, the new disk holds what will be written and takes the rest from the \
        parent, which must not change from then on. Making it takes the same short time \
        whatever the parent's size. An existing file is never replaced.",
    after_help = "Sizes: 10GiB and 512MiB count in powers of 1024, 10GB in powers of 1000; a \
        plain number is bytes.\n\n\
        Examples:\n  \
        vhd create data.vhd --size 10GiB\n  \
        vhd create boot.vhd --size 512MiB --type fixed\n  \
        vhd create scratch.vhd --parent base.vhd\n  \
        vhd create root.vhd --size 1GiB --unique-id 6f1d0a52-0e2c-4a55-9d3b-1f1f7f0f2b11 \\\n      \
        --time-stamp 2024-01-01T00:00:00Z      the same bytes every time"
)]
pub(super) struct Args {
    /// The new file
    file: PathBuf,
    /// Size of the disk, a multiple of 512 bytes and at most 2040 GiB; with
    /// --parent, that of the parent unless given
    #[arg(long, required_unless_present = "parent")]
    size: Option<ByteSize>,
    /// Type of the disk
    #[arg(
        long = "type",
        value_enum,
        value_name = "TYPE",
        default_value = "dynamic",
        conflicts_with = "parent"
    )]
    disk_type: NewType,
    /// Make a differencing disk over this one
    #[arg(long, value_name = "FILE")]
    parent: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Options of every new VHD.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Bytes of data in a block, 512 times a power of two
    #[arg(long, value_name = "SIZE", default_value = "2MiB")]
    block_size: ByteSize,
    /// The disk's Unique Id; random unless given
    #[arg(long, value_name = "UUID")]
    unique_id: Option<Uuid>,
    /// The disk's Time Stamp (RFC 3339); now unless given
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339)]
    time_stamp: Option<SystemTime>,
}

/// A type that needs no parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NewType {
    /// Grows as it is written
    Dynamic,
    /// Has its full length from the start
    Fixed,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let Self {
            file,
            size,
            disk_type,
            parent,
            common,
        } = self;
        let identity = common.identity();
        let block_size = common.block_size();
        if let Some(parent) = parent {
            let size = size.map(|size| size.as_u64());
            let options = DifferencingOptions {
                size,
                block_size,
                identity,
            };
            return Ok(vhd::create_differencing(file, parent, &options)?);
        }
        let size = size.unwrap_or_default().as_u64();
        let options = CreateOptions {
            size,
            block_size,
            identity,
        };
        match disk_type {
            NewType::Fixed => vhd::create_fixed(file, &options)?,
            NewType::Dynamic => vhd::create_dynamic(file, &options)?,
        }
        Ok(())
    }
}

impl Common {
    /// Id and time stamp, made up where they were not given.
    pub(super) fn identity(&self) -> Identity {
        let fresh = Identity::random();
        Identity {
            unique_id: self.unique_id.unwrap_or(fresh.unique_id),
            time_stamp: self.time_stamp.map_or(fresh.time_stamp, TimeStamp::from),
        }
    }

    /// The block size; one too large for the format is refused like any other
    /// wrong one.
    pub(super) fn block_size(&self) -> u32 {
        u32::try_from(self.block_size.as_u64()).unwrap_or(u32::MAX)
    }
}
