//! Long work shows how it goes: a spinner on a terminal, plain lines elsewhere.
//!
//! All of it goes to standard error; standard output is for results.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines on what is just being done.
const PLAIN_PERIOD: Duration = Duration::from_secs(20);

/// A piece of work that takes a while.
pub struct Work {
    title: String,
    begun: Instant,
    spinner: Option<ProgressBar>,
    plain: Option<Instant>,
}

impl Work {
    /// Begins it.
    pub fn begin(title: impl Into<String>) -> Self {
        let title = title.into();
        let begun = Instant::now();
        if !std::io::stderr().is_terminal() {
            eprintln!("{title} ...");
            return Self {
                title,
                begun,
                spinner: None,
                plain: Some(begun),
            };
        }
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
        {
            spinner.set_style(style);
        }
        spinner.set_prefix(title.clone());
        spinner.enable_steady_tick(Duration::from_millis(120));
        Self {
            title,
            begun,
            spinner: Some(spinner),
            plain: None,
        }
    }

    /// Says what is just being done.
    pub fn now(&mut self, what: impl Into<String>) {
        let what = what.into();
        if let Some(spinner) = &self.spinner {
            spinner.set_message(what);
        } else if self
            .plain
            .is_some_and(|last| last.elapsed() >= PLAIN_PERIOD)
        {
            self.plain = Some(Instant::now());
            eprintln!(
                "{} ... {what} ({})",
                self.title,
                seconds(self.begun.elapsed())
            );
        }
    }

    /// Ends it well, with what has come of it.
    pub fn done(mut self, result: &str) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        eprintln!(
            "{}: {result} ({})",
            self.title,
            seconds(self.begun.elapsed())
        );
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

/// A duration for people.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(600) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}
