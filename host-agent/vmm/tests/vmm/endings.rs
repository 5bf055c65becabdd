//! How machines end, and what is told of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use fabric_vmm::console::RingReader;
use fabric_vmm::control::{Request, ask};
use fabric_vmm::exit::ExitReason;
use fabric_vmm::jail::Isolation;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::guest::{Bench, PATIENCE, Running, code, eventually, kvm_is_here, wait};

#[test]
fn a_guest_speaks_and_resets() {
    if !kvm_is_here() {
        return;
    }
    let ended = Bench::new(code!(greeting_begin, greeting_end)).run(&["--name", "greeter"]);
    assert_eq!(ended.console, "hi");
    assert_eq!(
        (ended.report.reason, ended.code),
        (ExitReason::GuestReset, Some(10))
    );
    assert_eq!(ended.report.name, "greeter");
    assert_eq!(ended.report.exits["port_out"], 4);
    let timings = ended.report.timings;
    let (run, line) = (
        timings.first_run_ms.unwrap(),
        timings.first_line_ms.unwrap(),
    );
    assert!(run > 0.0 && run <= line);
}

#[test]
fn a_guest_that_halts_every_processor_is_off() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(halting_begin, halting_end));
    for vcpus in ["1", "2", "8"] {
        let ended = bench.run(&["--vcpus", vcpus]);
        assert_eq!(
            (ended.report.reason, ended.code),
            (ExitReason::GuestPowerOff, Some(0))
        );
    }
}

#[test]
fn a_guest_that_waits_for_interrupts_runs_until_it_is_stopped() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(waiting_begin, waiting_end));
    let child = bench.start(&[
        "--control",
        "control.sock",
        "--console",
        "ring:console.ring",
    ]);
    let control = bench.path("control.sock");
    let status = eventually("an answer", || {
        ask(&control, Request::Status, PATIENCE).ok()
    });
    let status = status.status.unwrap();
    assert_eq!(Some(status.pid), child.machine());
    assert_eq!(status.state, "running");
    eventually("a line on the console", || {
        let stats = ask(&control, Request::Stats, PATIENCE)
            .unwrap()
            .stats
            .unwrap();
        stats.timings.first_line_ms
    });
    assert!(ask(&control, Request::Stop, PATIENCE).unwrap().ok);
    let ended = wait(child);
    assert_eq!(
        (ended.report.reason, ended.code),
        (ExitReason::Stopped, Some(0))
    );
    assert!(!control.exists(), "nothing is left behind");
}

fn signal(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.cast_signed()), signal).unwrap();
}

/// A machine whose guest waits, and what it has said on its console.
fn waiting(bench: &Bench) -> (Running, PathBuf) {
    let ring = bench.path("console.ring");
    let _ = fs::remove_file(&ring);
    let child = bench.start(&["--console", "ring:console.ring"]);
    eventually("a line on the console", || {
        let text = RingReader::open(&ring).ok()?.tail(64).ok()?.bytes;
        (text == b".\n").then_some(())
    });
    (child, ring)
}

fn console(ring: &Path) -> Vec<u8> {
    RingReader::open(ring).unwrap().tail(64).unwrap().bytes
}

#[test]
fn signals_end_a_machine_in_order() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(waiting_begin, waiting_end));
    for asked in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (child, ring) = waiting(&bench);
        signal(child.keeper(), asked);
        assert_eq!(wait(child).report.reason, ExitReason::Stopped);
        assert_eq!(console(&ring), b".\n");
    }
}

#[test]
fn a_machine_that_is_killed_is_told_by_who_keeps_it_and_its_console_is_there() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(waiting_begin, waiting_end));
    let (child, ring) = waiting(&bench);
    signal(child.machine().unwrap(), Signal::SIGKILL);
    let ended = wait(child);
    assert_eq!(
        (ended.report.reason, ended.code),
        (ExitReason::Killed, Some(1))
    );
    assert!(ended.report.detail.contains("SIGKILL"), "{}", ended.report);
    assert_eq!(console(&ring), b".\n");
}

#[test]
fn a_machine_ends_with_the_process_that_keeps_it() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(waiting_begin, waiting_end));
    let (child, _) = waiting(&bench);
    let machine = child.machine().unwrap();
    assert_eq!(child.kill().signal(), Some(libc::SIGKILL));
    eventually("the machine's process has ended", || {
        (!Path::new(&format!("/proc/{machine}")).exists()).then_some(())
    });
}

#[test]
fn a_machine_of_no_host_agent_is_jailed_too() {
    if !kvm_is_here() {
        return;
    }
    let isolation = Bench::new(code!(greeting_begin, greeting_end))
        .run(&[])
        .report
        .isolation;
    let expected = Isolation::ALL.into_iter().filter(|part| match part {
        // It is its user's to choose.
        Isolation::Cgroup => false,
        Isolation::Uid => nix::unistd::geteuid().is_root(),
        _ => true,
    });
    let found: BTreeSet<Isolation> = isolation.into_iter().collect();
    assert_eq!(found, expected.collect());
}

#[test]
fn a_terminal_is_the_guests_until_its_user_ends_it_and_is_then_as_it_was() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(waiting_begin, waiting_end));
    for killed in [false, true] {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let before = tcgetattr(&slave).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ICANON));
        let mut command = bench.command(&[]);
        command.stdin(slave.try_clone().unwrap());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 2];
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut line).unwrap();
        let child = Running::new(child);
        let during = tcgetattr(&slave).unwrap();
        assert!(!during.local_flags.contains(LocalFlags::ICANON));
        let reason = if killed {
            signal(child.machine().unwrap(), Signal::SIGKILL);
            ExitReason::Killed
        } else {
            File::from(master.try_clone().unwrap())
                .write_all(b"\x01x")
                .unwrap();
            ExitReason::Stopped
        };
        assert_eq!(wait(child).report.reason, reason);
        assert_eq!(tcgetattr(&slave).unwrap(), before);
    }
}

#[test]
fn a_triple_fault_is_told_with_the_registers() {
    if !kvm_is_here() {
        return;
    }
    let ended = Bench::new(code!(falling_begin, falling_end)).run(&[]);
    assert_eq!(
        (ended.report.reason, ended.code),
        (ExitReason::TripleFault, Some(12))
    );
    let fault = ended.report.fault.unwrap();
    assert_eq!(fault.vcpu, 0);
    assert!(fault.registers.contains_key("cr3"));
}
