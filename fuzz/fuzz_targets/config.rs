//! The configuration of a machine: what is accepted is accepted again, and makes a
//! command line or an error.

#![no_main]

use arbitrary::Arbitrary;
use fabric_fuzz::json::Edit;
use fabric_vmm::boot::KernelFormat;
use fabric_vmm::boot::cmdline::{CmdlineParts, compose};
use fabric_vmm::boot::layout::MmioSlot;
use fabric_vmm::boot::{acpi, mptable};
use fabric_vmm::config::VmConfig;
use fabric_vmm::exit::KvmKind;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

#[derive(Arbitrary, Debug)]
enum Input {
    Edited {
        disks: u8,
        jailed: bool,
        edits: Vec<Edit>,
    },
    Text(String),
}

fuzz_target!(|input: Input| {
    let text = match input {
        Input::Edited {
            disks,
            jailed,
            edits,
        } => {
            let mut document = document(disks % 20, jailed);
            edits
                .iter()
                .take(4)
                .for_each(|edit| edit.apply(&mut document));
            document.to_string()
        }
        Input::Text(text) => text,
    };
    let Ok(config) = serde_json::from_str::<VmConfig>(&text) else {
        return;
    };
    if let Err(error) = config.check() {
        assert!(!error.to_string().is_empty());
        return;
    }
    let written = serde_json::to_string(&config).expect("a configuration is JSON");
    let again: VmConfig = serde_json::from_str(&written).expect("what was written is read");
    assert_eq!(again, config);
    again.check().expect("what was accepted is accepted");
    lay_out(&config);
});

/// What is written into a guest's memory for a configuration.
fn lay_out(config: &VmConfig) {
    let count = config.disks.len() + usize::from(config.vsock.is_some());
    let devices: Option<Vec<MmioSlot>> = (0..count).map(MmioSlot::nth).collect();
    let devices = devices.expect("what is accepted has a place");
    let line = compose(&CmdlineParts {
        root: Some(&config.root),
        root_readonly: false,
        devices: &devices,
        kvm: KvmKind::Interpreted,
        format: KernelFormat::BzImage,
        extra: &config.cmdline,
    });
    assert!(line.is_err() || !line.unwrap_or_default().contains('\0'));
    assert!(!acpi::build(config.vcpus, &devices, 0xe_0000).is_empty());
    assert!(!mptable::build(config.vcpus, 0x9_fc00).is_empty());
}

fn document(disks: u8, jailed: bool) -> Value {
    let disks: Vec<Value> = (0..disks)
        .map(|index| {
            json!({
                "path": format!("disk{index}.vhd"),
                "format": "vhd",
                "serial": format!("d{index}"),
                "readonly": index % 2 == 0,
                "parents": ["a.vhd", "b.vhd"],
                "capacity_bytes": (index % 2 == 0).then_some(1 << 20),
            })
        })
        .collect();
    let mut document = json!({
        "name": "m", "kernel": "vmlinux", "cmdline": "quiet", "root": "/dev/vda",
        "memory_mib": 128, "vcpus": 2, "disks": disks,
        "vsock": { "cid": 3, "path": "/jail/v.sock" },
        "console": { "ring": { "path": "console", "bytes": 65536 } },
        "control": "/control.sock", "repair": "auto",
        "template": { "port": 1024, "after": 1026, "path": "/jail/template" },
    });
    if jailed {
        document["jail"] =
            json!({ "uid": 7, "gid": 8, "directory": "/jail", "allow_missing": ["landlock"] });
    }
    document
}
