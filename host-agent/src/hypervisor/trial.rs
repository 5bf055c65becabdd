//! What this host isolates virtual machines by: tried, before there are any.

use std::{fs, io, path::Path, time::Duration};

use fabric_vmm::jail::{Isolation, Missing, Trial};

use super::{
    Vm as _,
    cgroups::Cgroups,
    jails::Jails,
    process::{Process, ProcessHypervisor},
};
use crate::instance::directory::{InstanceDirectory, JAIL, VMM_ERR, VMM_OUT};

/// How long trying may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The user that tries is one of a machine that becomes a template.
const USER: u32 = 0;

/// Starts the VMM as a virtual machine's is started, and has it jail itself.
///
/// # Errors
///
/// When that fails for a reason that is not the host's.
pub async fn try_jail(vmm: &Path, jails: &Jails) -> io::Result<Trial> {
    let place = tempfile::tempdir()?;
    let directory = InstanceDirectory::open(place.path().join("trial"))?;
    let (cgroups, missing) = match Cgroups::open(place.path(), jails.cgroup.as_deref()) {
        Ok(cgroups) => (Some(cgroups), None),
        Err(error) => (None, Some(anyhow::Error::from(error))),
    };
    let given = cgroups.is_some();
    let hypervisor = ProcessHypervisor {
        vmm: vmm.to_owned(),
        kernel: Default::default(),
        cmdline: String::new(),
        jails: jails.clone(),
        cgroups,
    };
    let (uid, gid) = jails.user(USER);
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let mut arguments = vec!["jail", "--directory", JAIL, "--uid", &uid, "--gid", &gid];
    if given {
        arguments.extend(["--given", Isolation::Cgroup.name()]);
    }
    let pid = hypervisor.spawn(&directory, USER, &arguments, None)?;
    let process = Process::watch(pid, &directory, None, true)?;
    let ended = match tokio::time::timeout(PATIENCE, process.exited()).await {
        Ok(exit) => exit,
        Err(_) => {
            process.kill();
            process.exited().await
        }
    };
    let said = fs::read(directory.file(VMM_OUT))?;
    let mut trial: Trial = serde_json::from_slice(&said).map_err(|_| {
        let why = fs::read_to_string(directory.file(VMM_ERR)).unwrap_or_default();
        io::Error::other(crate::guest::report::cut(&format!(
            "{}: {why}",
            ended.detail
        )))
    })?;
    if let Some(error) = missing {
        trial.missing.retain(|one| one.name != Isolation::Cgroup);
        let why = format!("{error:#}");
        trial.missing.push(Missing::new(Isolation::Cgroup, why));
    }
    Ok(trial)
}
