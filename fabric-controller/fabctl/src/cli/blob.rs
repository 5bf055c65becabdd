//! Images and packages.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Upload a VHD under a name. An upload that was interrupted goes on where
    /// it was when the same command is given again.
    Upload(ImageUpload),
    #[command(flatten)]
    #[allow(missing_docs)]
    Blob(BlobCommand),
}

/// What can be done with images and packages that are there.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
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
    /// Upload a VHD under a name. An upload that was interrupted goes on where
    /// it was when the same command is given again.
    Upload(Upload),
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

/// Settings of `image upload`.
#[derive(Debug, Args)]
#[command(
    after_help = "The name can be left out: it is then the file's, without \".vhd\".\n\
An image is placed only on nodes with the processors that it is for. All names of a file\n\
say the same: to upload it again with another --architecture corrects them all, sends\n\
nothing, and moves instances when their service is applied again.\n\
Examples:\n  fabctl image upload guest-os guest-os.vhd\n  fabctl image upload guest-os.vhd\n  \
fabctl image upload guest-os-arm arm.vhd --architecture aarch64"
)]
pub struct ImageUpload {
    /// NAME FILE, or FILE alone.
    #[arg(value_name = "NAME] [FILE", num_args = 1..=2, required = true)]
    pub name_and_file: Vec<String>,
    /// For which processors it is [default: what was said of the same file before, else
    /// x86_64].
    #[arg(long, value_enum)]
    pub architecture: Option<Architecture>,
}

/// Processors, by the words of `uname -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Architecture {
    /// x86-64.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

impl Architecture {
    /// Its word in a request.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// Settings of `package upload`.
#[derive(Debug, Args)]
#[command(
    after_help = "The name can be left out: it is then the file's, without \".vhd\".\n\
Examples:\n  fabctl package upload hello hello.vhd\n  fabctl package upload hello.vhd"
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
