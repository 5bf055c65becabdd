//! The real hypervisor over a VMM that is a shell script: started as
//! `/bin/sh run --config vm.json`, it is the file `run` in its directory.

use std::process::{Child, Command};

use tempfile::TempDir;

use super::*;
use crate::instance::directory::OS_DISK;

/// Runs until it is told to stop; then says so.
const OBEDIENT: &str = r#"
trap 'echo "{\"reason\":\"stopped\",\"detail\":\"told to\",\"uptime_ms\":1}"; exit 0' TERM
ls -l /proc/self/fd > descriptors
echo $$ $(cut -d ' ' -f 6 /proc/self/stat) > session
touch up
while :; do sleep 0.05; done
"#;

/// Says that it was stopped when it was told to by its control socket, and hears nothing
/// else.
const CONTROLLED: &str = r#"
trap '' TERM
touch up
while [ ! -e told ]; do sleep 0.05; done
echo "{\"reason\":\"stopped\",\"detail\":\"told to\",\"uptime_ms\":1}"
"#;

/// What VMMs of the last two versions of the control protocol were asked, and answered.
const RECORDED: [&str; 2] = [
    include_str!("../../vmm/src/control/recorded/1.jsonl"),
    include_str!("../../vmm/src/control/recorded/2.jsonl"),
];

#[test]
fn a_power_button_is_where_the_guest_agent_waits_at_it() {
    let port = fabric_proto::vmbus::POWER_BUTTON_PORT;
    assert_eq!(fabric_vmm::control::knock::PORT, port);
}

struct Stage {
    data: TempDir,
    directory: InstanceDirectory,
    hypervisor: ProcessHypervisor,
    launched: Mutex<Vec<Arc<dyn Vm>>>,
}

/// A script that spins does not outlive a test that failed.
impl Drop for Stage {
    fn drop(&mut self) {
        for vm in self.launched.get_mut().unwrap() {
            vm.kill();
        }
    }
}

impl Stage {
    fn new(script: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let directory = InstanceDirectory::open(data.path().join("shop-web-0")).unwrap();
        fs::write(directory.file("run"), script).unwrap();
        let cgroups = match Cgroups::open(data.path(), None) {
            Ok(cgroups) => Some(cgroups),
            Err(error) => {
                eprintln!("without control groups: {}", chain(&error));
                None
            }
        };
        let hypervisor = ProcessHypervisor {
            vmm: "/bin/sh".into(),
            kernel: "/boot/vmlinux".into(),
            cmdline: "fabric.faults=1".to_owned(),
            repair: RepairMode::Auto,
            jails: Jails::default(),
            cgroups,
        };
        Self {
            data,
            directory,
            hypervisor,
            launched: Mutex::default(),
        }
    }

    async fn launch(&self) -> Arc<dyn Vm> {
        self.launch_with(&self.directory, 100).await
    }

    async fn launch_with(&self, directory: &InstanceDirectory, cpu_weight: u32) -> Arc<dyn Vm> {
        let spec = VmSpec {
            name: "shop-web-0".to_owned(),
            vcpus: 2,
            memory_mib: 128,
            cpu_weight,
            os_disk: OS_DISK,
            os_parents: vec!["/blobs/image".into()],
            package: Some(PackageDisk::Image("/blobs/package".into())),
            cid: 3,
            origin: Origin::Boot,
            booted: None,
        };
        let vm = self.hypervisor.launch(directory, &spec).await.unwrap();
        self.launched.lock().unwrap().push(Arc::clone(&vm));
        vm
    }

    /// Whether what is to be tested is there; where it is not, that was said.
    fn has_groups(&self) -> bool {
        self.hypervisor.cgroups.is_some()
    }

    fn group(&self) -> Group {
        self.hypervisor.group(self.directory.path()).unwrap()
    }

