//! What the program refuses, and how it says so.

use std::process::{Command, Output, Stdio};

use fabric_vmm::exit::{ExitReason, ExitReport};

use crate::guest::{Bench, elf, kvm_is_here};

fn refused(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let report = ExitReport::from_output(&stdout).expect("a report");
    assert_eq!(
        (report.reason, output.status.code()),
        (ExitReason::ConfigError, Some(2))
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains(&report.detail));
    report.detail
}

#[test]
fn a_host_without_kvm_is_told_what_to_do() {
    let bench = Bench::new(b"\xf4");
    let output = bench
        .command(&[])
        .env("FABRIC_KVM", "/nonexistent/kvm")
        .output()
        .unwrap();
    let detail = refused(&output);
    assert!(
        detail.contains("/nonexistent/kvm does not exist"),
        "{detail}"
    );
    assert!(
        detail.contains("kvm_intel"),
        "the remedy is there: {detail}"
    );

    let probe = Command::new(env!("CARGO_BIN_EXE_fabric-vmm"))
        .args(["probe", "--output", "json"])
        .env("FABRIC_KVM", "/dev/null")
        .output()
        .unwrap();
    assert_eq!(probe.status.code(), Some(1));
    let text = String::from_utf8_lossy(&probe.stdout);
    assert!(
        text.contains(r#""usable":false"#) && text.contains("/dev/null is not KVM"),
        "{text}"
    );
}

#[test]
fn the_report_is_there_even_if_nothing_can_be_said() {
    let bench = Bench::new(b"\xf4");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = bench.command(&["--vcpus", "9"]);
    command.stdout(Stdio::piped()).stderr(full.unwrap());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let report = ExitReport::from_output(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(report.map(|it| it.reason), Some(ExitReason::ConfigError));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_wrong_value_is_refused_by_name() {
    let bench = Bench::new(b"\xf4");
    let output = bench.command(&["--vcpus", "9"]).output().unwrap();
    assert_eq!(refused(&output), "`vcpus` is 9: must be from 1 to 8");

    std::fs::write(bench.path("vm.json"), br#"{"kernel":"kernel","vcpu":2}"#).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fabric-vmm"))
        .args(["run", "--config", "vm.json"])
        .current_dir(bench.path("."))
        .output()
        .unwrap();
    let detail = refused(&output);
    assert!(
        detail.contains("vm.json") && detail.contains("`vcpu`"),
        "{detail}"
    );
}

#[test]
fn a_kernel_cut_short_is_refused_by_field() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(b"\xf4");
    let whole = elf(&[0xf4; 5000]);
    std::fs::write(bench.path("kernel"), &whole[..4000]).unwrap();
    let detail = refused(&bench.command(&[]).output().unwrap());
    assert!(
        detail.contains("p_filesz") && detail.contains("cut short"),
        "{detail}"
    );

    std::fs::write(bench.path("kernel"), elf(b"\xf4")).unwrap();
    let output = bench
        .command(&["--disk", "missing.vhd"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let detail = refused(&output);
    assert!(detail.contains("missing.vhd"), "{detail}");
}

#[test]
fn a_bzimage_for_32_bits_only_is_refused_by_field() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(b"\xf4");
    let mut header = vec![0; 1024];
    header[0x202..0x206].copy_from_slice(b"HdrS");
    header[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    header[0x211] = 1;
    std::fs::write(bench.path("kernel"), header).unwrap();
    let detail = refused(&bench.command(&[]).output().unwrap());
    assert!(
        detail.contains("xloadflags") && detail.contains("64-bit entry"),
        "{detail}"
    );
}
