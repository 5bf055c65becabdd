//! `fabric-vmm jail`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use fabric_vmm::config::JailConfig;
use fabric_vmm::jail::{self, Isolation, Limits, Missing, ThreadKind, Trial};

/// Say what this host isolates machines by, by trying; started as they are.
///
/// Gives up what a machine gives up before its guest runs, with this directory as
/// the one that it still sees, and prints one JSON object: what is in force, and
/// what is missing, why, and what to do about it. The host agent asks this before it
/// takes any machine.
#[derive(Debug, Args)]
pub struct JailArgs {
    /// The directory that is left.
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// The user to become.
    #[arg(long, value_name = "ID")]
    uid: u32,
    /// The group to become.
    #[arg(long, value_name = "ID")]
    gid: u32,
    /// What whoever starts this has seen to.
    #[arg(long, value_name = "NAME")]
    given: Vec<Isolation>,
}

/// What a trial may have.
const LIMITS: Limits = Limits {
    descriptors: 16,
    // What it prints.
    file_bytes: 64 * 1024,
    threads: 1,
};

/// Tries, and prints what was found.
pub fn run(args: JailArgs) -> ExitCode {
    let config = JailConfig {
        uid: args.uid,
        gid: args.gid,
        directory: Some(args.directory),
        given: args.given,
        allow_missing: Isolation::ALL.to_vec(),
        ends_with: None,
    };
    let tried = jail::enter(&config).map_err(anyhow::Error::from);
    let tried = tried.and_then(|jail| {
        jail.limit(&LIMITS)?;
        jail.calls.confine(ThreadKind::EventLoop)?;
        Ok(jail)
    });
    match tried {
        Ok(jail) => {
            let missing = jail.missing.into_iter();
            let trial = Trial {
                isolation: jail.isolation,
                missing: missing.map(|(name, why)| Missing::new(name, why)).collect(),
            };
            println!("{}", serde_json::to_string(&trial).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => {
            fabric_vmm::say!("fabric-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
