//! `fabctl events`

use fabric_proto::v1::{Event, ListEventsRequest, WatchEventsRequest};

use super::Context;
use crate::{
    cli::{Events, Format},
    error::Result,
    show::{self, json, table},
};

pub(super) async fn run(context: &Context, settings: Events) -> Result<()> {
    if settings.follow {
        follow(context, settings).await
    } else {
        list(context, settings).await
    }
}

async fn list(context: &Context, settings: Events) -> Result<()> {
    let subject = settings.about.unwrap_or_default();
    let mut all: Vec<Event> = Vec::new();
    let mut after = settings.after;
    while let Some(page) = page(context, &mut after, &subject).await? {
        match context.format {
            Format::Table => {
                for event in &page {
                    show::print_line(&table::event(event))?;
                }
            }
            Format::Json => all.extend(page),
        }
    }
    match context.format {
        Format::Table => Ok(()),
        Format::Json => show::print_json(&all.iter().map(json::event).collect()),
    }
}

/// The events after a cursor, those about one subject unless it is empty.
pub(super) async fn all(context: &Context, mut after: u64, subject: &str) -> Result<Vec<Event>> {
    let mut all = Vec::new();
    while let Some(page) = page(context, &mut after, subject).await? {
        all.extend(page);
    }
    Ok(all)
}

/// The next of them, and on to where they end; none if there are no more.
async fn page(context: &Context, after: &mut u64, subject: &str) -> Result<Option<Vec<Event>>> {
    let request = ListEventsRequest {
        after_cursor: *after,
        limit: 0,
        subject: subject.to_owned(),
    };
    let mut client = context.client.events();
    let page = client.list_events(request).await?.into_inner();
    let Some(last) = page.events.last() else {
        return Ok(None);
    };
    *after = last.cursor;
    Ok(Some(page.events))
}

async fn follow(context: &Context, settings: Events) -> Result<()> {
    let request = WatchEventsRequest {
        after_cursor: settings.after,
        subject: settings.about.unwrap_or_default(),
    };
    let mut events = context
        .client
        .events()
        .watch_events(request)
        .await?
        .into_inner();
    loop {
        let event = tokio::select! {
            answer = events.message() => match answer? {
                Some(answer) => answer.event,
                None => return Ok(()),
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(event) = event else { continue };
        match context.format {
            Format::Table => show::print_line(&table::event(&event))?,
            Format::Json => show::print_json(&json::event(&event))?,
        }
    }
}
