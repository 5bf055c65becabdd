//! `fabctl audit`

use fabric_proto::v1::{AuditEntry, ListAuditEntriesRequest, WatchAuditEntriesRequest};
use serde_json::{Value, json};

use super::Context;
use crate::{
    cli::{Audit, Format},
    error::Result,
    show::{self, words},
};

pub(super) async fn run(context: &Context, settings: Audit) -> Result<()> {
    if settings.follow {
        follow(context, settings.after).await
    } else {
        list(context, settings.after).await
    }
}

async fn list(context: &Context, mut after_cursor: u64) -> Result<()> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let request = ListAuditEntriesRequest {
            after_cursor,
            limit: 0,
        };
        let answer = context.client.audit().list_audit_entries(request).await?;
        let page = answer.into_inner();
        let Some(last) = page.entries.last() else {
            break;
        };
        after_cursor = last.cursor;
        for entry in &page.entries {
            match context.format {
                Format::Table => show::print_line(&line(entry))?,
                Format::Json => all.push(object(entry)),
            }
        }
        if after_cursor >= page.last_cursor {
            break;
        }
    }
    match context.format {
        Format::Table => Ok(()),
        Format::Json => show::print_json(&all.into()),
    }
}

async fn follow(context: &Context, after_cursor: u64) -> Result<()> {
    let request = WatchAuditEntriesRequest { after_cursor };
    let mut client = context.client.audit();
    let mut entries = client.watch_audit_entries(request).await?.into_inner();
    loop {
        let answer = tokio::select! {
            answer = entries.message() => answer?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(answer) = answer else { return Ok(()) };
        let Some(entry) = answer.entry else { continue };
        match context.format {
            Format::Table => show::print_line(&line(&entry))?,
            Format::Json => show::print_json(&object(&entry))?,
        }
    }
}

fn line(entry: &AuditEntry) -> String {
    let mut text = format!(
        "{:>6}  {}  {} ({})  {}  {}",
        entry.cursor,
        words::rfc3339(entry.time.as_ref()).unwrap_or_default(),
        entry.who,
        entry.from,
        entry.call,
        entry.result
    );
    for part in [entry.changed.join(" "), entry.detail.clone()] {
        if !part.is_empty() {
            text.push_str("  ");
            text.push_str(&part);
        }
    }
    show::clean(&text)
}

pub(super) fn object(entry: &AuditEntry) -> Value {
    json!({
        "cursor": entry.cursor,
        "time": words::rfc3339(entry.time.as_ref()),
        "who": entry.who,
        "serial": entry.serial,
        "from": entry.from,
        "call": entry.call,
        "changed": entry.changed,
        "request_id": entry.request_id,
        "result": entry.result,
        "detail": entry.detail,
    })
}
