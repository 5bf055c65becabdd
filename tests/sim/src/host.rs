//! A process with a runtime of its own: its time goes on when it is stepped, and when it
//! is ended, everything in it ends at once, wherever it was.

use std::{cell::Cell, time::Duration};

use anyhow::Context as _;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::Instant,
};

/// See the [module](self).
#[derive(Debug)]
pub struct Process {
    runtime: Runtime,
    main: JoinHandle<anyhow::Result<()>>,
    begun: Instant,
    lived: Duration,
}

impl Process {
    /// Starts one that does `main`.
    ///
    /// # Errors
    ///
    /// There can be no more runtimes.
    pub fn start<F>(main: impl FnOnce() -> F) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .context("there can be no runtime")?;
        let begun = runtime.block_on(async { Instant::now() });
        let main = {
            let _inside = runtime.enter();
            runtime.spawn(main())
        };
        Ok(Self {
            runtime,
            main,
            begun,
            lived: Duration::ZERO,
        })
    }

    /// Lets it run for so long by its own clock.
    pub fn step(&mut self, by: Duration) {
        self.lived += by;
        let until = self.begun + self.lived;
        self.runtime
            .block_on(async { tokio::time::sleep_until(until).await });
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        if !self.main.is_finished() {
            return None;
        }
        Some(match self.runtime.block_on(&mut self.main) {
            Ok(Ok(())) => "it has ended".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => format!("it has panicked: {panic}"),
        })
    }
}

thread_local! {
    /// What the wall clock of the process says that is being stepped, since 1970.
    static WALL: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What wall clocks say at the beginning: 1 January 2030.
pub const BEGINNING: Duration = Duration::from_secs(1_893_456_000);

/// Sets the wall clock of what runs next.
pub fn set_wall_clock(time: Duration) {
    WALL.set(time);
}

/// The wall clock of what runs.
#[must_use]
pub fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::UNIX_EPOCH + WALL.get()
}
