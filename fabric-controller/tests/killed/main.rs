//! The real program, killed at every fail point of everything that it changes: nothing
//! that it has acknowledged is lost, and nothing that is half done stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod calls;
mod course;
mod files;
#[path = "../whole/framework.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod framework;
mod maintenance;
mod own;
#[path = "../whole/program.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod program;
mod said;
mod stage;
#[path = "../whole/then.rs"]
mod then;

use fabric_controller::fail_point::Step;

/// What there are steps of, and so tests here.
const WALKED: [&str; 9] = [
    "call", "upload", "discard", "delete", "open", "migrate", "init", "backup", "restore",
];

/// The steps of one thing.
fn steps(of: &'static str) -> impl Iterator<Item = Step> {
    let all = Step::ALL.iter();
    all.filter(move |(what, _)| *what == of)
        .map(|(_, step)| *step)
}

#[test]
fn every_step_is_walked() {
    for (of, step) in Step::ALL {
        assert!(
            WALKED.contains(of),
            "no test walks {step:?}, a step of {of}"
        );
    }
}
