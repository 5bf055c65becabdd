//! A real guest is held to its limits, on its disk and on the VMBus, and to its quota.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use fabric_tests::{
    BOOT, Cluster, Peer, Place, SOON, ServiceFile, Story, control, eventually, groups, line,
    skipped, story,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};

pub(crate) const STORIES: &[Story] = &[
    story!(a_limited_disk_takes_its_time_until_the_limit_is_lifted),
    story!(each_direction_of_the_bus_is_limited_by_itself),
    story!(an_instance_is_limited_by_its_size_and_otherwise_while_it_runs),
    story!(guests_that_spin_share_a_processor_by_their_weights, alone: true),
    story!(a_guest_that_fills_its_disk_hits_its_quota_and_keeps_what_it_has),
];

const MIB: u64 = 1 << 20;
/// Slow enough to be told from what a guest does without a limit.
const SLOW: u64 = 256 << 10;

fn rate(per_second: u64) -> Value {
    json!({"bytes": {"per_second": per_second, "burst": 4096}})
}

async fn a_limited_disk_takes_its_time_until_the_limit_is_lifted() -> Result<()> {
    let peer = Peer::start(|dir| {
        let disk = dir.join("disk.raw");
        fs::File::create(&disk)?.set_len(16 * MIB)?;
        Ok(json!({
            "disks": [{"path": disk, "format": "raw", "serial": "d"}],
            "limits": {"disks": [rate(SLOW)]},
        }))
    })
    .await?;
    let begun = Instant::now();
    ensure!(peer.ask("read /dev/vda 0 1048576")? == "ok", "a read");
    let limited = begun.elapsed();
    // The last request's debt is paid by who comes next.
    ensure!(
        limited >= Duration::from_secs(3),
        "1 MiB within {limited:?}"
    );
    let stats = peer.stats()?;
    let disk = &stats["disks"][0];
    ensure!(disk["serial"] == "d", "{stats}");
    ensure!(
        disk["throttled"]["waited_ms"].as_u64() >= Some(2000),
        "{stats}"
    );
    ensure!(disk["read_bytes"].as_u64() >= Some(MIB), "{stats}");

    // A pause does not wait for what waits, and the limit goes on after it.
    let mut reading = peer.tell("read /dev/vda 4194304 524288")?;
    for op in ["pause", "resume"] {
        peer.control(&json!({"op": op}))?;
    }
    ensure!(line(&mut reading)? == "ok", "a read across a pause");

    peer.control(&json!({"op": "limit", "limits": {}}))?;
    let before = peer.stats()?["disks"][0]["throttled"]["waits"].take();
    ensure!(peer.ask("read /dev/vda 8388608 1048576")? == "ok", "a read");
    let after = peer.stats()?["disks"][0]["throttled"]["waits"].take();
    ensure!(
        before == after,
        "it waited {before} times, and then {after}"
    );
    Ok(())
}

async fn each_direction_of_the_bus_is_limited_by_itself() -> Result<()> {
    let peer = Peer::start(|_| Ok(json!({}))).await?;
    let waits = |direction: &str| -> Result<u64> {
        let stats = peer.stats()?;
        let waits = stats["vsock"][direction]["waits"].as_u64();
        waits.with_context(|| stats.to_string())
    };
    let limits = json!({"op": "limit", "limits": {"vsock_to_host": rate(SLOW)}});
    peer.control(&limits)?;
    let begun = Instant::now();
    let mut source = peer.tell(&format!("source {MIB}"))?;
    let mut taken = Vec::new();
    source.read_to_end(&mut taken)?;
    ensure!(taken.len() as u64 == MIB, "{} bytes came", taken.len());
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(3), "1 MiB within {took:?}");
    ensure!(
        waits("to_host")? > 0 && waits("to_guest")? == 0,
        "the other waited"
    );

    let limits = json!({"op": "limit", "limits": {"vsock_to_guest": rate(SLOW)}});
    peer.control(&limits)?;
    let before = waits("to_host")?;
    let begun = Instant::now();
    let mut sink = peer.tell("sink")?;
    sink.write_all(&vec![1; usize::try_from(MIB)?])?;
    sink.shutdown(Shutdown::Write)?;
    ensure!(line(&mut sink)? == MIB.to_string(), "not all was taken");
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(3), "1 MiB within {took:?}");
    ensure!(
        waits("to_guest")? > 0 && waits("to_host")? == before,
        "the other waited"
    );

    let refused = peer.control(&json!({"op": "limit", "limits": {"disks": [{}]}}));
    ensure!(refused.is_err(), "a limit of a disk that is not there");
    Ok(())
}

