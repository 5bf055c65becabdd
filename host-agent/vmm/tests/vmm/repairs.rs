//! That what is repaired behaves as on a processor: each guest checks that itself,
//! and gives the same answer where nothing is repaired.

use fabric_vmm::exit::{ExitReason, KvmKind};

use crate::guest::{Bench, code, kind, kvm_is_here};

#[test]
fn repaired_instructions_do_what_a_processor_does() {
    if !kvm_is_here() {
        return;
    }
    let ended = Bench::new(code!(repaired_begin, repaired_end)).run(&[]);
    assert_eq!(
        ended.report.reason,
        ExitReason::GuestReset,
        "{:?}",
        ended.report
    );
    assert_eq!(ended.console, "pzmxclsf");
    let repair = ended.report.repair.unwrap();
    assert_eq!(repair.kind, kind());
    match repair.kind {
        KvmKind::Hardware => assert!(repair.instructions.is_empty()),
        KvmKind::Interpreted => {
            let count = |name: &str| repair.instructions.get(name).copied().unwrap_or(0);
            assert_eq!((count("popcnt"), count("fwait")), (3, 1));
            assert_eq!(count("cmpxchg16b"), 2);
            assert_eq!((count("xsave"), count("xrstor")), (1, 1));
        }
    }
}

#[test]
fn what_cannot_be_repaired_is_told_with_its_bytes() {
    if !kvm_is_here() || kind() == KvmKind::Hardware {
        return;
    }
    let bench = Bench::new(code!(strange_begin, strange_end));
    for repair in ["auto", "off"] {
        let ended = bench.run(&["--repair", repair]);
        assert_eq!(
            (ended.report.reason, ended.code),
            (ExitReason::InternalError, Some(1))
        );
        let fault = ended.report.fault.unwrap();
        assert_eq!(fault.rip, "0x1000000");
        assert!(fault.bytes.starts_with("f2 0f 38 f1 c3"), "{}", fault.bytes);
        assert!(fault.instruction.unwrap().starts_with("crc32"));
        assert!(
            ended.report.detail.contains("vCPU 0"),
            "{}",
            ended.report.detail
        );
    }
}

#[test]
fn system_calls_arrive_as_on_a_processor() {
    if !kvm_is_here() {
        return;
    }
    let ended = Bench::new(code!(calling_begin, calling_end)).run(&[]);
    assert_eq!(
        ended.report.reason,
        ExitReason::GuestReset,
        "{:?}",
        ended.report
    );
    assert_eq!(ended.console, "rakscib");
    let expected = if kind() == KvmKind::Interpreted { 2 } else { 0 };
    assert_eq!(ended.report.repair.unwrap().syscalls, expected);
}
