//! What a host agent sees of a guest agent, which runs here as a plain process:
//! real processes, real probes, a real connection; only the guest is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use fabric_proto::guest::v1::{
    Goal, GoodbyeReason, GuestPower, Heartbeat, HttpProbe, LogStream, RestartMode, RoleKind,
    RoleSpec,
    RoleState::{self, Busy, Ready, Starting, Stopped, Unhealthy},
    TcpProbe, probe,
    role_exit::How,
    session_request::Report,
};
use host::{Host, check, children, eventually, exec, exists, goal, millis, script, send};
use nix::sys::signal::Signal;
use tokio::net::TcpListener;

const FOREVER: &str = "exec sleep 1000";

async fn ready(host: &mut Host, role: &str) -> u32 {
    host.until(role, Ready).await.pid
}

async fn heartbeat(host: &mut Host) -> Heartbeat {
    host.report(|report| match report {
        Report::Heartbeat(heartbeat) => Some(*heartbeat),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_role_is_started_and_reported_ready_with_what_it_was_promised() {
    let mut spec = script(
        "web",
        "echo $FABRIC_ROLE $FABRIC_INSTANCE $GREETING; cat $FABRIC_SETTINGS_FILE; echo; pwd; \
         echo done; echo oops >&2; exec sleep 1000",
    );
    spec.environment = [("GREETING".to_owned(), "hello".to_owned())].into();
    spec.settings = [("colour".to_owned(), "blue".to_owned())].into();
    spec.restart_generation = 7;
    let (mut host, hello) = Host::with_guest(goal([spec])).await;

    assert_eq!(hello.protocol_version, 1);
    assert_eq!(hello.applied_incarnation, 0);
    assert_eq!(
        hello.boot_id, "",
        "it has no identity before its first goal"
    );
    assert!(hello.uptime.unwrap().seconds > 0);
    let again = host.hello().await;
    assert_eq!((again.boot_id.len(), again.applied_incarnation), (36, 1));

    assert_eq!(host.status("web").await.state(), Starting);
    let status = host.status("web").await;
    assert_eq!(status.state(), Ready);
    assert_eq!((status.restarts, status.restart_generation), (0, 7));
    assert!(exists(status.pid));
    assert!(status.last_exit.is_none());

    let (output, dropped) = host.output(LogStream::Stdout, "done\n").await;
    let directory = host.path("role/web");
    let expected = format!(
        "web shop-web-0 hello\n{{\"colour\":\"blue\"}}\n{}\ndone\n",
        directory.display()
    );
    assert_eq!((output, dropped), (expected, 0));
    host.output(LogStream::Stderr, "oops\n").await;

    let heartbeat = heartbeat(&mut host).await;
    assert_eq!(heartbeat.applied_incarnation, 1);
    assert!(heartbeat.memory_available_bytes > 1 << 20);
}

#[tokio::test]
async fn a_role_that_asks_for_it_is_told_of_changed_settings_and_goes_on() {
    let mut spec = script(
        "web",
        "trap 'cat $FABRIC_SETTINGS_FILE; echo' HUP; echo up; while :; do sleep 0.02; done",
    );
    spec.deliver_settings = true;
    spec.settings = [("colour".to_owned(), "blue".to_owned())].into();
    let (mut host, _) = Host::with_guest(goal([spec])).await;
    let pid = ready(&mut host, "web").await;
    host.output(LogStream::Stdout, "up\n").await;
    host.change_goal(|goal| {
        let settings = &mut goal.roles[0].settings;
        settings.insert("colour".to_owned(), "red".to_owned());
    });
    let (output, _) = host.output(LogStream::Stdout, "\n").await;
    assert_eq!(output, "{\"colour\":\"red\"}\n");
    assert!(exists(pid));
}

#[tokio::test]
async fn a_role_that_is_killed_comes_back() {
    let (mut host, _) = Host::with_guest(goal([script("web", FOREVER)])).await;
    let first = ready(&mut host, "web").await;
    send(first, Signal::SIGKILL);

    let failed = host.until("web", Unhealthy).await;
    assert_eq!(failed.reason, "ended by signal 9; starts again in 20 ms");
    assert_eq!((failed.pid, failed.consecutive_failures), (0, 1));
    let exit = failed.last_exit.unwrap();
    assert_eq!((exit.how, exit.by_agent), (Some(How::Signal(9)), false));

    assert_eq!(host.status("web").await.state(), Starting);
    let again = host.status("web").await;
    assert_eq!((again.state(), again.restarts), (Ready, 1));
    assert_ne!(again.pid, first);
}

#[tokio::test]
async fn a_role_that_hangs_fails_its_liveness_probe_and_comes_back() {
    let mut spec = script("web", "echo $$ > pid; exec sleep 1000");
    spec.liveness = Some(exec("! grep -q '(sleep) T' /proc/$(cat pid)/stat"));
    let (mut host, _) = Host::with_guest(goal([spec])).await;
    let first = ready(&mut host, "web").await;
    send(first, Signal::SIGSTOP);

    let failed = host.until("web", Unhealthy).await;
    let reason = "not live: the probe failed 2 times in a row: exited with status 1";
    assert_eq!(failed.reason, reason);
    let again = host.until("web", Ready).await;
    assert_ne!(again.pid, first);
    let exit = again.last_exit.unwrap();
    assert_eq!(
        exit.how,
        Some(How::Signal(15)),
        "it was continued, so that SIGTERM ended it"
    );
    assert!(exit.by_agent);
}

#[tokio::test]
async fn a_role_that_is_not_ready_is_busy_and_is_left_alone() {
    let mut spec = script("web", FOREVER);
    spec.readiness = Some(exec("test -e open"));
    spec.startup_grace = millis(0);
    let (mut host, _) = Host::with_guest(goal([spec])).await;
    let busy = host.until("web", Busy).await;
    assert!(
        busy.reason.starts_with("not ready: the probe failed"),
        "{}",
        busy.reason
    );

    let open = host.path("role/web/open");
    std::fs::write(&open, "").unwrap();
    let pid = ready(&mut host, "web").await;
    std::fs::remove_file(&open).unwrap();
    let busy = host.until("web", Busy).await;
    assert_eq!((busy.pid, busy.restarts), (pid, 0));
}

#[tokio::test]
async fn ports_are_probed_by_tcp_and_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().into();
    let mut tcp = script("tcp", FOREVER);
    tcp.readiness = Some(check(probe::Check::Tcp(TcpProbe { port })));
    let mut http = script("http", FOREVER);
    http.readiness = Some(check(probe::Check::Http(HttpProbe {
        port,
        path: "/health".into(),
    })));
    http.startup_grace = millis(0);
    let (mut host, _) = Host::with_guest(goal([tcp.clone()])).await;
    ready(&mut host, "tcp").await;

    // It listens, but speaks no HTTP: whoever connects is turned away.
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    host.change_goal(|goal| goal.roles = vec![tcp, http]);
    let busy = host.until("http", Busy).await;
    assert!(
        busy.reason.contains(&format!("port {port}")),
        "{}",
        busy.reason
    );
    serving.abort();
}

#[tokio::test]
async fn a_role_that_crashes_again_and_again_waits_longer_each_time() {
    let (mut host, _) = Host::with_guest(goal([script("web", "exit 3")])).await;
    for (failures, wait) in (1..).zip([20, 40, 80, 160]) {
        let failed = host.until("web", Unhealthy).await;
        let reason = format!("exited with status 3; starts again in {wait} ms");
        assert_eq!(
            (failed.reason, failed.consecutive_failures),
            (reason, failures)
        );
        assert_eq!(failed.restarts, failures - 1);
    }
}

#[tokio::test]
async fn a_role_that_cannot_be_started_says_why() {
    let mut missing = script("missing", "");
    missing.command = vec!["no-such-program".into()];
    let root = RoleSpec {
        uid: 0,
        ..script("root", FOREVER)
    };
    let (mut host, _) = Host::with_guest(goal([missing, root])).await;

    let failed = host.until("missing", Unhealthy).await;
    assert!(
        failed.reason.contains("no-such-program: No such file"),
        "{}",
        failed.reason
    );
    assert!(matches!(
        failed.last_exit.unwrap().how,
        Some(How::SpawnError(_))
    ));

    let (mut host, _) = Host::with_guest(goal([RoleSpec {
        uid: 0,
        ..script("root", FOREVER)
    }]))
    .await;
    let refused = host.until("root", Unhealthy).await;
    assert!(
        refused.reason.starts_with("uid 0 is refused"),
        "{}",
        refused.reason
    );
}

#[tokio::test]
async fn its_policy_says_whether_a_role_that_has_ended_starts_again() {
    let with = |name: &str, end: &str, mode: RestartMode| {
        let mut spec = script(name, end);
        spec.restart_policy.as_mut().unwrap().mode = mode.into();
        spec
    };
    for (name, end, mode, state) in [
        ("done", "exit 0", RestartMode::OnFailure, Stopped),
        ("failed", "exit 1", RestartMode::Never, Unhealthy),
        ("over", "exit 0", RestartMode::Never, Stopped),
    ] {
        let (mut host, _) = Host::with_guest(goal([with(name, end, mode)])).await;
        let status = host.until(name, state).await;
        assert!(
            !status.reason.contains("again"),
            "{name}: {}",
            status.reason
        );
        // A new generation starts it once more all the same.
        host.change_goal(|goal| goal.roles[0].restart_generation += 1);
        assert_eq!(host.until(name, state).await.restarts, 1, "{name}");
    }
}

#[tokio::test]
async fn a_role_that_writes_more_than_can_be_passed_on_is_neither_kept_waiting_nor_kept_whole() {
    let lines = 200_000;
    let writer = format!(
        "until read go < go; do sleep 0.01; done 2> /dev/null; yes 0123456 | head -n {lines}; touch done; {FOREVER}"
    );
    let (mut host, _) = Host::with_guest(goal([script("web", &writer)])).await;
    host.until("web", Ready).await;
    let go = host.path("role/web/go");
    // While nobody listens, all of it is written, and little of it is kept.
    host.vanish();
    std::fs::write(&go, "go\n").unwrap();
    let done = host.path("role/web/done");
    eventually("the role has written everything", || done.exists()).await;
    host.serve();
    // What its successor writes comes after everything that was kept.
    host.change_goal(|goal| goal.roles[0] = script("web", "echo; echo end; exec sleep 1000"));
    let (output, dropped) = host.output(LogStream::Stdout, "\nend\n").await;
    assert!(output.len() <= 256 * 1024, "{} bytes kept", output.len());
    assert!(dropped > 0 && dropped < 8 * lines, "{dropped} bytes lost");
}

#[tokio::test]
async fn the_guest_agent_comes_back_to_a_host_agent_that_died_and_says_everything_again() {
    let (mut host, _) = Host::with_guest(goal([script("web", FOREVER)])).await;
    let pid = ready(&mut host, "web").await;
    host.forget();
    host.vanish();
    host.serve();
    let hello = host.hello().await;
    assert_eq!((hello.boot_id.len(), hello.applied_incarnation), (36, 1));
    let status = host.status("web").await;
    assert_eq!(
        (status.state(), status.pid, status.restarts),
        (Ready, pid, 0)
    );
}

#[tokio::test]
async fn a_goal_with_a_lower_incarnation_is_ignored() {
    let (mut host, _) = Host::with_guest(goal([script("web", FOREVER)])).await;
    host.change_goal(|goal| goal.roles.push(script("other", FOREVER)));
    ready(&mut host, "other").await;
    host.set_goal(goal([script("old", FOREVER)]));
    // Two of them: the goal was on its way for a whole period at least.
    host.forget();
    for _ in 0..2 {
        assert_eq!(heartbeat(&mut host).await.applied_incarnation, 2);
    }
    assert_eq!(
        children(host.agent_pid()).len(),
        2,
        "web and other run as before"
    );

    host.set_goal(Goal {
        incarnation: 3,
        ..goal([script("new", FOREVER)])
    });
    host.until("web", Stopped).await;
    host.until("other", Stopped).await;
    let new = host.until("new", Ready).await;
    assert_eq!(
        children(host.agent_pid()),
        [i32::try_from(new.pid).unwrap()]
    );
}

#[tokio::test]
async fn a_role_is_restarted_once_for_a_new_generation_and_not_for_new_probes() {
    let (mut host, _) = Host::with_guest(goal([script("web", FOREVER)])).await;
    let first = ready(&mut host, "web").await;
    host.change_goal(|goal| {
        goal.roles[0].readiness = Some(exec("test -e open"));
        goal.roles[0].stop_grace = millis(3_000);
    });
    let busy = host.until("web", Busy).await;
    assert_eq!(busy.pid, first, "new probes are applied as it runs");

    host.change_goal(|goal| {
        goal.roles[0].readiness = None;
        goal.roles[0].restart_generation = 1;
    });
    assert_eq!(host.until("web", Starting).await.restart_generation, 1);
    let second = host.until("web", Ready).await;
    assert_ne!(second.pid, first);
    assert_eq!((second.restarts, second.consecutive_failures), (1, 0));

    host.change_goal(|goal| goal.roles[0].settings = [("a".to_owned(), "b".to_owned())].into());
    let third = loop {
        let pid = ready(&mut host, "web").await;
        if pid != second.pid {
            break pid;
        }
    };
    assert!(exists(third) && !exists(second.pid));
}

#[tokio::test]
async fn a_role_that_is_not_wanted_any_more_is_stopped_gracefully_with_all_its_processes() {
    let stubborn = "sleep 1000 & echo $! > child; trap 'echo bye; exit 0' TERM; echo set; wait";
    let (mut host, _) = Host::with_guest(goal([script("web", stubborn)])).await;
    ready(&mut host, "web").await;
    host.output(LogStream::Stdout, "set\n").await;
    let child = std::fs::read_to_string(host.path("role/web/child")).unwrap();
    host.change_goal(|goal| goal.roles.clear());
    host.output(LogStream::Stdout, "bye\n").await;
    let stopped = host.until("web", Stopped).await;
    assert_eq!(stopped.reason, "the goal does not have it");
    assert_eq!(stopped.last_exit.unwrap().how, Some(How::ExitCode(0)));
    let child = child.trim().parse().unwrap();
    eventually("what it left behind has ended", || !exists(child)).await;
    let settings = host.path("run/web");
    eventually("its settings are gone", || !settings.exists()).await;
}

#[tokio::test]
async fn a_role_that_does_not_stop_is_killed_after_its_grace() {
    let mut spec = script(
        "web",
        "trap '' TERM; echo set; while :; do sleep 1000; done",
    );
    spec.stop_grace = millis(50);
    let (mut host, _) = Host::with_guest(goal([spec])).await;
    host.output(LogStream::Stdout, "set\n").await;
    host.change_goal(|goal| goal.roles.clear());
    let stopped = host.until("web", Stopped).await;
    let exit = stopped.last_exit.unwrap();
    assert_eq!((exit.how, exit.by_agent), (Some(How::Signal(9)), true));
}

#[tokio::test]
async fn how_long_a_role_has_to_stop_is_what_the_goal_says_that_ends_it() {
    let mut spec = script(
        "web",
        "trap '' TERM; echo set; while :; do sleep 1000; done",
    );
    spec.stop_grace = millis(3_600_000);
    let (mut host, _) = Host::with_guest(goal([spec])).await;
    host.output(LogStream::Stdout, "set\n").await;
    host.change_goal(|goal| {
        goal.power = GuestPower::Off.into();
        goal.roles[0].stop_grace = millis(50);
    });
    let stopped = host.until("web", Stopped).await;
    let exit = stopped.last_exit.unwrap();
    assert_eq!((exit.how, exit.by_agent), (Some(How::Signal(9)), true));
    assert!(host.agent_exit().await.success());
}

#[tokio::test]
async fn orphans_are_buried_and_do_not_pass_for_the_role() {
    // A grandchild that becomes the guest agent's child, and ends.
    let script_text = "(sh -c 'echo $$ > orphan; exec sleep 0.05' &) ; exec sleep 1000";
    let (mut host, _) = Host::with_guest(goal([script("web", script_text)])).await;
    let pid = ready(&mut host, "web").await;
    let path = host.path("role/web/orphan");
    let orphan = || std::fs::read_to_string(&path).ok()?.trim().parse().ok();
    eventually("the orphan has ended and is buried", || {
        orphan().is_some_and(|orphan: u32| !exists(orphan))
    })
    .await;
    assert!(exists(pid));
    assert_eq!(children(host.agent_pid()), [i32::try_from(pid).unwrap()]);
}

#[tokio::test]
async fn it_goes_down_in_order_when_the_goal_or_a_signal_says_so() {
    let goodbye = |report: &Report| match report {
        Report::Goodbye(goodbye) => Some((goodbye.reason(), goodbye.asked_by_goal)),
        _ => None,
    };
    let (mut host, _) = Host::with_guest(goal([script("web", FOREVER)])).await;
    let pid = ready(&mut host, "web").await;
    host.change_goal(|goal| goal.power = GuestPower::Off.into());
    assert_eq!(
        host.until("web", Stopped).await.reason,
        "the guest is going down"
    );
    assert_eq!(host.report(goodbye).await, (GoodbyeReason::PowerOff, true));
    assert!(host.agent_exit().await.success());
    assert!(!exists(pid));

    let (mut host, _) = Host::with_guest(goal([script("web", FOREVER)])).await;
    ready(&mut host, "web").await;
    host.signal_agent(Signal::SIGTERM);
    assert_eq!(host.report(goodbye).await, (GoodbyeReason::Reboot, false));
    assert!(host.agent_exit().await.success());
}

#[tokio::test]
async fn a_vm_role_without_a_command_is_the_machine_and_has_only_probes() {
    let mut spec = script("vm", "");
    spec.command.clear();
    spec.kind = RoleKind::Vm.into();
    spec.liveness = Some(exec("test ! -e broken"));
    let (mut host, _) = Host::with_guest(goal([spec])).await;
    assert_eq!(ready(&mut host, "vm").await, 0);
    std::fs::write(host.path("role/vm/broken"), "").unwrap();
    assert_eq!(host.until("vm", Unhealthy).await.pid, 0);
    std::fs::remove_file(host.path("role/vm/broken")).unwrap();
    ready(&mut host, "vm").await;
}

#[tokio::test]
async fn a_check_that_takes_too_long_fails_and_leaves_nothing_behind() {
    let mut spec = script("web", FOREVER);
    let mut slow = exec("echo $$ > probe; sleep 1000; true");
    slow.timeout = millis(30);
    slow.failure_threshold = 1;
    spec.readiness = Some(slow);
    spec.startup_grace = millis(0);
    let (mut host, _) = Host::with_guest(goal([spec])).await;
    let busy = host.until("web", Busy).await;
    assert!(
        busy.reason.ends_with("no answer within 30 ms"),
        "{}",
        busy.reason
    );
    host.change_goal(|goal| goal.roles[0].readiness = None);
    host.until("web", Ready).await;
    let pid = host.agent_pid();
    eventually("only the role is left", || children(pid).len() == 1).await;
}

#[tokio::test]
async fn states_are_told_in_order() {
    let (mut host, _) = Host::with_guest(goal([script("web", "sleep 0.05; exit 1")])).await;
    let states: Vec<RoleState> = host.states("web", 5).await;
    assert_eq!(states, [Starting, Ready, Unhealthy, Starting, Ready]);
}

#[tokio::test]
async fn outside_a_guest_it_refuses_to_run_without_being_told_where_to_connect() {
    let run = |arguments: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_guest-agent"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let refused = run(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not process 1 of a guest"));
    let help = run(&["--help"]);
    assert!(help.status.success() && help.stdout.starts_with(b"The guest agent:"));
}
