//! Runs the stories of one file, one after another: the machine has few cores and
//! a guest takes one.

use std::{env, fs::OpenOptions, future::Future, pin::Pin, process::ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::process::take_last_words;

/// A story: an async function that tells it.
pub type Told = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// One test of a file.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// What it promises, as a sentence in snake case.
    pub name: &'static str,
    /// Whether it needs `/dev/kvm`.
    pub needs_kvm: bool,
    /// Tells it.
    pub tell: fn() -> Told,
}

/// Makes a [`Story`] of an async function that takes nothing and may fail.
#[macro_export]
macro_rules! story {
    ($name:ident) => {
        $crate::Story {
            name: stringify!($name),
            needs_kvm: true,
            tell: || Box::pin($name()),
        }
    };
    ($name:ident, without_kvm) => {
        $crate::Story {
            name: stringify!($name),
            needs_kvm: false,
            tell: || Box::pin($name()),
        }
    };
}

/// Runs them as a test program does.
#[must_use]
pub fn run(stories: &[Story]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let missing = kvm_missing();
    if let Some(reason) = &missing {
        eprintln!("skipped: tests that need KVM: {reason}");
    }
    let trials = stories.iter().copied().map(|story| {
        let skip = story.needs_kvm && missing.is_some() && !kvm_required();
        Trial::test(story.name, move || tell(story)).with_ignored_flag(skip)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn tell(story: Story) -> Result<(), Failed> {
    let runtime = tokio::runtime::Runtime::new()?;
    take_last_words();
    runtime.block_on((story.tell)()).map_err(|error| {
        let logs = take_last_words().join("\n");
        format!("{error:#}\n{logs}").into()
    })
}

fn kvm_required() -> bool {
    env::var_os("FABRIC_REQUIRE_KVM").is_some_and(|value| value == "1")
}

fn kvm_missing() -> Option<String> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opened.err().map(|error| format!("/dev/kvm: {error}"))
}
