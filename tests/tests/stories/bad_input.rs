//! What is wrong is refused with an error that names it, and the system works on.

use std::{fs, path::Path, process::Command};

use anyhow::ensure;
use fabric_tests::{
    BOOT, Cluster, Options, Place, ServiceFile, Story, eventually, run_in_own_mounts, story,
};

/// Bytes of its disk that the controller leaves to its store.
const CONTROLLER_RESERVE: u64 = 16 << 20;

pub(crate) const STORIES: &[Story] = &[
    story!(a_corrupt_image_is_refused_by_the_field_that_is_wrong),
    story!(a_wrong_service_file_is_refused_by_line_and_rule),
    story!(a_full_controller_disk_refuses_an_upload_and_works_on),
    story!(a_full_node_disk_is_said_and_got_over),
    story!(a_truncated_kernel_is_named, needs_kvm: false),
    story!(a_missing_kvm_is_named_with_its_remedy, needs_kvm: false),
];

async fn a_corrupt_image_is_refused_by_the_field_that_is_wrong() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mut image = fs::read(&cluster.place.guest_os)?;
    // The footer's checksum, in the footer and in its copy (VHD 1.0, "Hard Disk Footer").
    let footer = image.len() - 512;
    for at in [64, footer + 64] {
        image[at] ^= 0xff;
    }
    let corrupt = cluster.path("corrupt.vhd");
    fs::write(&corrupt, image)?;
    let corrupt = corrupt.display().to_string();
    let refused = cluster.fabctl_output(&["image", "upload", "bad", &corrupt])?;
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    ensure!(
        !refused.status.success() && said.contains("checksum"),
        "{said}"
    );
    ensure!(
        !cluster.fabctl(&["image", "list"])?.contains("bad"),
        "it is there all the same"
    );

    cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    Ok(())
}

async fn a_wrong_service_file_is_refused_by_line_and_rule() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let right = ServiceFile::web("shop").toml();
    let wrong = [
        (right.replace("instances = 1", "instance = 1"), "instance"),
        (right.replace("size = \"tiny\"", "size = \"Smal\""), "Smal"),
        (right.replace("kind = \"web\"", "kind = \"wbe\""), "wbe"),
        (right.replace("port = 8080", "port = 80800"), "80800"),
        (
            right.replace("name = \"shop\"", "name = \"Shop!\""),
            "Shop!",
        ),
    ];
    for (text, named) in wrong {
        let file = cluster.path("wrong.toml");
        fs::write(&file, text)?;
        let file = file.display().to_string();
        let refused = cluster.fabctl_output(&["service", "apply", "-f", &file])?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success(), "a file with {named} was taken");
        ensure!(
            said.contains(named) && said.contains("wrong.toml"),
            "{named}: {said}"
        );
    }

    // A right file that asks for what is not there: no line is wrong, the image is.
    let file = cluster.path("right.toml");
    fs::write(&file, &right)?;
    let refused =
        cluster.fabctl_output(&["service", "apply", "-f", &file.display().to_string()])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        said.contains("guest-os") && said.contains("fabctl image upload"),
        "{said}"
    );
    ensure!(
        cluster.instances().await?.is_empty(),
        "a refused file left instances"
    );
    Ok(())
}

/// Arguments that run a command with a small file system of its own at `folder`.
fn with_small_disk(folder: &Path, size: &str) -> Vec<String> {
    let script = format!(
        "mount -t tmpfs -o size={size} tmpfs {} && exec \"$@\"",
        folder.display()
    );
    ["unshare", "--mount", "sh", "-ec", &script, "sh"]
        .map(str::to_owned)
        .to_vec()
}

