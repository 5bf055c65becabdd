//! A VMM that is killed is started again, and by what is said wherever it is told.
//!
//! A VMM is the first process of its pid namespace: of the signals that others send it,
//! only SIGKILL ends it (pid_namespaces(7)). So it is not sent the others, but made to do
//! what the kernel ends it for.

use anyhow::{Context as _, ensure};
use fabric_proto::node::v1::VmEndCause;
use fabric_tests::{
    Cluster, SOON, ServiceFile, Story, eventually, last_end, skipped, status, story,
};
use nix::{
    libc,
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, geteuid},
};

/// The instance.
const SHOP: &str = "shop-web-0";

pub(crate) const STORIES: &[Story] = &[story!(
    a_vmm_that_is_killed_is_started_again_and_it_is_said_by_what
)];

/// Ends a VMM.
type Ending = fn(Pid) -> anyhow::Result<()>;

async fn a_vmm_that_is_killed_is_started_again_and_it_is_said_by_what() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mut before = cluster.run(&ServiceFile::web("shop"), SHOP).await?;

    let ends: [(Ending, VmEndCause, &str, &str); 3] = [
        (
            is_killed,
            VmEndCause::Killed,
            "killed",
            "the virtual machine's process was killed: by signal 9",
        ),
        (
            makes_a_forbidden_call,
            VmEndCause::ForbiddenCall,
            "forbidden_call",
            "the virtual machine's process made a forbidden system call: it is not on the list \
             of the thread that made it",
        ),
        (
            jumps_to_nowhere,
            VmEndCause::Killed,
            "killed",
            "the virtual machine's process was killed: by signal 11",
        ),
    ];
    let ends = if geteuid().is_root() {
        &ends[..]
    } else {
        skipped("only root can have a VMM do what it would not")?;
        &ends[..1]
    };
    for (boots, &(end, cause, word, detail)) in (2..).zip(ends) {
        let vmm = status(&before)?.vmm_pid;
        end(Pid::from_raw(i32::try_from(vmm)?)).with_context(|| format!("to have it {word}"))?;
        let what = format!("to be Ready after its VMM was {word}");
        let after = cluster
            .until(SHOP, &what, |now| {
                let status = now.status.as_ref();
                now.state == "Ready" && status.is_some_and(|status| status.boots == boots)
            })
            .await?;
        ensure!(status(&after)?.vmm_pid != vmm, "{after:#?}");
        let told = last_end(&after)?;
        ensure!(
            told.cause() == cause && told.detail == detail,
            "not {word}: {detail}, but {told:?}"
        );
        let shown = cluster.fabctl(&["instance", "show", SHOP])?;
        ensure!(shown.contains(detail), "{shown}");
        let message = format!("{word}: {detail}");
        eventually(SOON, &format!("an event: {message}"), || async {
            let events = cluster.events(SHOP).await.map_err(|e| e.to_string())?;
            let ends = events.iter().filter(|one| one.reason == "VmmExited");
            let ends: Vec<_> = ends.map(|one| one.message.as_str()).collect();
            if ends.last() == Some(&message.as_str()) {
                Ok(())
            } else {
                Err(format!("{ends:#?}"))
            }
        })
        .await?;
        before = after;
    }
    Ok(())
}

fn is_killed(vmm: Pid) -> anyhow::Result<()> {
    Ok(kill(vmm, Signal::SIGKILL)?)
}

/// Its first thread's next system call becomes one that is not on that thread's list, and
/// would do nothing if it were.
fn makes_a_forbidden_call(vmm: Pid) -> anyhow::Result<()> {
    hold(vmm)?;
    ptrace::setoptions(vmm, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
    loop {
        ptrace::syscall(vmm, None)?;
        match waitpid(vmm, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceSyscall(_) => break,
            // Held once more on the way, for some signal.
            WaitStatus::Stopped(..) => {}
            ended => anyhow::bail!("it has come to another end: {ended:?}"),
        }
    }
    let mut registers = ptrace::getregs(vmm)?;
    registers.orig_rax = libc::SYS_getppid.cast_unsigned();
    ptrace::setregs(vmm, registers)?;
    Ok(ptrace::detach(vmm, None)?)
}

/// Its first thread goes on where there is no memory.
fn jumps_to_nowhere(vmm: Pid) -> anyhow::Result<()> {
    hold(vmm)?;
    let mut registers = ptrace::getregs(vmm)?;
    registers.rip = 0;
    // There is no call to be gone on with.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(vmm, registers)?;
    Ok(ptrace::detach(vmm, None)?)
}

/// Has its first thread, which serves events, stop where it is, for us.
fn hold(vmm: Pid) -> anyhow::Result<()> {
    ptrace::attach(vmm).context("cannot trace it")?;
    let held = waitpid(vmm, Some(WaitPidFlag::__WALL))?;
    ensure!(matches!(held, WaitStatus::Stopped(..)), "{held:?}");
    Ok(())
}