    async fn up(&self) -> Arc<dyn Vm> {
        let vm = self.launch().await;
        let up = self.directory.file("up");
        until("the script runs", || up.exists()).await;
        vm
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn end_of(vm: &Arc<dyn Vm>) -> Exit {
    tokio::time::timeout(Duration::from_secs(60), vm.exited())
        .await
        .expect("it ends")
}

#[tokio::test]
async fn a_vmm_is_given_a_sound_configuration_and_nothing_of_ours() {
    let stage = Stage::new(OBEDIENT);
    let _ours = File::open("/dev/zero").unwrap();
    let vm = stage.up().await;
    let config = VmConfig::from_file(&stage.directory.file(CONFIGURATION)).unwrap();
    assert_eq!(config.cmdline, "fabric.faults=1");
    let serials: Vec<_> = config
        .disks
        .iter()
        .map(|disk| disk.serial.as_str())
        .collect();
    assert_eq!(serials, ["os", "package"]);
    assert!(!config.disks[0].readonly && config.disks[1].readonly);

    let session = fs::read_to_string(stage.directory.file("session")).unwrap();
    let (itself, session) = session.trim().split_once(' ').unwrap();
    assert_eq!(itself, "1", "a pid namespace of its own");
    assert_eq!(session, vm.record().pid.to_string(), "a session of its own");
    let descriptors = fs::read_to_string(stage.directory.file("descriptors")).unwrap();
    assert!(!descriptors.contains("/dev/zero"), "{descriptors}");
    vm.kill();
    end_of(&vm).await;
}

#[tokio::test]
async fn a_vmm_that_wants_more_memory_than_it_may_have_is_killed_and_that_is_said() {
    let stage = Stage::new("touch up; x=more; while :; do x=$x$x; done");
    if !stage.has_groups() {
        return;
    }
    let exit = end_of(&stage.up().await).await;
    assert_eq!(exit.kind, ExitKind::OutOfMemory);
    assert!(exit.json.contains(r#""reason":"killed""#), "{}", exit.json);
    for group in stage.group().directories() {
        assert!(!group.exists(), "{} is left", group.display());
        assert!(
            !group.parent().unwrap().exists(),
            "all groups are in nothing"
        );
    }
}

#[test]
fn kills_are_told_apart() {
    let kind = |status, out_of_memory| tell(status, out_of_memory, None).kind;
    assert_eq!(kind(Status::Signal(9), false), ExitKind::Killed);
    assert_eq!(kind(Status::Signal(9), true), ExitKind::OutOfMemory);
    assert_eq!(kind(Status::Signal(31), false), ExitKind::ForbiddenCall);
    assert_eq!(kind(Status::Unknown, false), ExitKind::Killed);
    assert_eq!(kind(Status::Code(3), false), ExitKind::Failed);
}

#[test]
fn what_the_kernel_ended_a_vmm_for_is_not_the_vmms_to_say() {
    let words = || Some(judge(&ExitReport::new(ExitReason::GuestPowerOff, "")));
    let kind = |status, out_of_memory| tell(status, out_of_memory, words()).kind;
    let forbidden = tell(Status::Signal(31), false, words());
    assert_eq!(forbidden.kind, ExitKind::ForbiddenCall);
    assert_eq!(
        forbidden.detail,
        "it is not on the list of the thread that made it, after it had said that the \
         guest powered off"
    );
    assert_eq!(kind(Status::Signal(11), false), ExitKind::Killed);
    assert_eq!(kind(Status::Signal(9), true), ExitKind::OutOfMemory);
    assert_eq!(kind(Status::Unknown, true), ExitKind::OutOfMemory);
    // It had gone, or was killed for taking too long about it.
    for status in [Status::Code(0), Status::Signal(9), Status::Unknown] {
        assert_eq!(kind(status, false), ExitKind::GuestPowerOff, "{status:?}");
    }
}

/// In a shell of its own, as a process that is collected by somebody else.
#[tokio::test]
async fn a_vmm_that_is_not_our_child_is_seen_to_be_killed_by_what_where_the_kernel_tells() {
    let stage = Stage::new("touch up; sleep 60 & wait");
    let mut parent = Command::new("/bin/sh")
        .args(["-c", r#"/bin/sh run --config vm.json & echo $!; wait"#])
        .current_dir(stage.directory.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let up = stage.directory.file("up");
    until("the script runs", || up.exists()).await;
    let found = stage.hypervisor.find(&stage.directory, None).await;
    let found = found.unwrap().expect("found");
    let pid = Pid::from_raw(i32::try_from(found.record().pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::SEGV).unwrap();
    let exit = end_of(&found).await;
    assert_eq!(exit.kind, ExitKind::Killed);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut version = release
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    let tells = (version.next(), version.next()) >= (Some(6), Some(15));
    let by = if tells {
        "by signal 11"
    } else {
        "nobody saw by what"
    };
    assert!(exit.detail.contains(by), "{}", exit.detail);
    parent.wait().unwrap();
}

#[tokio::test]
async fn a_vmm_can_have_only_so_many_processes() {
    let stage = Stage::new(
        "touch up; n=0; while :; do sleep 100 & n=$((n + 1)); echo $n > processes; done",
    );
    if !stage.has_groups() {
        return;
    }
    let exit = end_of(&stage.up().await).await;
    assert_eq!(exit.kind, ExitKind::Failed);
    let words = fs::read_to_string(stage.directory.file(VMM_ERR)).unwrap();
    assert!(words.contains("fork"), "{words}");
    let processes = fs::read_to_string(stage.directory.file("processes")).unwrap();
    let processes: u32 = processes.trim().parse().unwrap();
    assert_eq!(processes + 1, Share::of(2, 128, 100).threads);
}

#[tokio::test]
async fn vmms_that_want_one_processor_have_it_by_their_weights() {
    let stage = Stage::new("");
    if !stage.has_groups() {
        return;
    }
    let mut vms = Vec::new();
    for (name, weight) in [("one", 50), ("two", 100)] {
        let directory = InstanceDirectory::open(stage.data.path().join(name)).unwrap();
        let script = "exec taskset -c 0 sh -c 'while :; do :; done'";
        fs::write(directory.file("run"), script).unwrap();
        vms.push(stage.launch_with(&directory, weight).await);
    }
    let ticks = |vm: &Arc<dyn Vm>| proc::processor_ticks(vm.record().pid).unwrap();
    // From when both are at it, for as long as it takes to tell.
    until("both run", || vms.iter().all(|vm| ticks(vm) > 10)).await;
    let before: Vec<_> = vms.iter().map(ticks).collect();
    let since = || {
        vms.iter()
            .map(ticks)
            .zip(&before)
            .map(|(now, before)| now - before)
    };
    until("they had enough", || since().sum::<u64>() > 400).await;
    let had: Vec<_> = since().collect();
    for vm in &vms {
        vm.kill();
        end_of(vm).await;
    }
    let ratio = had[1] as f64 / had[0] as f64;
    assert!(
        (1.9..=2.1).contains(&ratio),
        "{had:?} ticks are 1:{ratio:.2}"
    );
}

#[tokio::test]
async fn its_last_words_say_why_it_ended() {
    let stage = Stage::new(OBEDIENT);
    let vm = stage.up().await;
    // There is no control socket: a signal does it.
    vm.order_stop().await;
    let exit = end_of(&vm).await;
    assert_eq!(
        (exit.kind, exit.detail.as_str()),
        (ExitKind::Stopped, "told to")
    );
    assert!(exit.json.contains("uptime_ms"));
    assert_eq!(end_of(&vm).await, exit, "asked again, it says the same");
    assert_eq!(stage.hypervisor.last_exit(&stage.directory), exit);

    let vm = stage.launch().await;
    vm.kill();
    let exit = end_of(&vm).await;
    assert_eq!(exit.kind, ExitKind::Killed);
    assert_eq!(exit.detail, "by signal 9");
    assert!(
        exit.json.contains("was killed: by signal 9"),
        "{}",
        exit.json
    );
    assert_eq!(proc::start_time(vm.record().pid), None, "no zombie stays");
}

#[tokio::test]
async fn a_vmm_is_found_again_by_where_it_runs() {
    let stage = Stage::new(OBEDIENT);
    let mut other: Child = Command::new("/bin/sleep")
        .arg("60")
        .current_dir(stage.directory.path())
        .spawn()
        .unwrap();
    let find = || stage.hypervisor.find(&stage.directory, None);
    assert!(
        find().await.unwrap().is_none(),
        "not everything that works there is a VMM"
    );

    let vm = stage.up().await;
    let found = find().await.unwrap().expect("found");
    assert_eq!(found.record(), vm.record());
    found.kill();
    assert_eq!(end_of(&found).await.kind, ExitKind::Killed);
    end_of(&vm).await;
    assert!(find().await.unwrap().is_none());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_vmm_whose_directory_is_gone_is_ended() {
    let stage = Stage::new(OBEDIENT);
    let vm = stage.up().await;
    let group = stage.has_groups().then(|| stage.group());
    assert_eq!(stage.hypervisor.end_strays(stage.data.path()).await, 0);
    stage.directory.clear().unwrap();
    stage.directory.remove().unwrap();
    // A child that the script has just forked looks as it does.
    assert_ne!(stage.hypervisor.end_strays(stage.data.path()).await, 0);
    let mut directories = group.iter().flat_map(Group::directories);
    let left = directories.find(|directory| directory.exists());
    assert_eq!(left, None, "its group is there");
    end_of(&vm).await;
}

#[tokio::test]
async fn a_vmm_that_is_not_there_is_named() {
    let mut stage = Stage::new("");
    stage.hypervisor.vmm = "/nowhere/fabric-vmm".into();
    let spec = VmSpec {
        name: "x".to_owned(),
        vcpus: 1,
        memory_mib: 64,
        cpu_weight: 100,
        os_disk: OS_DISK,
        os_parents: Vec::new(),
        package: None,
        cid: 3,
        origin: Origin::Boot,
        booted: None,
    };
    let error = stage
        .hypervisor
        .launch(&stage.directory, &spec)
        .await
        .unwrap_err();
    assert!(
        chain(&error).starts_with("cannot start /nowhere/fabric-vmm: "),
        "{error}"
    );
}

#[test]
fn only_a_plain_path_gets_onto_a_kernel_command_line() {
    for wrong in [
        "",
        "bin/sh",
        "/bin/a b",
        "/bin/a\"b",
        "/bin/a\n",
        "/b=c",
        &"/x".repeat(200),
    ] {
        assert_eq!(Program::new(wrong), None, "{wrong:?}");
    }
    let program = Program::new("/usr/bin/python3.11").unwrap();
    assert_eq!(program.as_str(), "/usr/bin/python3.11");
}

#[test]
fn a_guest_that_becomes_a_template_and_one_that_is_copied_from_it_have_the_same_disks() {
    let stage = Stage::new(OBEDIENT);
    let configuration = |origin| {
        let configured = stage.hypervisor.configuration(&VmSpec {
            name: "x".to_owned(),
            vcpus: 1,
            memory_mib: 64,
            cpu_weight: 100,
            os_disk: OS_DISK,
            os_parents: Vec::new(),
            package: Some(PackageDisk::Placeholder("package.raw".into())),
            cid: 3,
            origin,
            booted: Some("/t/booted".into()),
        });
        configured.unwrap()
    };
    let made = configuration(Origin::BecomeTemplate {
        program: Program::new("/bin/busybox"),
    });
    assert_eq!(made.cmdline, "fabric.faults=1 fabric_template=/bin/busybox");
    let calls = |config: &VmConfig| {
        let template = config.template.as_ref()?;
        let booted = template.booted.as_ref().map(|booted| booted.port);
        Some((template.port, template.after, booted))
    };
    assert_eq!(calls(&made), Some((1024, None, Some(1028))));
    let from = Some("/t/snapshot".into());
    let warm = configuration(Origin::BecomeRoleTemplate { from });
    assert_eq!(calls(&warm), Some((1024, Some(1026), None)));
    assert_eq!(warm.restore, Some("/t/snapshot".into()));
    let copied = configuration(Origin::Template("/t/snapshot".into()));
    assert_eq!(copied.restore, Some("/t/snapshot".into()));
    for config in [made, warm, copied] {
        config.check().unwrap();
        assert_eq!(config.reset_to, Some("/t/booted".into()));
        assert_eq!(config.disks[1].capacity_bytes, Some(PACKAGE_CAPACITY));
        assert_eq!(config.disks[0].quota_bytes, Some(20 << 30));
        assert_eq!(config.limits.disks.len(), 2);
        assert!(!config.limits.vsock_to_host.is_none());
    }
}

#[test]
fn a_panic_that_ends_in_a_reset_is_a_panic() {
    let report = |reason, panic: Option<&str>| {
        let mut report = ExitReport::new(reason, "in words");
        report.panic = panic.map(str::to_owned);
        let exit = judge(&report);
        (exit.kind, exit.detail)
    };
    let text = |text: &str| text.to_owned();
    assert_eq!(
        report(ExitReason::GuestReset, Some("Attempted to kill init!")),
        (ExitKind::KernelPanic, text("Attempted to kill init!"))
    );
    assert_eq!(
        report(ExitReason::GuestReset, None),
        (ExitKind::GuestReset, text("in words"))
    );
    assert_eq!(
        report(ExitReason::TripleFault, None),
        (ExitKind::TripleFault, text("in words"))
    );
}

#[tokio::test]
async fn vmms_of_the_last_two_versions_are_taken_over_stopped_and_seen_to_end() {
    for recorded in RECORDED {
        let stage = Stage::new(CONTROLLED);
        drop(stage.up().await);
        let socket = stage.directory.file(CONTROL);
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let told = stage.directory.file("told");
        let machine = std::thread::spawn(move || answer(&listener, recorded, &told));

        let vm = stage.hypervisor.find(&stage.directory, None).await;
        let vm = vm.unwrap().expect("it runs");
        vm.order_stop().await;
        assert_eq!(machine.join().unwrap(), r#"{"op":"stop"}"#);
        assert_eq!(end_of(&vm).await.kind, ExitKind::Stopped);
    }
}

/// Answers one request as it was answered then; returns it.
fn answer(listener: &std::os::unix::net::UnixListener, recorded: &str, told: &Path) -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let (mut stream, _) = listener.accept().unwrap();
    let mut asked = String::new();
    BufReader::new(&stream).read_line(&mut asked).unwrap();
    let mut lines = recorded.lines();
    lines
        .find(|line| *line == asked.trim())
        .expect("it was asked then");
    writeln!(stream, "{}", lines.next().unwrap()).unwrap();
    File::create(told).unwrap();
    asked.trim().to_owned()
}
