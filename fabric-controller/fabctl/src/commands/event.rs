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
    let mut after_cursor = settings.after;
    let mut all: Vec<Event> = Vec::new();
    loop {
        let request = ListEventsRequest {
            after_cursor,
            limit: 0,
            subject: subject.clone(),
        };
        let page = context
            .client
            .events()
            .list_events(request)
            .await?
            .into_inner();
        let Some(last) = page.events.last() else {
            break;
        };
        after_cursor = last.cursor;
        match context.format {
            Format::Table => {
                for event in &page.events {
                    show::print_line(&table::event(event))?;
                }
            }
            Format::Json => all.extend(page.events),
        }
        if after_cursor >= page.last_cursor {
            break;
        }
    }
    match context.format {
        Format::Table => Ok(()),
        Format::Json => show::print_json(&all.iter().map(json::event).collect()),
    }
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
