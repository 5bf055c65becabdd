//! How machines end, and what is told of it.

use std::os::unix::process::ExitStatusExt;

use fabric_vmm::console::RingReader;
use fabric_vmm::control::{Request, ask};
use fabric_vmm::exit::ExitReason;

use crate::guest::{Bench, PATIENCE, code, eventually, kvm_is_here, wait};

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
    assert_eq!((status.pid, status.state.as_str()), (child.id(), "running"));
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

#[test]
fn signals_end_a_machine_in_order_and_the_console_outlives_a_kill() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(waiting_begin, waiting_end));
    for (signal, survives) in [
        (libc::SIGTERM, true),
        (libc::SIGINT, true),
        (libc::SIGKILL, false),
    ] {
        let child = bench.start(&["--console", "ring:console.ring"]);
        let ring = bench.path("console.ring");
        eventually("a line on the console", || {
            let text = RingReader::open(&ring).ok()?.tail(64).ok()?.bytes;
            (text == b".\n").then_some(())
        });
        // SAFETY: the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        if survives {
            let ended = wait(child);
            assert_eq!(ended.report.reason, ExitReason::Stopped);
        } else {
            assert_eq!(child.kill().signal(), Some(libc::SIGKILL));
        }
        assert_eq!(
            RingReader::open(&ring).unwrap().tail(64).unwrap().bytes,
            b".\n"
        );
        std::fs::remove_file(&ring).unwrap();
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
