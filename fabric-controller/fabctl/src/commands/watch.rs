//! `fabctl watch`: instances and events as they change.
//!
//! In a terminal the table of instances and the newest events stand still and
//! are redrawn; elsewhere every change is a line.

use std::{
    collections::{BTreeMap, VecDeque},
    io::IsTerminal as _,
    time::Duration,
};

use fabric_proto::v1::{
    Event, Instance, ListEventsRequest, WatchEventsRequest, WatchEventsResponse,
    WatchInstancesRequest, WatchInstancesResponse,
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::time;
use tonic::{Code, Status, Streaming};

use super::Context;
use crate::{
    cli::{Format, Watch},
    error::{Failure, Result},
    show::{self, clean, table},
};

/// Events that are in view.
const EVENTS: usize = 12;
/// How long until a controller that has gone is asked again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(context: &Context, settings: Watch) -> Result<()> {
    let mut view = View::new(context.format);
    let service = settings.service.unwrap_or_default();
    tokio::select! {
        done = follow(context, &service, &mut view) => done,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Follows for ever; a controller that is restarted is found again.
async fn follow(context: &Context, service: &str, view: &mut View) -> Result<()> {
    let mut cursor = newest(context).await?;
    loop {
        match follow_once(context, service, &mut cursor, view).await {
            Err(Failure::Call(status)) if status.code() == Code::Unavailable => {
                view.gone(&status)?;
                time::sleep(AGAIN).await;
            }
            other => return other,
        }
    }
}

/// Where to begin, so that a few events are in view at once.
async fn newest(context: &Context) -> Result<u64> {
    let request = ListEventsRequest {
        after_cursor: u64::MAX,
        limit: 1,
        subject: String::new(),
    };
    let last = context
        .client
        .events()
        .list_events(request)
        .await?
        .into_inner()
        .last_cursor;
    Ok(last.saturating_sub(EVENTS as u64))
}

async fn follow_once(
    context: &Context,
    service: &str,
    cursor: &mut u64,
    view: &mut View,
) -> Result<()> {
    let request = WatchInstancesRequest {
        service: service.to_owned(),
    };
    let mut instances = context
        .client
        .instances()
        .watch_instances(request)
        .await?
        .into_inner();
    let request = WatchEventsRequest {
        after_cursor: *cursor,
        subject: String::new(),
    };
    let mut events: Streaming<WatchEventsResponse> = context
        .client
        .events()
        .watch_events(request)
        .await?
        .into_inner();
    view.connected();
    let ended = || Failure::from(Status::unavailable("the controller has ended the watch"));
    loop {
        tokio::select! {
            change = instances.message() => {
                view.instance(change?.ok_or_else(ended)?)?;
            }
            event = events.message() => {
                if let Some(event) = event?.ok_or_else(ended)?.event {
                    *cursor = event.cursor;
                    let of_service = service.is_empty()
                        || event.subject == service
                        || event.subject.starts_with(&format!("{service}-"));
                    if of_service {
                        view.event(event)?;
                    }
                }
            }
            () = time::sleep(Duration::from_secs(1)) => {}
        }
        view.draw();
    }
}

/// What is shown.
struct View {
    format: Format,
    screen: Option<Screen>,
    instances: BTreeMap<String, Instance>,
    events: VecDeque<Event>,
    problem: String,
}

impl View {
    fn new(format: Format) -> Self {
        let live = format == Format::Table && std::io::stdout().is_terminal();
        Self {
            format,
            screen: live.then(Screen::new),
            instances: BTreeMap::new(),
            events: VecDeque::new(),
            problem: String::new(),
        }
    }

    /// Everything comes again.
    fn connected(&mut self) {
        self.instances.clear();
        self.problem.clear();
    }

    fn gone(&mut self, status: &Status) -> Result<()> {
        self.problem = format!(
            "the controller is gone ({}); trying again",
            clean(status.message())
        );
        match (&self.screen, self.format) {
            (None, Format::Table) => show::print_line(&self.problem)?,
            (None, Format::Json) => eprintln!("{}", self.problem),
            (Some(_), _) => self.draw(),
        }
        Ok(())
    }

    fn instance(&mut self, change: WatchInstancesResponse) -> Result<()> {
        let Some(instance) = change.instance else {
            return Ok(());
        };
        if self.format == Format::Json {
            let shown = show::json::instance(&instance);
            show::print_json(&json!({ "instance": shown, "deleted": change.deleted }))?;
        } else if self.screen.is_none() {
            let before = self.instances.get(&instance.instance_id);
            let word = if change.deleted {
                "gone"
            } else {
                instance.state.as_str()
            };
            let was = before.map(|one| (one.state.as_str(), one.reason.as_str()));
            if change.deleted || was != Some((word, instance.reason.as_str())) {
                let line = format!(
                    "{} {word} {}",
                    instance.instance_id,
                    clean(&instance.reason)
                );
                show::print_line(line.trim_end())?;
            }
        }
        if change.deleted {
            self.instances.remove(&instance.instance_id);
        } else {
            self.instances
                .insert(instance.instance_id.clone(), instance);
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<()> {
        if self.format == Format::Json {
            show::print_json(&json!({ "event": show::json::event(&event) }))?;
        } else if self.screen.is_none() {
            show::print_line(&table::event(&event))?;
        }
        self.events.push_back(event);
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
        Ok(())
    }

    fn draw(&self) {
        let Some(screen) = &self.screen else { return };
        let instances: Vec<_> = self.instances.values().cloned().collect();
        let events: Vec<_> = self.events.iter().map(table::event).collect();
        screen.draw(&format!(
            "{}\n\n{}\n{}",
            table::instances(&instances),
            events.join("\n"),
            self.problem
        ));
    }
}

/// A text that stands still in the terminal.
struct Screen {
    bar: ProgressBar,
    /// Draws the bar; must live as long.
    _all: MultiProgress,
}

impl Screen {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let bar = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self { bar, _all: all }
    }

    fn draw(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        self.bar.tick();
    }
}
