//! A machine is paused, goes on, and goes on elsewhere from a snapshot.

use std::path::Path;

use fabric_vmm::console::RingReader;
use fabric_vmm::control::Request;
use fabric_vmm::exit::ExitReason;
use fabric_vmm::snapshot::{self, SnapshotError};

use crate::guest::{Bench, JAIL, Running, code, eventually, kvm_is_here, wait};

/// What the guest has counted to, as far as its last whole line says.
fn count(ring: &Path) -> Option<u32> {
    let text = RingReader::open(ring).ok()?.tail(64).ok()?.bytes;
    let text = String::from_utf8(text).unwrap();
    let line = text.rsplit('\n').nth(1)?;
    u32::from_str_radix(line, 16).ok()
}

/// The first number that the guest says whole: a line may have been begun before.
fn first_count(bench: &Bench, ring: &str) -> Option<u32> {
    let text = bench.said(ring)?;
    let lines: Vec<&str> = text.split('\n').collect();
    let whole = lines.get(1).filter(|_| lines.len() > 2)?;
    u32::from_str_radix(whole, 16).ok()
}

fn counts_beyond(bench: &Bench, ring: &str, number: u32) -> u32 {
    eventually("the guest counts on", || {
        count(&bench.path(ring)).filter(|count| *count > number)
    })
}

fn start(bench: &Bench) -> Running {
    // What an earlier machine has said is not this one's.
    let _ = std::fs::remove_file(bench.path("ring"));
    let arguments = ["--console", "ring:ring", "--control", "control.sock"];
    let child = bench.start(&arguments);
    counts_beyond(bench, "ring", 2);
    child
}

#[test]
fn a_paused_guest_does_nothing_until_it_is_resumed() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    let child = start(&bench);
    for _ in 0..2 {
        assert!(bench.tell(Request::Pause).ok);
    }
    assert_eq!(bench.tell(Request::Status).status.unwrap().state, "paused");
    let exits = |bench: &Bench| bench.tell(Request::Stats).stats.unwrap().exits;
    let (before, counted) = (exits(&bench), count(&bench.path("ring")).unwrap());
    // Each answer is a turn of the machine's event loop, in which nothing happens.
    for _ in 0..50 {
        assert_eq!(exits(&bench), before);
    }
    assert_eq!(count(&bench.path("ring")), Some(counted));
    assert!(bench.tell(Request::Resume).ok);
    counts_beyond(&bench, "ring", counted + 2);
    assert_eq!(bench.tell(Request::Status).status.unwrap().state, "running");

    // It can be ended while it is paused.
    assert!(bench.tell(Request::Pause).ok);
    assert_eq!(bench.stop(child).report.reason, ExitReason::Stopped);
}

#[test]
fn two_machines_go_on_from_one_snapshot_and_the_first_does_not_notice() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    let child = start(&bench);
    let path = bench.path(JAIL).join("snapshot");
    let before = count(&bench.path("ring")).unwrap();
    let answer = bench.tell(Request::Snapshot { path: path.clone() });
    assert!(answer.ok, "{answer:?}");
    let after = count(&bench.path("ring")).unwrap();
    counts_beyond(&bench, "ring", after + 2);
    let verified = snapshot::verify(&path).unwrap();
    assert_eq!((verified.memory_mib, verified.vcpus), (32, 1));

    let rings = ["ring:first", "ring:second"];
    let clones = rings.map(|ring| {
        let arguments = ["--console", ring];
        Running::new(bench.restore("jail/snapshot", &arguments).spawn().unwrap())
    });
    for (clone, ring) in clones.into_iter().zip(["first", "second"]) {
        counts_beyond(&bench, ring, after + 2);
        let began = eventually("a first line", || first_count(&bench, ring));
        assert!(
            (before..=after + 2).contains(&began),
            "{ring} began at {began}, and the snapshot was taken at {before} to {after}"
        );
        clone.kill();
    }
    snapshot::verify(&path).unwrap();
    bench.stop(child);

    // A name that is taken is refused, and nothing of it is touched.
    let child = start(&bench);
    let answer = bench.tell(Request::Snapshot { path: path.clone() });
    assert!(answer.error.unwrap().contains("exists already"));
    counts_beyond(&bench, "ring", 3);
    bench.stop(child);
    snapshot::verify(&path).unwrap();
}

#[test]
fn a_snapshot_that_is_not_what_was_written_is_refused() {
    if !kvm_is_here() {
        return;
    }
    let bench = Bench::new(code!(counting_begin, counting_end));
    let child = start(&bench);
    let path = bench.path(JAIL).join("snapshot");
    assert!(bench.tell(Request::Snapshot { path: path.clone() }).ok);
    bench.stop(child);
    let refusal = |arguments: &[&str]| {
        let ended = wait(Running::new(
            bench.restore("jail/snapshot", arguments).spawn().unwrap(),
        ));
        assert_eq!(
            (ended.report.reason, ended.code),
            (ExitReason::ConfigError, Some(2))
        );
        ended.report.detail
    };

    let detail = refusal(&["--vcpus", "2"]);
    assert!(
        detail.contains("`vcpus` is 2: the snapshot has 1"),
        "{detail}"
    );
    std::fs::write(bench.path("disk.raw"), [0; 4096]).unwrap();
    let detail = refusal(&["--disk", "disk.raw,format=raw"]);
    assert!(detail.contains("`disks` is 1 long"), "{detail}");

    let state = path.join(snapshot::STATE_FILE);
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
    let detail = refusal(&[]);
    assert!(detail.contains("version 2 of the format"), "{detail}");
    let middle = text.len() / 2;
    let digit = text[middle..].find(|c: char| c.is_ascii_digit()).unwrap() + middle;
    let mut damaged = text.clone().into_bytes();
    damaged[digit] = if damaged[digit] == b'1' { b'2' } else { b'1' };
    std::fs::write(&state, damaged).unwrap();
    assert!(refusal(&[]).contains("is damaged"));
    std::fs::write(&state, &text[..middle]).unwrap();
    assert!(refusal(&[]).contains("is not a snapshot's state"));
    std::fs::write(&state, &text).unwrap();

    let memory = path.join(snapshot::MEMORY_FILE);
    let mut bytes = std::fs::read(&memory).unwrap();
    bytes[0x0100_0000] ^= 1;
    std::fs::write(&memory, &bytes).unwrap();
    let error = snapshot::verify(&path).unwrap_err();
    assert!(matches!(error, SnapshotError::Damaged { .. }), "{error}");
    std::fs::write(&memory, &bytes[..4096]).unwrap();
    assert!(refusal(&[]).contains("is 4096 bytes long"));
}
