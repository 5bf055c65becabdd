//! An ext4 file system in a file, made without root and the same byte for byte
//! from the same inputs.
//!
//! `mke2fs` makes it empty, `debugfs` fills it in the order given. (`mke2fs -d`
//! takes owners, times and order from the folder it copies, so its result differs
//! from one machine to the next.)

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// Every time in the file system: 1 January 2024, 00:00 UTC.
const TIME: &str = "1704067200";

/// Seed of the hashes in directories, which would otherwise be random.
const HASH_SEED: &str = "6661b21c-0000-4000-8000-000000000000";

/// Something in the file system, owned by root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory {
        /// Absolute path in the file system.
        path: String,
        /// Permissions, such as 0o755.
        mode: u16,
    },
    /// A file.
    File {
        /// Absolute path in the file system.
        path: String,
        /// Permissions.
        mode: u16,
        /// File on the host with its contents.
        contents: PathBuf,
    },
    /// A symbolic link.
    Link {
        /// Absolute path in the file system.
        path: String,
        /// What it points to.
        target: String,
    },
}

/// A file system to be made.
#[derive(Debug)]
pub struct FileSystem<'a> {
    /// Label, at most 16 bytes.
    pub label: &'a str,
    /// UUID.
    pub uuid: &'a str,
    /// Size in bytes.
    pub size: u64,
    /// Directories before what is in them.
    pub entries: Vec<Entry>,
}

impl FileSystem<'_> {
    /// Makes it in a new file.
    pub fn make(&self, file: &Path) -> Result<()> {
        fs::File::create_new(file)
            .and_then(|file| file.set_len(self.size))
            .with_context(|| format!("making {}", file.display()))?;
        let mut mke2fs = tool("mke2fs");
        mke2fs.args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", "1024",
        ]);
        // The guest may lose its power at any moment: a small journal.
        mke2fs.args(["-J", "size=4", "-O", "^resize_inode,^dir_index"]);
        let extended =
            format!("root_owner=0:0,hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0");
        mke2fs.args(["-L", self.label, "-U", self.uuid, "-E", &extended]);
        process::run_quietly(mke2fs.arg(file), |_| ())?;
        self.fill(file)?;
        let mut e2fsck = tool("e2fsck");
        process::run_quietly(e2fsck.args(["-f", "-n"]).arg(file), |_| ())
            .context("checking the new file system")
    }

    fn fill(&self, file: &Path) -> Result<()> {
        let mut script = String::from("rmdir lost+found\n");
        for entry in &self.entries {
            entry.commands(&mut script)?;
        }
        let commands = file.with_extension("debugfs");
        fs::write(&commands, script).context("writing the commands for debugfs")?;
        let mut debugfs = tool("debugfs");
        debugfs.arg("-w").arg("-f").arg(&commands).arg(file);
        // debugfs ends with 0 even when a command has failed.
        let mut complaints = Vec::new();
        process::run_quietly(&mut debugfs, |line| {
            let usual = ["debugfs ", "debugfs:", "Allocated inode:"];
            if !line.is_empty() && !usual.iter().any(|start| line.starts_with(start)) {
                complaints.push(line.to_owned());
            }
        })?;
        if !complaints.is_empty() {
            bail!(
                "debugfs could not fill {}: {}",
                file.display(),
                complaints.join("; ")
            );
        }
        fs::remove_file(&commands).context("removing the commands for debugfs")
    }
}

impl Entry {
    fn commands(&self, script: &mut String) -> Result<()> {
        match self {
            Self::Directory { path, mode } => {
                let path = word(path)?;
                writeln!(script, "mkdir {path}\nsif {path} mode 04{mode:04o}")?;
            }
            Self::File {
                path,
                mode,
                contents,
            } => {
                let path = word(path)?;
                let contents = contents.to_str().context("a path that is not UTF-8")?;
                ensure!(
                    !contents.contains('"'),
                    "a path with a quotation mark: {contents}"
                );
                writeln!(
                    script,
                    "write \"{contents}\" {path}\nsif {path} mode 010{mode:04o}"
                )?;
            }
            Self::Link { path, target } => {
                writeln!(script, "symlink {} {}", word(path)?, word(target)?)?;
            }
        }
        Ok(())
    }
}

/// A path that debugfs takes as one word.
fn word(path: &str) -> Result<&str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\' | b'#');
    ensure!(
        !path.is_empty() && path.bytes().all(plain),
        "{path:?} is no path for debugfs"
    );
    Ok(path)
}

fn tool(name: &str) -> Command {
    // Debian keeps them in a folder that is not on every user's path.
    let path = Path::new("/sbin").join(name);
    let mut command = if path.exists() {
        Command::new(path)
    } else {
        Command::new(name)
    };
    command
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .env("SOURCE_DATE_EPOCH", TIME)
        .env("TZ", "UTC");
    command.env("LC_ALL", "C").env("MKE2FS_CONFIG", "/dev/null");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_the_same_byte_for_byte_wherever_it_is_made() {
        let make = || {
            let dir = tempfile::tempdir().unwrap();
            let contents = dir.path().join("contents");
            fs::write(&contents, "hello").unwrap();
            let file_system = FileSystem {
                label: "test",
                uuid: "6661b21c-0000-4000-8000-00000000000a",
                size: 16 << 20,
                entries: vec![
                    Entry::Directory {
                        path: "/bin".into(),
                        mode: 0o755,
                    },
                    Entry::File {
                        path: "/bin/hello".into(),
                        mode: 0o755,
                        contents,
                    },
                    Entry::Link {
                        path: "/bin/hi".into(),
                        target: "hello".into(),
                    },
                ],
            };
            let image = dir.path().join("image");
            file_system.make(&image).unwrap();
            fs::read(image).unwrap()
        };
        assert!(make() == make());
    }

    #[test]
    fn a_failed_command_of_debugfs_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file_system = FileSystem {
            label: "test",
            uuid: "6661b21c-0000-4000-8000-00000000000a",
            size: 16 << 20,
            entries: vec![Entry::Directory {
                path: "/no/parent".into(),
                mode: 0o755,
            }],
        };
        let error = file_system
            .make(&dir.path().join("image"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("debugfs could not fill"), "{error}");
    }
}
