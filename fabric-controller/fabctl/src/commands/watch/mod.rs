//! `fabctl watch`: nodes, services, instances and events as they change.
//!
//! ```text
//! follow: the controller's streams ──► Change ──► view ──► screen   in a terminal
//!                                         └─────► lines              elsewhere
//! ```
//!
//! [`follow`] finds a controller again that is restarted. [`view`] is what is known, and
//! what keys do to it; [`screen`] draws that, and neither knows of the other's world.

mod follow;
mod lines;
mod screen;
mod terminal;
mod view;

use std::{io::IsTerminal as _, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time,
};

use self::{
    follow::{Change, Follow},
    lines::Lines,
    terminal::Terminal,
    view::View,
};
use super::Context;
use crate::{
    cli::{Format, Watch},
    error::{Failure, Result},
};

/// Changes that wait to be shown.
const WAITING: usize = 256;
/// How often is drawn though nothing has changed: ages do.
const DRAW: Duration = Duration::from_secs(1);

pub(super) async fn run(context: &Context, settings: Watch) -> Result<()> {
    let live = context.format == Format::Table && std::io::stdout().is_terminal();
    let (changes, received) = mpsc::channel(WAITING);
    let follow = Follow {
        client: context.client.clone(),
        service: settings.service.unwrap_or_default(),
        whole: live,
        changes,
    };
    let following = tokio::spawn(follow.run());
    let done = if live {
        draw(received).await
    } else {
        print(context.format, received).await
    };
    following.abort();
    done
}

/// Every change is a line, until Ctrl-C.
async fn print(format: Format, mut changes: mpsc::Receiver<Change>) -> Result<()> {
    let mut lines = Lines::new(format);
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        match change {
            None => return Ok(()),
            Some(Change::Failed(failure)) => return Err(failure),
            Some(change) => lines.print(change)?,
        }
    }
}

/// The whole terminal, until a key or a signal ends it. Whatever does, the terminal is
/// as it was before.
async fn draw(mut changes: mpsc::Receiver<Change>) -> Result<()> {
    let signals = |kind| signal(kind).map_err(Failure::Terminal);
    let mut terminate = signals(SignalKind::terminate())?;
    let mut hang_up = signals(SignalKind::hangup())?;
    let mut view = View::default();
    let (mut terminal, mut keys) = Terminal::take().map_err(Failure::Terminal)?;
    let mut redraw = time::interval(DRAW);
    loop {
        terminal.draw(&view).map_err(Failure::Terminal)?;
        tokio::select! {
            change = changes.recv() => {
                let mut next = change;
                for _ in 0..WAITING {
                    match next {
                        None => break,
                        Some(Change::Failed(failure)) => return Err(failure),
                        Some(change) => view.take(change),
                    }
                    next = changes.try_recv().ok();
                }
                if let Some(change) = next {
                    view.take(change);
                }
            }
            key = keys.recv() => match key {
                Some(key) if view.press(key) => {}
                _ => return Ok(()),
            },
            _ = redraw.tick() => {}
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
        }
    }
}
