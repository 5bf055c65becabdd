//! Runs the stories, as many at once as there are processors, but those alone that
//! look at what others would disturb.

use std::{
    env,
    fs::OpenOptions,
    future::Future,
    pin::Pin,
    process::ExitCode,
    sync::{PoisonError, RwLock},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::process::take_last_words;

/// A story: an async function that tells it.
pub type Told = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// One test of a file.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// What it promises, as a sentence in snake case.
    pub name: &'static str,
    /// The module that it is in.
    pub module: &'static str,
    /// Whether it needs `/dev/kvm`.
    pub needs_kvm: bool,
    /// Whether no other may be told meanwhile.
    pub alone: bool,
    /// Tells it.
    pub tell: fn() -> Told,
}

/// Makes a [`Story`] of an async function that takes nothing and may fail; more is said
/// of it as of a struct: `story!(it_is_fair, alone: true)`.
#[macro_export]
macro_rules! story {
    ($name:ident $(, $field:ident: $value:expr)* $(,)?) => {
        $crate::Story {
            $($field: $value,)*
            ..$crate::Story::new(stringify!($name), module_path!(), || Box::pin($name()))
        }
    };
}

impl Story {
    /// One that needs KVM, and does not mind others.
    #[must_use]
    pub const fn new(name: &'static str, module: &'static str, tell: fn() -> Told) -> Self {
        Self {
            name,
            module,
            needs_kvm: true,
            alone: false,
            tell,
        }
    }

    /// Its module in the test program, and its name.
    fn path(&self) -> String {
        let (_, module) = self.module.split_once("::").unwrap_or_default();
        format!("{module}::{}", self.name)
    }
}

/// Runs them as a test program does.
#[must_use]
pub fn run(files: &[&[Story]]) -> ExitCode {
    let missing = kvm_missing();
    if let Some(reason) = &missing {
        eprintln!("skipped: tests that need KVM: {reason}");
    }
    let trials = files.concat().into_iter().map(|story| {
        let skip = story.needs_kvm && missing.is_some() && !kvm_required();
        Trial::test(story.path(), move || tell(story)).with_ignored_flag(skip)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Shared by all who do not mind others.
static MACHINE: RwLock<()> = RwLock::new(());

fn tell(story: Story) -> Result<(), Failed> {
    let (_alone, _shared) = if story.alone {
        let alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        (Some(alone), None)
    } else {
        let shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        (None, Some(shared))
    };
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
