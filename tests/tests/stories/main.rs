//! The whole system on real KVM, one file for each promise.
//!
//! One program tells them all, as many at once as there are processors: a story waits
//! as often as its guests work.

mod bad_input;
mod boot_to_ready;
mod both_restart;
mod bus_under_abuse;
mod certificates;
mod controller_restarts;
mod create_and_delete;
mod disk_is_thrown_away;
mod guest_agent_failures;
mod guest_goes_down;
mod host_agent_restarts;
mod isolation;
mod killed_at_every_step;
mod limits;
mod metrics;
mod node_failures;
mod pauses_and_snapshots;
mod resets;
mod role_failures;
mod stopped_by_hand;
mod templates;
mod two_guests;
mod upgrades;
mod upload_resumed;
mod vcpus;
mod vmm_killed;
mod warm_starts;

use std::process::ExitCode;

fn main() -> ExitCode {
    fabric_tests::run(&[
        bad_input::STORIES,
        boot_to_ready::STORIES,
        both_restart::STORIES,
        bus_under_abuse::STORIES,
        certificates::STORIES,
        controller_restarts::STORIES,
        create_and_delete::STORIES,
        disk_is_thrown_away::STORIES,
        guest_agent_failures::STORIES,
        guest_goes_down::STORIES,
        host_agent_restarts::STORIES,
        isolation::STORIES,
        killed_at_every_step::STORIES,
        limits::STORIES,
        metrics::STORIES,
        node_failures::STORIES,
        pauses_and_snapshots::STORIES,
        resets::STORIES,
        role_failures::STORIES,
        stopped_by_hand::STORIES,
        templates::STORIES,
        two_guests::STORIES,
        upgrades::STORIES,
        upload_resumed::STORIES,
        vcpus::STORIES,
        vmm_killed::STORIES,
        warm_starts::STORIES,
    ])
}
