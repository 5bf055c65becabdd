//! The command line.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use fabric_metrics::serve::Address as MetricsAddress;
use fabric_proto::{
    id::NodeId,
    label::{MOST_KINDS, each_once, label, resource},
};
use fabric_trust::{address::Address, token::JoinToken};
use fabric_vmm::jail::Isolation;

use crate::{
    hypervisor::{jails::Jails, users::UserRange},
    lease,
    metrics::Metrics,
    preflight::{self, Finding, Preflight},
    privileges,
    serve::{self, Listen, Options},
    template::prune::Keep,
};

/// Drives one node's virtual machines to what the controller wants of them.
///
/// The host agent dials the controller, is given the node's whole goal state, and
/// starts, watches, restarts and stops one virtual machine per instance. It works
/// on while the controller is away, and a host agent that is started again finds
/// the virtual machines of the one before and takes them over undisturbed.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  host-agent check --kernel vmlinux --data-dir /var/lib/fabric
  host-agent join fabric.lab:7070 --token TOKEN --data-dir /var/lib/fabric
  host-agent serve --data-dir /var/lib/fabric --kernel vmlinux
  host-agent completions bash > /etc/bash_completion.d/host-agent

Exit status: 0 done, 1 failed, 2 wrong usage, 3 this machine cannot run guests.

RUST_LOG sets what is logged, for example RUST_LOG=host_agent=debug.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<Serve>),
    Join(Join),
    Check(Check),
    /// Prints what `serve --metrics-listen` counts and measures, as Markdown.
    Metrics,
    /// Kills what runs in a data directory while its lease is over; `serve` starts it.
    #[command(name = lease::keeper::COMMAND, hide = true)]
    KeepLease {
        /// The data directory.
        #[arg(long)]
        data_dir: PathBuf,
    },
    /// Prints the steps at which this program, and its VMM, can be ended.
    #[cfg(feature = "fail-points")]
    FailPoints,
    /// Prints completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Where things are on this machine.
#[derive(Debug, Args)]
struct Machine {
    /// Where everything is kept: images, disks, records. For one host agent alone.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The guests' kernel: an ELF vmlinux or a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The virtual machine monitor [default: fabric-vmm beside this program].
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
}

/// How virtual machines are kept apart.
#[derive(Debug, Args)]
struct IsolationArgs {
    /// User and group ids that nobody else has, FIRST-LAST: each virtual machine is one of
    /// them [default: the first 65536 from 600000 on that no other host agent of this
    /// machine has].
    #[arg(long, value_name = "RANGE")]
    uid_range: Option<UserRange>,
    /// Runs virtual machines although the host lacks this for their jails: uid, user,
    /// pid, mount, network, ipc, uts, landlock, seccomp or cgroup; can be given several
    /// times. Without it, nothing is served where something is missing.
    #[arg(long = "allow-missing-isolation", value_name = "NAME")]
    allow_missing: Vec<Isolation>,
    /// The control group, below where each hierarchy is mounted, in which those of
    /// virtual machines are made [default: the one that this process is in].
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

/// Joins a controller's cluster with a token, once; `serve` then needs to be told neither.
///
/// `fabric-controller token create --node NAME` on the controller's machine makes the
/// token. By the fingerprint in it the controller is known before the token is shown to
/// it. What is got is a certificate that names this node: it is kept in the data
/// directory, mode 0600, and `serve` renews it. Run it again to join anew.
#[derive(Debug, Args)]
struct Join {
    /// The controller: HOST:PORT.
    #[arg(value_name = "ADDRESS")]
    controller: Address,
    /// The token.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "FABRIC_JOIN_TOKEN",
        hide_env_values = true
    )]
    token: JoinToken,
    /// Where everything is kept, for `serve` too.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// This node's name, where the token says none.
    #[arg(long, value_name = "NAME")]
    node_id: Option<NodeId>,
}

