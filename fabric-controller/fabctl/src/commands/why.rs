//! `fabctl why`

use std::collections::{BTreeMap, BTreeSet};

use fabric_proto::v1::{Event, GetInstanceRequest, Instance};
use tonic::Code;

use super::{Context, event};
use crate::{
    cli::{Format, Why},
    error::Result,
    show::{self, story as shown},
    story,
};

/// Most subjects whose events are looked through for causes.
const SUBJECTS: usize = 64;

pub(super) async fn run(context: &Context, settings: Why) -> Result<()> {
    let Why { id, all } = settings;
    let (instance, events) = gather(context, &id).await?;
    let mut failures = story::failures(&id, &events);
    if context.format == Format::Json && !all {
        failures.drain(..failures.len().saturating_sub(1));
    }
    match context.format {
        Format::Table => show::print_line(&shown::lines(&id, instance.as_ref(), &failures, all)),
        Format::Json => show::print_json(&shown::object(&id, instance.as_ref(), &failures)),
    }
}

/// The instance, if it is there, and what was told of it and of what led to that.
async fn gather(context: &Context, id: &str) -> Result<(Option<Instance>, Vec<Event>)> {
    let own = event::all(context, 0, id).await?;
    let instance = match find(context, id).await {
        Ok(instance) => instance,
        // One that is gone may have left a story.
        Err(status) if status.code() == Code::NotFound && !own.is_empty() => None,
        Err(status) => return Err(status.into()),
    };
    let mut events: BTreeMap<u64, Event> = BTreeMap::new();
    let mut asked = BTreeSet::from([id.to_owned()]);
    let mut found = own;
    while !found.is_empty() {
        let causes = found.iter().filter_map(|one| one.cause.as_ref());
        let mut next: BTreeSet<_> = causes.map(|cause| cause.subject.clone()).collect();
        next.retain(|subject| !asked.contains(subject));
        events.extend(found.drain(..).map(|one| (one.cursor, one)));
        for subject in next {
            if asked.len() >= SUBJECTS {
                break;
            }
            found.extend(event::all(context, 0, &subject).await?);
            asked.insert(subject);
        }
    }
    Ok((instance, events.into_values().collect()))
}

async fn find(context: &Context, id: &str) -> Result<Option<Instance>, tonic::Status> {
    let request = GetInstanceRequest {
        instance_id: id.to_owned(),
    };
    let answer = context.client.instances().get_instance(request).await?;
    Ok(answer.into_inner().instance)
}
