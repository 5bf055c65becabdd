//! `fabctl support-bundle`

use std::{
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use fabric_proto::v1::{
    AuditEntry, BlobKind, Event, ListAuditEntriesRequest, ListBlobsRequest, ListEventsRequest,
    ListRevisionsRequest,
};
use fabric_trust::context::Context as Trusted;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::audit;
use crate::{
    bundle::{Bundle, secrets::Secrets},
    cli::{Format, SupportBundle},
    client::Client,
    doctor::{checks, facts::Facts},
    error::{Failure, Result},
    show::{self, doctor as shown, json as object, placement, words},
};

/// Most of the newest events.
const EVENTS: u64 = 50_000;
/// Most of the newest entries of the audit log.
const AUDIT: u64 = 20_000;
/// For how long an instance may not be Ready before that is among the findings.
const PATIENCE: Duration = Duration::from_secs(120);

const README: &str = "\
A support bundle of a fabric, made by `fabctl support-bundle`. All of it is JSON.

about.json       who made it, when, and to which controller they talked
controller.json  the controller: version, clock, disk, what was set
nodes.json       the machines, as `fabctl node list` has them
services.json    the services, with their files
updates.json     updates that are not done, and what they wait for
instances.json   the instances, as `fabctl instance show` has them
placement.json   why instances have no node
images.json      OS images
packages.json    packages
history.json     what services were to be, by service
events.json      what has happened, oldest first; the newest 50,000
audit.json       who did what; the newest 20,000, and for administrators only
doctor.json      what is wrong, as `fabctl doctor` finds
missing.json     what could not be had, and why

Left out: values of settings and environments and arguments of programs, in service files
and wherever else they stand; keys; join tokens; what roles and consoles have written.
";

pub(super) async fn run(chosen: &Trusted, settings: SupportBundle, format: Format) -> Result<()> {
    let now = SystemTime::now();
    let stamp = humantime::format_rfc3339_seconds(now).to_string();
    let stamp: String = stamp.chars().filter(char::is_ascii_alphanumeric).collect();
    let folder = format!("fabric-support-{stamp}");
    let path = settings
        .file
        .unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    if path.exists() {
        return Err(Failure::Input(format!(
            "{} is there already; name another file",
            path.display()
        )));
    }
    let gathered = Gathered::gather(chosen).await;
    let written = write(&path, &folder, now, gathered)?;
    match format {
        Format::Json => show::print_json(&written),
        Format::Table => {
            let missing = written["missing"].as_array().map_or(0, Vec::len);
            let rest = match missing {
                0 => String::new(),
                1 => ", but for one thing that could not be had (missing.json)".to_owned(),
                _ => format!(", but for {missing} things that could not be had (missing.json)"),
            };
            let bytes = words::bytes(written["bytes"].as_u64().unwrap_or(0));
            show::print_line(&format!("wrote {} ({bytes}){rest}", path.display()))
        }
    }
}

/// Everything that goes in, secrets among it.
struct Gathered {
    facts: Facts,
    pieces: Vec<(&'static str, Value)>,
}

impl Gathered {
    async fn gather(chosen: &Trusted) -> Self {
        let bar = ProgressBar::new_spinner();
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message("asking the controller");
        let mut gathered = Self {
            facts: Facts::of(chosen),
            pieces: Vec::new(),
        };
        match Client::connect(chosen).await {
            Ok(client) => gathered.ask(&client, &bar).await,
            Err(failure) => gathered.facts.miss("anything of the controller", &failure),
        }
        bar.finish_and_clear();
        gathered
    }

    async fn ask(&mut self, client: &Client, bar: &ProgressBar) {
        let facts = std::mem::take(&mut self.facts);
        self.facts = facts.gather(client).await;
        bar.set_message("images and packages");
        self.add("images.json", blobs(client, BlobKind::Image).await);
        self.add("packages.json", blobs(client, BlobKind::Package).await);
        bar.set_message("history");
        let names = self.facts.services.iter().map(|one| one.name.clone());
        let names = names.collect();
        let history = history(client, names).await;
        self.add("history.json", history);
        bar.set_message("events");
        self.add("events.json", events(client).await);
        bar.set_message("audit log");
        self.add("audit.json", audit_log(client).await);
    }

    fn add(&mut self, name: &'static str, piece: Result<Value>) {
        match piece {
            Ok(value) => self.pieces.push((name, value)),
            Err(failure) => self.facts.miss(name, &failure),
        }
    }

    /// The facts as files, and the other pieces.
    fn files(self, about: Value) -> (Vec<(&'static str, Value)>, Vec<Value>) {
        let facts = &self.facts;
        let list = |values: Vec<Value>| Value::from(values);
        let updates = facts.updates.iter().map(|one| {
            json!({
                "service": one.service,
                "slot": words::slot(one.slot),
                "update": object::update(&one.update),
            })
        });
        let explained = facts.explained.values().map(placement::explanation_json);
        let findings = checks::findings(facts, PATIENCE);
        let mut files = vec![
            ("about.json", about),
            (
                "controller.json",
                facts
                    .controller
                    .as_ref()
                    .map_or(Value::Null, object::controller),
            ),
            ("nodes.json", facts.nodes.iter().map(object::node).collect()),
            (
                "services.json",
                facts.services.iter().map(object::service).collect(),
            ),
            ("updates.json", updates.collect()),
            (
                "instances.json",
                facts.instances.iter().map(object::instance).collect(),
            ),
            ("placement.json", list(explained.collect())),
            ("doctor.json", shown::object(facts, &findings)),
        ];
        let missing = facts.missing.iter();
        let missing = missing.map(|one| json!({ "what": one.what, "why": one.why }));
        let missing = missing.collect();
        files.extend(self.pieces);
        (files, missing)
    }
}

/// Writes the file; what is in it, and what is not.
fn write(path: &Path, folder: &str, now: SystemTime, gathered: Gathered) -> Result<Value> {
    let mut secrets = Secrets::default();
    for service in &gathered.facts.services {
        secrets.learn(&service.definition_toml);
        for deployment in &service.deployments {
            secrets.learn(&deployment.definition_toml);
        }
    }
    for (_, piece) in &gathered.pieces {
        learn_all(&mut secrets, piece);
    }
    let about = json!({
        "fabctl": env!("CARGO_PKG_VERSION"),
        "made": humantime::format_rfc3339_seconds(now).to_string(),
        "server": gathered.facts.server,
        "who": gathered.facts.identity.as_ref().map(ToString::to_string),
        "certificate_ends": gathered.facts.identity.as_ref().map(|identity| {
            humantime::format_rfc3339_seconds(identity.not_after).to_string()
        }),
    });
    let (files, mut missing) = gathered.files(about);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Complete or not there at all, and for its owner alone.
    let out = NamedTempFile::new_in(directory).map_err(Failure::file("write", path))?;
    let failed = || Failure::file("write", path);
    let mut bundle = Bundle::new(out, folder, now, secrets);
    bundle.add_text("README.txt", README).map_err(failed())?;
    for (name, value) in files {
        if !bundle.add(name, value).map_err(failed())? {
            missing.push(json!({ "what": name, "why": "it is too long" }));
        }
    }
    let listed = Value::from(missing.clone());
    bundle.add("missing.json", listed).map_err(failed())?;
    let names = bundle.names().to_vec();
    let out = bundle.finish().map_err(failed())?;
    let kept = out.persist_noclobber(path);
    kept.map_err(|error| Failure::file("write", path)(error.error))?;
    let bytes = fs::metadata(path).map_or(0, |facts| facts.len());
    Ok(json!({ "file": path, "bytes": bytes, "files": names, "missing": missing }))
}

/// Takes what may be secret out of every service file in there.
fn learn_all(secrets: &mut Secrets, value: &Value) {
    match value {
        Value::Array(values) => values.iter().for_each(|one| learn_all(secrets, one)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "definition_toml" => secrets.learn(text),
                    other => learn_all(secrets, other),
                }
            }
        }
        _ => {}
    }
}

async fn blobs(client: &Client, kind: BlobKind) -> Result<Value> {
    let request = ListBlobsRequest { kind: kind.into() };
    let answer = client.blobs().list_blobs(request).await?.into_inner();
    Ok(answer.blobs.iter().map(object::blob).collect())
}

async fn history(client: &Client, services: Vec<String>) -> Result<Value> {
    let mut all = Vec::new();
    for name in services {
        let request = ListRevisionsRequest { name: name.clone() };
        let answer = client.services().list_revisions(request).await?;
        let revisions: Value = answer
            .into_inner()
            .revisions
            .iter()
            .map(object::revision)
            .collect();
        all.push(json!({ "service": name, "revisions": revisions }));
    }
    Ok(all.into())
}

/// The newest of them, up to what was there when this began.
async fn events(client: &Client) -> Result<Value> {
    let page = async |after_cursor| {
        let request = ListEventsRequest {
            after_cursor,
            limit: 0,
            subject: String::new(),
        };
        Ok::<_, Failure>(client.events().list_events(request).await?.into_inner())
    };
    let last = page(u64::MAX).await?.last_cursor;
    let mut after = last.saturating_sub(EVENTS);
    let mut all: Vec<Event> = Vec::new();
    while after < last {
        let events = page(after).await?.events;
        let Some(newest) = events.last() else { break };
        after = newest.cursor;
        all.extend(events);
    }
    Ok(all.iter().map(object::event).collect())
}

/// The same of the audit log.
async fn audit_log(client: &Client) -> Result<Value> {
    let page = async |after_cursor| {
        let request = ListAuditEntriesRequest {
            after_cursor,
            limit: 0,
        };
        let answer = client.audit().list_audit_entries(request).await?;
        Ok::<_, Failure>(answer.into_inner())
    };
    let last = page(u64::MAX).await?.last_cursor;
    let mut after = last.saturating_sub(AUDIT);
    let mut all: Vec<AuditEntry> = Vec::new();
    while after < last {
        let entries = page(after).await?.entries;
        let Some(newest) = entries.last() else { break };
        after = newest.cursor;
        all.extend(entries);
    }
    Ok(all.iter().map(audit::object).collect())
}
