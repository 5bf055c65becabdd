//! Waiting until instances are as they should be.

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
    fn holds(self, instances: &Instances) -> bool {
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

/// Instances, by id.
type Instances = BTreeMap<String, Instance>;

/// What is waited for, in full.
#[derive(Clone, Copy)]
pub(super) struct Awaited<'a> {
    /// What it is about, for people.
    pub(super) subject: &'a str,
    /// What it should be, for people.
    pub(super) words: &'a str,
    /// Whose instances are looked at; all if empty.
    pub(super) service: &'a str,
    /// The one that is looked at, if it is one.
    pub(super) only: Option<&'a str>,
    /// Whether it has come about; an error if it never will.
    pub(super) holds: &'a (dyn Fn(&Instances) -> Result<bool> + Sync),
}

/// Waits for a service's instances, and says on standard error how they are.
pub(super) async fn wait(
    context: &Context,
    service: &str,
    until: Until,
    at_most: Duration,
) -> Result<()> {
    let awaited = Awaited {
        subject: &format!("service {service}"),
        words: until.words(),
        service,
        only: None,
        holds: &|instances| Ok(until.holds(instances)),
    };
    wait_for(context, awaited, at_most).await
}

/// Waits, and says on standard error how things are.
pub(super) async fn wait_for(
    context: &Context,
    awaited: Awaited<'_>,
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
    let waiting = follow(context, awaited, &mut instances, &bar);
    let done = time::timeout(at_most, waiting).await;
    bar.finish_and_clear();
    match done {
        Ok(done) => done,
        Err(_) => Err(Failure::TimedOut(format!(
            "{} is not {} after {}: {}",
            awaited.subject,
            awaited.words,
            humantime::format_duration(at_most),
            summary(&instances)
        ))),
    }
}

/// Follows the instances; a controller that is restarted is asked again.
async fn follow(
    context: &Context,
    awaited: Awaited<'_>,
    instances: &mut Instances,
    bar: &ProgressBar,
) -> Result<()> {
    loop {
        match follow_once(context, awaited, instances, bar).await {
            Err(Failure::Call(status)) if status.code() == Code::Unavailable => {
                time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn follow_once(
    context: &Context,
    awaited: Awaited<'_>,
    instances: &mut Instances,
    bar: &ProgressBar,
) -> Result<()> {
    let request = WatchInstancesRequest {
        service: awaited.service.to_owned(),
    };
    let is_looked_at = |one: &Instance| awaited.only.is_none_or(|id| one.instance_id == id);
    // Whoever is not there sends nothing: ask for the list as well.
    let list = fabric_proto::v1::ListInstancesRequest {
        service: awaited.service.to_owned(),
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
        .filter(is_looked_at)
        .map(|one| (one.instance_id.clone(), one))
        .collect();
    let mut changes = context
        .client
        .instances()
        .watch_instances(request)
        .await?
        .into_inner();
    while !(awaited.holds)(instances)? {
        bar.set_message(summary(instances));
        let Some(change) = changes.message().await? else {
            return Err(tonic::Status::unavailable("the controller has ended the watch").into());
        };
        let Some(instance) = change.instance.filter(is_looked_at) else {
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
fn summary(instances: &Instances) -> String {
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
