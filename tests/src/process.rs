//! A program under test, as a child process that ends with its owner.

use std::{
    cell::RefCell,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Longest wait for a program that was asked to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many lines of a program's log a failed test shows.
const LAST_LINES: usize = 60;

thread_local! {
    /// What the programs of the story that this thread tells have printed last, for when
    /// it fails.
    static LAST_WORDS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Takes what the programs that have ended since the last call printed last.
pub fn take_last_words() -> Vec<String> {
    LAST_WORDS.take()
}

/// A program that can be killed and started again.
#[derive(Debug)]
pub struct Program {
    command: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Program {
    /// Starts a program; its output goes to the file `log`.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(command: Vec<String>, log: &Path) -> anyhow::Result<Self> {
        let mut program = Self {
            command,
            log: log.to_owned(),
            child: None,
        };
        program.start_again()?;
        Ok(program)
    }

    /// Starts it again, by the same command.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.command[0]))?;
        self.child = Some(child);
        Ok(())
    }

    /// The command.
    #[must_use]
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// The command, to be changed before the next start.
    pub fn command_mut(&mut self) -> &mut Vec<String> {
        &mut self.command
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it with SIGKILL, which it cannot prepare for.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Whether it has ended by itself, or was killed by somebody else; starts it again
    /// then.
    ///
    /// # Errors
    ///
    /// It cannot be looked at or started.
    pub fn revive(&mut self) -> anyhow::Result<bool> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        };
        if ended {
            self.start_again()?;
        }
        Ok(ended)
    }

    /// Asks it to end, with SIGTERM, and waits for it; kills it if it does not.
    pub fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let Ok(pid) = i32::try_from(child.id()) else {
            return;
        };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        // A second thread keeps the time, so that this one can simply wait.
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let keeper = thread::spawn(move || {
            if end.recv_timeout(PATIENCE).is_err() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        });
        let _ = child.wait();
        let _ = ended.send(());
        let _ = keeper.join();
    }

    /// The last lines it printed, under its name.
    fn last_words(&self) -> String {
        let text = self.log();
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        format!(
            "--- {}\n{last}",
            self.log.file_stem().unwrap_or_default().display()
        )
    }

    /// All that it printed.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
        let words = self.last_words();
        LAST_WORDS.with_borrow_mut(|all| all.push(words));
    }
}
