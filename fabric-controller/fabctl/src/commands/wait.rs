//! Waiting until a service is as it should be.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use fabric_proto::v1::{Instance, WatchInstancesRequest};
use indicatif::{ProgressBar, ProgressDrawTarget};
use tokio::time;
use tonic::Code;

use super::Context;
use crate::error::{Failure, Result};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// So many instances are there, and all are Ready.
    Ready(usize),
    /// No instance is left.
    Gone,
}

impl Until {
    fn holds(self, instances: &BTreeMap<String, Instance>) -> bool {
        match self {
            Self::Ready(count) => {
                instances.len() == count && instances.values().all(|one| one.state == "Ready")
            }
            Self::Gone => instances.is_empty(),
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Ready(_) => "ready",
            Self::Gone => "gone",
        }
    }
}

/// How long a controller that does not answer is waited for before asking again.
const AGAIN: Duration = Duration::from_millis(500);

/// Waits for a service's instances, and says on standard error how they are.
pub(super) async fn wait(
    context: &Context,
    service: &str,
    until: Until,
    at_most: Duration,
) -> Result<()> {
    let bar = ProgressBar::with_draw_target(
        None,
        if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        },
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut instances = BTreeMap::new();
    let waiting = follow(context, service, until, &mut instances, &bar);
    let done = time::timeout(at_most, waiting).await;
    bar.finish_and_clear();
    match done {
        Ok(done) => done,
        Err(_) => Err(Failure::TimedOut(format!(
            "service {service} is not {} after {}: {}",
            until.words(),
            humantime::format_duration(at_most),
            summary(&instances)
        ))),
    }
}

/// Follows the instances; a controller that is restarted is asked again.
async fn follow(
    context: &Context,
    service: &str,
    until: Until,
    instances: &mut BTreeMap<String, Instance>,
    bar: &ProgressBar,
) -> Result<()> {
    loop {
        match follow_once(context, service, until, instances, bar).await {
            Err(Failure::Call(status)) if status.code() == Code::Unavailable => {
                time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn follow_once(
    context: &Context,
    service: &str,
    until: Until,
    instances: &mut BTreeMap<String, Instance>,
    bar: &ProgressBar,
) -> Result<()> {
    let request = WatchInstancesRequest {
        service: service.to_owned(),
    };
    // Whoever is not there sends nothing: ask for the list as well.
    let list = fabric_proto::v1::ListInstancesRequest {
        service: service.to_owned(),
    };
    let listed = context
        .client
        .instances()
        .list_instances(list)
        .await?
        .into_inner()
        .instances;
    *instances = listed
        .into_iter()
        .map(|one| (one.instance_id.clone(), one))
        .collect();
    let mut changes = context
        .client
        .instances()
        .watch_instances(request)
        .await?
        .into_inner();
    while !until.holds(instances) {
        bar.set_message(summary(instances));
        let Some(change) = changes.message().await? else {
            return Err(tonic::Status::unavailable("the controller has ended the watch").into());
        };
        let Some(instance) = change.instance else {
            continue;
        };
        if change.deleted {
            instances.remove(&instance.instance_id);
        } else {
            instances.insert(instance.instance_id.clone(), instance);
        }
    }
    Ok(())
}

/// The instances in one line.
fn summary(instances: &BTreeMap<String, Instance>) -> String {
    if instances.is_empty() {
        return "there is no instance".to_owned();
    }
    let each: Vec<_> = instances
        .values()
        .map(|one| {
            let reason = if one.reason.is_empty() {
                String::new()
            } else {
                format!(" ({})", crate::show::clean(&one.reason))
            };
            format!("{} {}{reason}", one.instance_id, one.state)
        })
        .collect();
    each.join(", ")
}
