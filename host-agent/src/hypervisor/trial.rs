//! What this host isolates virtual machines by: tried, before there are any.

use std::{fs, io, path::Path, time::Duration};

use fabric_vmm::{
    config::RepairMode,
    jail::{Isolation, Missing, Trial},
};

use super::{
    Vm as _,
    cgroups::{CgroupError, Cgroups, Group, Share},
    jails::Jails,
    process::{Process, ProcessHypervisor},
};
use crate::instance::{
    directory::{InstanceDirectory, JAIL, VMM_ERR, VMM_OUT},
    disks::chain,
};

/// How long trying may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The user that tries is one of a machine that becomes a template.
const USER: u32 = 0;
/// What the trial and its group are called, and the size of machine the group is for.
const TRIAL: &str = "trial";
const MEMORY_MIB: u32 = 128;
const CPU_WEIGHT: u32 = 100;

/// Starts the VMM as a virtual machine's is started, and has it jail itself.
///
/// # Errors
///
/// When that fails for a reason that is not the host's.
pub async fn try_jail(vmm: &Path, jails: &Jails) -> io::Result<Trial> {
    let place = tempfile::tempdir()?;
    let directory = InstanceDirectory::open(place.path().join(TRIAL))?;
    let opened = Cgroups::open(place.path(), jails.cgroup.as_deref());
    let (group, mut missing) = match opened.and_then(|cgroups| make_group(&cgroups)) {
        Ok(group) => (Some(group), None),
        Err(error) => (None, Some(chain(&error))),
    };
    let hypervisor = ProcessHypervisor {
        vmm: vmm.to_owned(),
        kernel: Default::default(),
        cmdline: String::new(),
        repair: RepairMode::Auto,
        jails: jails.clone(),
        cgroups: None,
    };
    let (uid, gid) = jails.user(USER)?;
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let arguments = ["jail", "--directory", JAIL, "--uid", &uid, "--gid", &gid];
    let without = || hypervisor.spawn(&directory, USER, &arguments, None);
    let pid = match &group {
        None => without()?,
        Some(group) => {
            let given = ["--given", Isolation::Cgroup.name()];
            let arguments = [&arguments[..], &given].concat();
            match hypervisor.spawn(&directory, USER, &arguments, Some(group)) {
                Ok(pid) => pid,
                // It may be the group that cannot be entered.
                Err(error) => {
                    group.remove();
                    missing = Some(format!("no process can be started in one: {error}"));
                    without()?
                }
            }
        }
    };
    let process = Process::watch(pid, &directory, group, true)?;
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
        trial.missing.push(Missing::new(Isolation::Cgroup, error));
    }
    Ok(trial)
}

/// A group as a small machine has one.
fn make_group(cgroups: &Cgroups) -> Result<Group, CgroupError> {
    let group = cgroups.group(TRIAL);
    let made = group.make(&Share::of(1, MEMORY_MIB, CPU_WEIGHT));
    if made.is_err() {
        group.remove();
    }
    made.map(|()| group)
}
