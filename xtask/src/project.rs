//! Where things are: the workspace, what cargo builds, and the cache outside git.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
};

use anyhow::{Context, Result};

use crate::process;

/// The target of what runs on this machine, named where flags must not reach build scripts.
pub const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Target of the static programs for guests: with musl they are about half the size, and do
/// less before they begin.
pub const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";

/// [`GUEST_TARGET`] where the toolchain has it, and otherwise what it has.
pub fn guest_target() -> &'static str {
    static TARGET: LazyLock<&str> = LazyLock::new(|| {
        if has_target(GUEST_TARGET) {
            GUEST_TARGET
        } else {
            HOST_TARGET
        }
    });
    *TARGET
}

/// Whether the toolchain has a standard library for a target.
pub fn has_target(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = process::command(rustc, ["--print", "target-libdir", "--target", target]);
    process::output(command.stderr(Stdio::null()))
        .is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

/// The places that tasks work in.
#[derive(Debug, Clone)]
pub struct Project {
    /// The workspace, where the root `Cargo.toml` is.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// What is built once and kept: `$FABRIC_CACHE`, `$XDG_CACHE_HOME/fabric` or
    /// `~/.cache/fabric`.
    pub cache: PathBuf,
}

impl Project {
    /// Finds the workspace that this program was built from, and the cache.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the folder of xtask has no parent")?
            .to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(target) => root.join(target),
            None => root.join("target"),
        };
        Ok(Self {
            root,
            target,
            cache: cache()?,
        })
    }

    /// Folder of the programs: `FABRIC_BIN_DIR`, else that of the release binaries.
    pub fn bin_dir(&self) -> PathBuf {
        match env::var_os("FABRIC_BIN_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.target.join("release"),
        }
    }

    /// One release binary.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.bin_dir().join(name)
    }

    /// A static program for guests.
    pub fn guest_program(&self, name: &str) -> PathBuf {
        self.target.join(guest_target()).join("guest").join(name)
    }

    /// A folder of the cache, made if it is not there.
    pub fn cache_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.cache.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// A new temporary folder in the cache, removed when dropped. It is in the
    /// cache so that what is made there can be moved into place by a rename.
    pub fn temporary_dir(&self, purpose: &str) -> Result<tempfile::TempDir> {
        let parent = self.cache_dir("tmp")?;
        tempfile::Builder::new()
            .prefix(&format!("{purpose}-"))
            .tempdir_in(&parent)
            .with_context(|| format!("making a temporary folder in {}", parent.display()))
    }
}

fn cache() -> Result<PathBuf> {
    let from = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = from("FABRIC_CACHE") {
        return std::path::absolute(&dir).context("FABRIC_CACHE is not a usable path");
    }
    if let Some(dir) = from("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()) {
        return Ok(dir.join("fabric"));
    }
    let home = env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .context("no home directory for the cache: set FABRIC_CACHE to a folder of your choice")?;
    Ok(home.join(".cache/fabric"))
}
