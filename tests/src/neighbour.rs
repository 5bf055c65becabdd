//! Another node of a cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Cluster, Program, vmms_in};

/// A host agent beside the cluster's own, with everything that it has.
#[derive(Debug)]
pub struct Neighbour {
    /// The host agent.
    pub host_agent: Program,
    dir: PathBuf,
}

impl Neighbour {
    /// Starts the node with this number, from 2 on, like the cluster's own, and waits
    /// until it is there.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not come up.
    pub async fn join(cluster: &Cluster, number: u32) -> anyhow::Result<Self> {
        let name = format!("node-{number}");
        let dir = cluster.path(&name);
        std::fs::create_dir(&dir)?;
        let mut command = cluster.host_agent.command().to_vec();
        for (option, value) in [
            ("--data-dir", dir.display().to_string()),
            ("--node-id", name.clone()),
        ] {
            let at = command.iter().position(|one| one == option);
            let at = at.with_context(|| format!("{option} is not among {command:?}"))?;
            command[at + 1] = value;
        }
        let log = cluster.path(&format!("{name}.log"));
        let neighbour = Self {
            host_agent: Program::start(command, &log)?,
            dir,
        };
        cluster.until_connected(&name).await?;
        Ok(neighbour)
    }

    /// Its data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Stops a program where it stands, or lets it go on.
///
/// # Errors
///
/// It does not run.
pub fn stand_still(program: &Program, still: bool) -> anyhow::Result<()> {
    let pid = program.pid().context("it does not run")?;
    let signal = if still {
        Signal::SIGSTOP
    } else {
        Signal::SIGCONT
    };
    ensure!(
        kill(Pid::from_raw(i32::try_from(pid)?), signal).is_ok(),
        "it cannot be given {signal}"
    );
    Ok(())
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = stand_still(&self.host_agent, false);
        self.host_agent.end();
        for vmm in vmms_in(&self.dir) {
            let _ = kill(Pid::from_raw(vmm), Signal::SIGKILL);
        }
    }
}