/// Jailed as every instance is: a thread that may not wait for its limits would be
/// killed.
async fn an_instance_is_limited_by_its_size_and_otherwise_while_it_runs() -> Result<()> {
    const INSTANCE: &str = "shop-web-0";
    let cluster = Cluster::start().await?;
    cluster.upload_guest_os()?;
    // More to a disk, and more to say, than it may have later.
    let script = "while :; do echo x >> /tmp/x; sync; seq 1 2000; sleep 1; done";
    cluster.apply(&ServiceFile::web("shop").script(script))?;
    cluster.until_ready(INSTANCE).await?;
    let dir = cluster.instance_dir(INSTANCE);
    let config: Value = serde_json::from_slice(&fs::read(dir.join("vm.json"))?)?;
    let share = &config["limits"]["disks"][0]["bytes"]["per_second"];
    ensure!(share.as_u64() == Some(32 * MIB), "{config}");
    ensure!(config["disks"][0]["quota_bytes"].is_u64(), "{config}");

    let socket = dir.join("control.sock");
    let pid = || -> Result<Value> {
        Ok(control(&socket, &json!({"op": "status"}))?["status"]["pid"].take())
    };
    let before = pid()?;
    let all =
        json!({"disks": [rate(4096)], "vsock_to_host": rate(4096), "vsock_to_guest": rate(4096)});
    control(&socket, &json!({"op": "limit", "limits": all}))?;
    eventually(SOON, "disk and VMBus to wait for their limits", || async {
        let stats = control(&socket, &json!({"op": "stats"})).map_err(|e| e.to_string())?;
        let waits = |throttled: &Value| throttled["waits"].as_u64() > Some(0);
        let stats = &stats["stats"];
        if waits(&stats["disks"][0]["throttled"]) && waits(&stats["vsock"]["to_host"]) {
            Ok(())
        } else {
            Err(stats.to_string())
        }
    })
    .await?;
    control(&socket, &json!({"op": "limit", "limits": {}}))?;
    ensure!(pid()? == before, "the machine is another one");
    cluster.until_ready(INSTANCE).await?;
    Ok(())
}

async fn guests_that_spin_share_a_processor_by_their_weights() -> Result<()> {
    const SPIN: &str = "while :; do :; done";
    /// What the lighter one has used when they are compared.
    const ENOUGH: Duration = Duration::from_secs(3);
    let cluster = Cluster::start().await?;
    cluster.upload_guest_os()?;
    for (name, weight) in [("light", 100), ("heavy", 200)] {
        let service = ServiceFile::web(name).script(SPIN).cpu_weight(weight);
        cluster.apply(&service)?;
    }
    let mut vmms = Vec::new();
    for instance in ["light-web-0", "heavy-web-0"] {
        cluster.until_ready(instance).await?;
        vmms.push(cluster.vmm(instance)?.pid);
    }
    let weighed = groups(cluster.node_dir()).into_iter().any(|place| {
        let group = place.join("light-web-0");
        ["cpu.weight", "cpu.shares"]
            .iter()
            .any(|file| group.join(file).exists())
    });
    if !weighed {
        return skipped("this host has no control groups for processors");
    }
    vmms.iter().try_for_each(|vmm| pin(*vmm))?;

    let look =
        || -> Result<Vec<Duration>> { vmms.iter().map(|vmm| processor_time(*vmm)).collect() };
    let before = look()?;
    let used = eventually(BOOT, "both to have spun", || async {
        let now = look().map_err(|error| format!("{error:#}"))?;
        let used: Vec<_> = now
            .iter()
            .zip(&before)
            .map(|(now, then)| *now - *then)
            .collect();
        if used[0] >= ENOUGH {
            Ok(used)
        } else {
            Err(format!("{used:?}"))
        }
    })
    .await?;
    let ratio = used[1].as_secs_f64() / used[0].as_secs_f64();
    println!("weights 1:2, processor time 1:{ratio:.3}");
    ensure!(
        (ratio / 2.0 - 1.0).abs() <= 0.05,
        "{used:?}, which is 1:{ratio:.3}"
    );
    Ok(())
}

fn threads(process: i32) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(format!("/proc/{process}/task"))?;
    Ok(all.map(|one| Ok(one?.path())).collect::<io::Result<_>>()?)
}

/// Has all of a process run on the last processor that we may use, for which others of
/// those that are pinned have to wait.
fn pin(process: i32) -> Result<()> {
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rfind(|cpu| ours.is_set(*cpu) == Ok(true));
    let mut one = CpuSet::new();
    one.set(last.context("a processor")?)?;
    for thread in threads(process)? {
        let id = thread.file_name().unwrap_or_default().display().to_string();
        sched_setaffinity(Pid::from_raw(id.parse()?), &one)?;
    }
    Ok(())
}

/// What a process has used of processors, all of its threads together.
fn processor_time(process: i32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in threads(process)? {
        let text = fs::read_to_string(thread.join("schedstat"))?;
        let used = text.split(' ').next().unwrap_or_default();
        nanoseconds += used.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

async fn a_guest_that_fills_its_disk_hits_its_quota_and_keeps_what_it_has() -> Result<()> {
    const QUOTA: u64 = 5 * MIB;
    let vhd = Place::find()?.program("vhd");
    let peer = Peer::start(|dir| {
        let disk = dir.join("disk.vhd");
        let mut create = Command::new(&vhd);
        let created = create
            .args(["create", "--size", "64MiB"])
            .arg(&disk)
            .output()?;
        ensure!(created.status.success(), "{created:?}");
        Ok(json!({"disks": [{"path": disk, "serial": "d", "quota_bytes": QUOTA}]}))
    })
    .await?;
    let size = |path: &Path| -> Result<u64> { Ok(fs::metadata(path)?.len()) };
    let file = peer.path("disk.vhd");
    // A block of 2 MiB is added to the file at a time, and two fit.
    for offset in [0, 2 * MIB] {
        let answer = peer.ask(&format!("write /dev/vda {offset} 131072"))?;
        ensure!(answer == "ok", "{answer}");
    }
    let answer = peer.ask(&format!("write /dev/vda {} 131072", 4 * MIB))?;
    ensure!(answer.starts_with("error: "), "{answer}");
    ensure!(size(&file)? <= QUOTA, "{} bytes", size(&file)?);
    let stats = peer.stats()?;
    ensure!(stats["disks"][0]["failed"].as_u64() > Some(0), "{stats}");
    // What it has can be written again, and there is room beside it.
    let answer = peer.ask("write /dev/vda 65536 131072")?;
    ensure!(answer == "ok", "{answer}");
    Ok(())
}
