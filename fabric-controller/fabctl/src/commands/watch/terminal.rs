//! The terminal: taken whole, and given back on every end.
//!
//! It is given back when this is dropped, and by a panic before it says what it has to.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::sync::mpsc;

use super::{
    screen,
    view::{Key, View},
};

/// Keys that wait.
const KEYS: usize = 64;
/// How often whoever waits for keys looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// See the [module](self).
pub(super) struct Terminal {
    inner: DefaultTerminal,
    ended: Arc<AtomicBool>,
}

impl Terminal {
    /// Takes the terminal, and its keys.
    pub(super) fn take() -> io::Result<(Self, mpsc::Receiver<Key>)> {
        let inner = ratatui::try_init()?;
        let ended = Arc::new(AtomicBool::new(false));
        let terminal = Self {
            inner,
            ended: Arc::clone(&ended),
        };
        let (keys, received) = mpsc::channel(KEYS);
        // Reading keys blocks.
        thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || read(&keys, &ended))?;
        Ok((terminal, received))
    }

    pub(super) fn draw(&mut self, view: &View) -> io::Result<()> {
        let now = SystemTime::now();
        self.inner.draw(|frame| screen::draw(frame, view, now))?;
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        ratatui::restore();
    }
}

/// A terminal that is gone has no keys: whoever waits for them sees that.
fn read(keys: &mpsc::Sender<Key>, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let key = match event::poll(LOOK) {
            Ok(false) => continue,
            Ok(true) => event::read().ok(),
            Err(_) => None,
        };
        let Some(event) = key else { return };
        if let Some(key) = meaning(&event)
            && keys.blocking_send(key).is_err()
        {
            return;
        }
    }
}

fn meaning(event: &Event) -> Option<Key> {
    let key = match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        Event::Resize(..) => return Some(Key::Resized),
        _ => return None,
    };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if control => Key::Quit,
        _ if control => return None,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Tab => Key::NextPane,
        KeyCode::BackTab => Key::LastPane,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown | KeyCode::Char(' ') => Key::PageDown,
        KeyCode::Char('w') => Key::Unwell,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        let of = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = KeyModifiers::NONE;
        assert_eq!(of(KeyCode::Char('q'), plain), Some(Key::Quit));
        assert_eq!(
            of(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Key::Quit)
        );
        assert_eq!(of(KeyCode::Char('c'), plain), None);
        assert_eq!(of(KeyCode::Tab, plain), Some(Key::NextPane));
        assert_eq!(of(KeyCode::Char('w'), plain), Some(Key::Unwell));
        assert_eq!(of(KeyCode::Down, plain), Some(Key::Down));
    }
}