/// Serves this node until SIGTERM or SIGINT.
///
/// Virtual machines run on when it ends, whatever ends it, for as long as the node's
/// lease does (see `fabric-controller serve --lease`): start it again with the same data
/// directory to take them over. With --stop-vms-on-exit, SIGTERM and
/// SIGINT stop them first; nothing else does.
#[derive(Debug, Args)]
struct Serve {
    /// The controller: HOST:PORT, or unix:PATH, which needs no certificate
    /// [default: the one that this node has joined].
    #[arg(long, value_name = "ADDRESS")]
    controller: Option<Address>,
    /// This node's name in the cluster [default: the one under which it has joined].
    #[arg(long, value_name = "NAME")]
    node_id: Option<NodeId>,
    #[command(flatten)]
    machine: Machine,
    /// How often to report at least, until the controller says otherwise.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    heartbeat: Duration,
    /// How often guests give a sign of life; after three missed ones they are restarted.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    guest_heartbeat: Duration,
    /// How long a guest may take from its start until its agent says hello.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    boot_deadline: Duration,
    /// Lets guests be told to fail in certain ways, for tests and demonstrations.
    #[arg(long)]
    fault_injection: bool,
    /// A label of this node; can be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// So many resources of your own kind, such as GPUs, for sizes that take some; can be
    /// given several times. They are counted: no guest is given anything of them.
    #[arg(long = "resource", value_name = "NAME=COUNT", value_parser = resource)]
    resources: Vec<(String, u64)>,
    /// Where to serve health and reflection: unix:PATH
    /// [default: unix:DATA_DIR/host-agent.sock].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<Listen>,
    /// Where to serve metrics for Prometheus, by HTTP at /metrics: a port of loopback,
    /// such as 127.0.0.1:9470, or unix:PATH. Whoever can reach it can read them, without
    /// being asked who they are; nothing can be changed there [default: nowhere].
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<MetricsAddress>,
    /// Whether web and worker instances are copied from templates: guests that were
    /// booted once, and wait where their agent first calls. Off, each instance boots.
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "on")]
    templates: Switch,
    /// Where templates are kept; several host agents of this machine can share it
    /// [default: DATA_DIR/templates].
    #[arg(long, value_name = "DIR")]
    template_dir: Option<PathBuf>,
    /// Removes a template that no instance has been made from for so long.
    #[arg(long, value_name = "TIME", default_value = "7days", value_parser = humantime::parse_duration)]
    template_max_age: Duration,
    /// Removes the templates used longest ago when they have more than this together.
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    template_max_size: ByteSize,
    #[command(flatten)]
    isolation: IsolationArgs,
    /// Stops all virtual machines gracefully before ending on SIGTERM or SIGINT.
    #[arg(long)]
    stop_vms_on_exit: bool,
}

