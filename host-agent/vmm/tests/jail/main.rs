//! Whether the jail holds: a VMM that belongs to its guest by now tries to leave.
//!
//! Each attempt is a process of its own, started and jailed as a virtual machine's
//! is, beside another machine and the sockets of a host agent and a controller. It is
//! made twice: as it is, and without the lists of system calls, where the rest of the
//! jail has to hold by itself. Before each, the same is done without a jail, to show
//! that it would succeed: what fails for anyone proves nothing.
//!
//! Each says beforehand what is seen of it (`attempts::Seen`): the signal by which the
//! call kills the process, the limit of its control group that does, or the kernel's
//! answer where what is wanted is not there.
//!
//! This binary is both the tests and, started as `compromised`, what they start.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod attempts;
mod calls;
mod house;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use attempts::ATTEMPTS;
use fabric_vmm::jail::ThreadKind;
use house::{House, Walls};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("compromised") => return house::compromised(&arguments[1..]),
        Some("calls") => return calls::try_all(&arguments[1..]),
        Some("arguments") => return calls::try_arguments(&arguments[1..]),
        Some("panic") => return calls::panic_once(&arguments[1..]),
        Some("memory") => return calls::handle_memory(&arguments[1..]),
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    // Processes are started by a thread that is alone.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for attempt in &ATTEMPTS {
        for walls in [Walls::All, Walls::WithoutCallLists] {
            let name = format!("a_compromised_vmm_cannot_{}_{walls}", attempt.name);
            let trial = Trial::test(name, move || {
                House::build().shows_that_nothing_comes_of(attempt, walls);
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!house::is_to_be_built()));
        }
    }
    for kind in ThreadKind::ALL {
        let name = format!("a_call_that_is_not_listed_kills_{}", calls::name(kind));
        trials.push(Trial::test(name, move || {
            calls::every_unlisted_one_kills(kind);
            Ok(())
        }));
        let name = format!(
            "a_listed_call_with_another_argument_kills_{}",
            calls::name(kind)
        );
        trials.push(Trial::test(name, move || {
            calls::every_unlisted_argument_kills(kind);
            Ok(())
        }));
        let name = format!("a_panic_is_told_of_{}", calls::name(kind));
        trials.push(Trial::test(name, move || {
            calls::a_panic_is_told(kind);
            Ok(())
        }));
        let name = format!(
            "memory_of_another_thread_is_no_crime_of_{}",
            calls::name(kind)
        );
        trials.push(Trial::test(name, move || {
            calls::memory_of_another_thread_is_no_crime(kind);
            Ok(())
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
