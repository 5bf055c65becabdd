//! Where the things under test are.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, ensure};

/// The programs and images under test.
#[derive(Debug, Clone)]
pub struct Place {
    /// Folder of the programs.
    pub programs: PathBuf,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// The guest OS image.
    pub guest_os: PathBuf,
    /// The initial RAM disk of a guest that is the other end of the VMBus.
    pub bus_peer: PathBuf,
    /// Templates, which all clusters share that are not about them.
    pub templates: PathBuf,
}

impl Place {
    /// Finds them: where `FABRIC_BIN_DIR`, `FABRIC_KERNEL`, `FABRIC_GUEST_OS` and
    /// `FABRIC_BUS_PEER` say, else beside this program and in the cache.
    ///
    /// # Errors
    ///
    /// One is missing; says how to build it.
    pub fn find() -> anyhow::Result<Self> {
        let cache = cache()?;
        let given = |name: &str| env::var_os(name).map(PathBuf::from);
        let programs = match given("FABRIC_BIN_DIR") {
            Some(folder) => folder,
            None => beside_this_program()?,
        };
        let place = Self {
            bus_peer: given("FABRIC_BUS_PEER").unwrap_or(programs.join("../bus-peer.cpio")),
            programs,
            kernel: given("FABRIC_KERNEL").unwrap_or(cache.join("kernel/current/vmlinux")),
            guest_os: given("FABRIC_GUEST_OS")
                .unwrap_or(cache.join("guest-os/current/guest-os.vhd")),
            templates: cache.join("templates"),
        };
        for file in [&place.kernel, &place.guest_os, &place.program("host-agent")] {
            ensure!(
                file.exists(),
                "{} is missing: run `cargo xtask test`",
                file.display()
            );
        }
        Ok(place)
    }

    /// Folder of the host agent and the VMM that have fail points.
    #[must_use]
    pub fn with_fail_points(&self) -> PathBuf {
        self.programs.join("fail-points")
    }

    /// Path of one of our programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

/// Test programs are in `target/PROFILE/deps`, the others one folder above.
fn beside_this_program() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("where this test program is")?;
    let folder = own
        .parent()
        .and_then(Path::parent)
        .context("the programs' folder")?;
    Ok(folder.to_owned())
}

fn cache() -> anyhow::Result<PathBuf> {
    if let Some(cache) = env::var_os("FABRIC_CACHE") {
        return Ok(cache.into());
    }
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("fabric"))
}

/// Runs a shell command in mounts of its own, which end with it.
///
/// # Errors
///
/// It could not be started.
pub fn run_in_own_mounts(script: &str) -> anyhow::Result<Output> {
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec", script])
        .output()
        .context("start unshare")
}