/// Says whether this machine can run guests, and what to do if it cannot.
#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    isolation: IsolationArgs,
    /// How to print it.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            fabric_vmm::say!("host-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "host-agent", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Metrics => {
            print!("{}", Metrics::default().list().markdown());
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "fail-points")]
        Command::FailPoints => {
            let ours = crate::fail_point::Step::ALL.iter();
            ours.for_each(|(of, step)| println!("host-agent {of} {step:?}"));
            let vmm = fabric_vmm::fail_point::Step::ALL.iter();
            vmm.for_each(|(of, step)| println!("fabric-vmm {of} {step:?}"));
            Ok(ExitCode::SUCCESS)
        }
        Command::KeepLease { data_dir } => {
            privileges::keep_needed().context("cannot give up rights that are not needed")?;
            lease::keeper::run(&data_dir)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Join(join) => {
            let Join {
                controller,
                token,
                data_dir,
                node_id,
            } = join;
            let joined = serve::join(&controller, &token, node_id.as_ref(), &data_dir);
            let node = runtime()?.block_on(joined)?;
            println!(
                "joined {controller} as {node}; next: host-agent serve --data-dir {}",
                data_dir.display()
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(check) => runtime()?.block_on(show_check(check)),
        Command::Serve(options) => {
            log();
            privileges::keep_needed().context("cannot give up rights that are not needed")?;
            runtime()?.block_on(serve::serve(options.into_options()?))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // They are told on standard error, with a panic where that cannot be written.
        .log_internal_errors(false)
        .init();
}

impl Machine {
    fn vmm(&self) -> anyhow::Result<PathBuf> {
        match &self.vmm {
            Some(path) => Ok(path.clone()),
            None => {
                let own = std::env::current_exe().context("cannot find this program's file")?;
                Ok(own.with_file_name("fabric-vmm"))
            }
        }
    }
}

impl Serve {
    fn into_options(self) -> anyhow::Result<Options> {
        Ok(Options {
            vmm: self.machine.vmm()?,
            controller: self.controller,
            node_id: self.node_id,
            data_dir: self.machine.data_dir,
            kernel: self.machine.kernel,
            heartbeat: self.heartbeat,
            guest_heartbeat: self.guest_heartbeat,
            boot_deadline: self.boot_deadline,
            fault_injection: self.fault_injection,
            labels: each_once("--label", self.labels).map_err(anyhow::Error::msg)?,
            resources: resources(self.resources)?,
            listen: self.listen,
            metrics_listen: self.metrics_listen,
            stop_vms_on_exit: self.stop_vms_on_exit,
            jails: self.isolation.into_jails(),
            templates: self.templates == Switch::On,
            template_dir: self.template_dir,
            template_keep: Keep {
                longest: self.template_max_age,
                most_bytes: self.template_max_size.as_u64(),
            },
        })
    }
}

impl IsolationArgs {
    fn into_jails(self) -> Jails {
        Jails {
            users: self.uid_range,
            allow_missing: self.allow_missing,
            cgroup: self.cgroup,
        }
    }
}

async fn show_check(check: Check) -> anyhow::Result<ExitCode> {
    let machine = check.machine;
    let jails = check.isolation.into_jails();
    let vmm = machine.vmm()?;
    let found = preflight::run(&vmm, &machine.kernel, &machine.data_dir, &jails).await;
    match check.output {
        Output::Json => println!("{}", serde_json::to_string(&found)?),
        Output::Table => print_table(&found),
    }
    Ok(if found.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

fn print_table(found: &Preflight) {
    for check in &found.checks {
        let finding = match check.finding {
            Finding::Good => "good",
            Finding::Warning => "warning",
            Finding::Bad => "BAD",
        };
        println!("{:<10} {finding:<8} {}", check.name, check.detail);
        if !check.remedy.is_empty() {
            println!("{:<19} do: {}", "", check.remedy);
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(50)..=Duration::from_secs(3600);
    if allowed.contains(&time) {
        Ok(time)
    } else {
        Err("must be 50ms to 1h".to_owned())
    }
}

/// Not more kinds than a node can have.
fn resources(said: Vec<(String, u64)>) -> anyhow::Result<BTreeMap<String, u64>> {
    let all = each_once("--resource", said).map_err(anyhow::Error::msg)?;
    let kinds = all.len();
    anyhow::ensure!(
        kinds <= MOST_KINDS,
        "--resource: there are {kinds} kinds; {MOST_KINDS} are the most"
    );
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_node_has_resources_of_some_kinds_each_said_once() {
        let kinds = |count: usize| (0..count).map(|kind| (format!("kind-{kind}"), 1)).collect();
        assert_eq!(resources(kinds(MOST_KINDS)).unwrap().len(), MOST_KINDS);
        assert!(resources(kinds(MOST_KINDS + 1)).is_err());
        let twice = resources([kinds(1), kinds(1)].concat()).unwrap_err();
        assert!(twice.to_string().contains("kind-0=1"), "{twice}");
    }

    #[test]
    fn only_a_unix_socket_can_be_listened_on() {
        for wrong in ["0.0.0.0:1", "127.0.0.1:7070", "localhost", "/x"] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong} was taken");
        }
        assert_eq!("unix:/x/y".parse(), Ok(Listen::Unix("/x/y".into())));
    }
}
