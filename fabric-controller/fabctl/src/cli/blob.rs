//! Images and packages.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// Upload a VHD under a name. An upload that was interrupted goes on where
    /// it was when the same command is given again.
    Upload(Upload),
    /// List what is there.
    List,
    /// Show one, by name or digest.
    Show(BlobName),
    /// Delete one. Refused while a service uses it.
    Delete(BlobName),
}

/// What can be done with packages.
#[derive(Debug, Subcommand)]
pub enum PackageCommand {
    /// Make a package from a directory: an ext4 file system in a dynamic VHD,
    /// byte for byte the same from the same files.
    Build(Build),
    #[command(flatten)]
    #[allow(missing_docs)]
    Blob(BlobCommand),
}

/// Which image or package.
#[derive(Debug, Args)]
pub struct BlobName {
    /// Its name; to show, the digest will do.
    pub name: String,
}

/// Settings of `upload`.
#[derive(Debug, Args)]
#[command(
    after_help = "The name can be left out: it is then the file's, without \".vhd\".\n\
Examples:\n  fabctl image upload guest-os guest-os.vhd\n  fabctl image upload guest-os.vhd"
)]
pub struct Upload {
    /// NAME FILE, or FILE alone.
    #[arg(value_name = "NAME] [FILE", num_args = 1..=2, required = true)]
    pub name_and_file: Vec<String>,
}

/// Settings of `package build`.
#[derive(Debug, Args)]
#[command(
    after_help = "Needs mke2fs and debugfs (Debian package e2fsprogs); no root.\n\
Examples:\n  fabctl package build ./hello -o hello.vhd\n  fabctl package build ./data -o data.vhd --size 1GiB"
)]
pub struct Build {
    /// Directory whose files go into the package.
    pub directory: PathBuf,
    /// File to write.
    #[arg(long = "out", short = 'o', value_name = "FILE")]
    pub out: PathBuf,
    /// Size of the disk; by default what the files need.
    #[arg(long, value_name = "SIZE")]
    pub size: Option<bytesize::ByteSize>,
}
