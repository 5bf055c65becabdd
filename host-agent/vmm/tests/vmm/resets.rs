//! A machine is reset in place: the same process, and a guest that begins anew.

use fabric_vmm::control::Request;
use fabric_vmm::exit::ExitReason;

use crate::guest::{Bench, JAIL, Running, code, eventually, kvm_is_here, wait};

const ARGUMENTS: [&str; 4] = ["--console", "ring:ring", "--control", "control.sock"];

/// Waits until the guest has begun to count so many times, and is well under way.
fn counts_for_the(bench: &Bench, times: usize) {
    eventually("the guest counts from its beginning", || {
        let text = bench.said("ring")?;
        let beginnings: Vec<usize> = text.match_indices("0000\n0001\n").map(|at| at.0).collect();
        let last = *beginnings.last()?;
        (beginnings.len() == times && text[last..].contains("0004\n")).then_some(())
    });
}

fn start(bench: &Bench) -> Running {
    let child = bench.start(&ARGUMENTS);
    counts_for_the(bench, 1);
    child
}

fn ends_when_stopped(bench: &Bench, child: Running) {
    assert_eq!(bench.stop(child).report.reason, ExitReason::Stopped);
}

#[test]
fn a_machine_that_is_reset_begins_anew_in_its_process() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    let child = start(&bench);
    for resets in 1..=3 {
        let answer = bench.tell(Request::Reset);
        assert!(answer.ok, "{answer:?}");
        counts_for_the(&bench, resets + 1);
        let status = bench.tell(Request::Status).status.unwrap();
        assert_eq!(Some(status.pid), child.machine());
        assert_eq!(status.resets as usize, resets);
    }
    // What it says is of the guest that is there now, not of the kernel's file.
    std::fs::write(bench.path("kernel"), "no kernel any more").unwrap();
    let answer = bench.tell(Request::Reset);
    let error = answer.error.unwrap();
    assert!(
        error.contains("is not a kernel that can be booted"),
        "{error}"
    );
    let ended = wait(child);
    assert_eq!(ended.report.reason, ExitReason::InternalError);
    assert!(
        ended
            .report
            .detail
            .starts_with("the machine cannot be reset"),
        "{}",
        ended.report.detail
    );
}

#[test]
fn a_machine_that_is_reset_while_it_is_paused_runs() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    let child = start(&bench);
    assert!(bench.tell(Request::Pause).ok);
    assert!(bench.tell(Request::Reset).ok);
    counts_for_the(&bench, 2);
    let state = bench.tell(Request::Status).status.unwrap().state;
    assert_eq!(state, "running");
    ends_when_stopped(&bench, child);
}

#[test]
fn a_machine_from_a_snapshot_is_reset_to_its_kernel_if_it_knows_one() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    let child = start(&bench);
    let path = bench.path(JAIL).join("snapshot");
    assert!(bench.tell(Request::Snapshot { path }).ok);
    ends_when_stopped(&bench, child);

    let goes_on = |arguments: &[&str]| {
        std::fs::remove_file(bench.path("ring")).unwrap();
        let mut command = bench.restore("jail/snapshot", arguments);
        let child = Running::new(command.spawn().unwrap());
        eventually("the guest counts on", || {
            let text = bench.said("ring")?;
            (text.lines().count() > 3).then_some(())
        });
        child
    };
    let child = goes_on(&ARGUMENTS);
    let answer = bench.tell(Request::Reset);
    assert!(answer.error.unwrap().contains("knows no kernel"));
    assert!(!bench.said("ring").unwrap().contains("0000\n"));
    ends_when_stopped(&bench, child);

    let child = goes_on(&[&ARGUMENTS[..], &["--kernel", "kernel"]].concat());
    assert!(bench.tell(Request::Reset).ok);
    counts_for_the(&bench, 1);
    ends_when_stopped(&bench, child);
}

/// The numbers that the guest has said whole; a line that a reset cut off is none.
fn numbers(bench: &Bench) -> Vec<u32> {
    let text = bench.said("ring").unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter(|line| line.len() == 4);
    let numbers = lines.map(|line| u32::from_str_radix(line, 16));
    numbers.map(Result::unwrap).collect()
}

/// Takes a snapshot of a machine that counts, which ends; says how far it had come then.
fn snapshot_of_one_that_counts(bench: &Bench) -> u32 {
    let child = start(bench);
    let path = bench.path(JAIL).join("snapshot");
    assert!(bench.tell(Request::Snapshot { path }).ok);
    ends_when_stopped(bench, child);
    let last = numbers(bench).last().copied();
    std::fs::remove_file(bench.path("ring")).unwrap();
    last.unwrap()
}

#[test]
fn a_machine_is_reset_to_a_snapshot_whether_it_began_with_it_or_with_its_kernel() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    // The line that it was at may be lost, and be another by what was said before.
    let near = snapshot_of_one_that_counts(&bench) + 3;
    let again = [&ARGUMENTS[..], &["--reset-to", "jail/snapshot"]].concat();
    let of_snapshot = [&again[..], &["--kernel", "kernel"]].concat();
    for restored in [false, true] {
        let child = if restored {
            Running::new(
                bench
                    .restore("jail/snapshot", &of_snapshot)
                    .spawn()
                    .unwrap(),
            )
        } else {
            bench.start(&again)
        };
        for resets in 1..=3 {
            eventually("the guest counts beyond the snapshot", || {
                (*numbers(&bench).last()? > near).then_some(())
            });
            assert!(bench.tell(Request::Reset).ok);
            eventually("the guest counts from where the snapshot is", || {
                let numbers = numbers(&bench);
                let steps = numbers.windows(2);
                let back = steps.filter(|step| step[0] > near && (1..=near).contains(&step[1]));
                (back.count() == resets).then_some(())
            });
        }
        let zeroes = bench.said("ring").unwrap().matches("0000\n").count();
        assert_eq!(zeroes, usize::from(!restored), "no kernel was booted again");
        ends_when_stopped(&bench, child);
        std::fs::remove_file(bench.path("ring")).unwrap();
    }
}

#[test]
fn a_machine_whose_snapshot_is_of_no_use_boots_its_kernel_and_says_so() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    snapshot_of_one_that_counts(&bench);
    let state = bench.path(JAIL).join("snapshot/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
    let again = [&ARGUMENTS[..], &["--reset-to", "jail/snapshot"]].concat();
    let child = bench.start(&again);
    for resets in 1..=2 {
        counts_for_the(&bench, resets);
        assert!(bench.tell(Request::Reset).ok);
    }
    counts_for_the(&bench, 3);
    assert!(bench.tell(Request::Stop).ok);
    let ended = wait(child);
    assert_eq!(ended.report.reason, ExitReason::Stopped);
    let said = "the kernel is booted: ";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    assert!(ended.stderr.contains("is of version 2"), "{}", ended.stderr);
}
