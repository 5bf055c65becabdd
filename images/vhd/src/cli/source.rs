//! Opening the image that a command reads.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use vhd::{BlockDevice, Disk, OpenOptions, Raw, Result};

/// What an image is; never guessed, since a guest can write anything into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A fixed, dynamic or differencing VHD
    Vhd,
    /// Sectors and nothing else
    Raw,
}

/// Options that say how an image is to be read.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// What the image is; it is not guessed from what is in it
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "vhd")]
    from: Format,

    #[command(flatten)]
    chain: Chain,
}

/// The files below a differencing disk.
#[derive(Debug, Args)]
pub(crate) struct Chain {
    /// A file below a differencing disk; repeat it, nearest first, base last
    #[arg(long = "parent", value_name = "FILE")]
    pub(crate) parents: Vec<PathBuf>,

    /// Accept parents whose time stamp is not the one that was recorded, as
    /// after copying a chain that another tool has made
    #[arg(long, requires = "parents")]
    pub(crate) ignore_parent_time_stamp: bool,
}

impl Source {
    /// Opens the image for reading.
    pub(crate) fn open(&self, path: &Path) -> Result<Box<dyn BlockDevice>> {
        Ok(match self.from {
            Format::Raw => Box::new(Raw::open(path, true)?),
            Format::Vhd => Box::new(Disk::open(path, &self.chain.options())?),
        })
    }

    /// The image's file and those below it.
    pub(crate) fn files<'a>(&'a self, path: &'a Path) -> Vec<&'a Path> {
        let parents = self.chain.parents.iter().map(PathBuf::as_path);
        std::iter::once(path).chain(parents).collect()
    }
}

impl Chain {
    /// Options for reading a disk over these files.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            ignore_parent_time_stamp: self.ignore_parent_time_stamp,
            ..OpenOptions::read_only().with_parents(&self.parents)
        }
    }
}