async fn a_full_controller_disk_refuses_an_upload_and_works_on() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting a small disk needs root");
        return Ok(());
    }
    // Beside what the controller leaves free, the image fits by half only.
    let size = CONTROLLER_RESERVE + fs::metadata(Place::find()?.guest_os)?.len() / 2 + (1 << 20);
    let dir = tempfile::Builder::new().prefix("fabric-test-").tempdir()?;
    let store = dir.path().join("controller");
    fs::create_dir(&store)?;
    let cluster = Cluster::start_with(Options {
        before_controller: with_small_disk(&store, &size.to_string()),
        controller_dir: Some(store),
        ..Options::default()
    })
    .await?;

    let image = cluster.place.guest_os.display().to_string();
    let refused = cluster.fabctl_output(&["image", "upload", "guest-os", &image])?;
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    ensure!(
        !refused.status.success() && said.contains("space"),
        "{said}"
    );
    cluster.upload_package("small", &[("index.html", "small")])?;
    ensure!(
        cluster.fabctl(&["package", "list"])?.contains("small"),
        "nothing works any more"
    );
    Ok(())
}

async fn a_full_node_disk_is_said_and_got_over() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting a small disk needs root");
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("fabric-test-").tempdir()?;
    let node = dir.path().join("n");
    fs::create_dir(&node)?;
    let cluster = Cluster::start_with(Options {
        before_host_agent: with_small_disk(&node, "1g"),
        node_dir: Some(node.clone()),
        ..Options::default()
    })
    .await?;
    // It had room when it said what it has; now there is little.
    let little = fs::metadata(&cluster.place.guest_os)?.len() / 2 + (2 << 20);
    resize(&cluster, &node, &little.to_string())?;
    cluster.upload_guest_os()?;
    cluster.apply(&ServiceFile::web("shop"))?;
    let stuck = cluster
        .until("shop-web-0", "to say that there is no space", |now| {
            now.reason.to_lowercase().contains("space")
        })
        .await?;
    ensure!(stuck.state != "Ready", "{stuck:#?}");

    // The operator makes room; nobody tells the node.
    resize(&cluster, &node, "1g")?;
    cluster.until_ready("shop-web-0").await?;
    Ok(())
}

/// Gives the host agent's disk another size.
fn resize(cluster: &Cluster, disk: &Path, size: &str) -> anyhow::Result<()> {
    let pid = cluster.host_agent.pid().unwrap_or(0).to_string();
    let size = format!("remount,size={size}");
    let done = Command::new("nsenter")
        .args(["--target", &pid, "--mount", "mount", "-o", &size])
        .arg(disk)
        .status()?;
    ensure!(done.success(), "the disk cannot have another size");
    Ok(())
}

async fn a_truncated_kernel_is_named() -> anyhow::Result<()> {
    let place = Place::find()?;
    let dir = tempfile::tempdir()?;
    let kernel = dir.path().join("half-a-kernel");
    let whole = fs::read(&place.kernel)?;
    fs::write(&kernel, &whole[..whole.len() / 2])?;
    let output = Command::new(place.program("fabric-vmm"))
        .args(["run", "--memory", "128MiB", "--console", "none", "--kernel"])
        .arg(&kernel)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = String::from_utf8_lossy(&output.stdout)
        .lines()
        .last()
        .unwrap_or("")
        .to_owned();
    ensure!(!output.status.success(), "half a kernel was started");
    ensure!(
        said.contains("half-a-kernel"),
        "the file is not named: {said}"
    );
    let report: serde_json::Value = serde_json::from_str(&last)?;
    ensure!(report["reason"] == "config_error", "{report}");
    Ok(())
}

async fn a_missing_kvm_is_named_with_its_remedy() -> anyhow::Result<()> {
    let place = Place::find()?;
    let vmm = place.program("fabric-vmm").display().to_string();
    let script = format!("mount --bind /dev/null /dev/kvm; exec {vmm} probe");
    if !Path::new("/dev/kvm").exists() {
        eprintln!("/dev/kvm is missing here already");
    }
    let output = eventually(BOOT, "an answer", || async {
        run_in_own_mounts(&script).map_err(|error| error.to_string())
    })
    .await?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("/dev/kvm"),
        "{said}"
    );
    Ok(())
}
