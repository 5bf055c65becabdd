//! What is known of the fabric, and what keys do to what is seen of it.

use std::collections::{BTreeMap, VecDeque};

use fabric_proto::v1::{Event, Instance, Node, Service};

use super::follow::Change;

/// Events that are kept to be looked at.
const EVENTS: usize = 500;
/// Lines that a page has.
const PAGE: usize = 10;

/// The parts of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pane {
    /// Nodes, by fault domain.
    Nodes,
    /// Services.
    Services,
    /// Instances.
    #[default]
    Instances,
    /// Events, the newest last.
    Events,
}

impl Pane {
    const ALL: [Self; 4] = [Self::Nodes, Self::Services, Self::Instances, Self::Events];

    fn next(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|one| *one == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}

/// A key that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// No more.
    Quit,
    /// The next part of the screen.
    NextPane,
    /// The one before.
    LastPane,
    /// A line towards the beginning.
    Up,
    /// A line towards the end.
    Down,
    /// A page towards the beginning.
    PageUp,
    /// A page towards the end.
    PageDown,
    /// Only what is not as it should be, or all again.
    Unwell,
    /// The terminal has another size.
    Resized,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct View {
    /// By name.
    pub(super) nodes: Vec<Node>,
    /// By name.
    pub(super) services: Vec<Service>,
    instances: BTreeMap<String, Instance>,
    events: VecDeque<Event>,
    /// Why nothing new is known; empty if it is.
    pub(super) problem: String,
    /// The part that keys move in.
    pub(super) focus: Pane,
    /// Only instances that are not Ready, and events that are warnings.
    pub(super) unwell: bool,
    scrolled: BTreeMap<u8, usize>,
}

impl View {
    /// Takes in what has changed.
    pub(super) fn take(&mut self, change: Change) {
        match change {
            Change::Connected => {
                self.instances.clear();
                self.problem.clear();
            }
            Change::Gone(why) => self.problem = why,
            Change::Instance(change) => {
                let deleted = change.deleted;
                match change.instance {
                    Some(one) if deleted => {
                        self.instances.remove(&one.instance_id);
                    }
                    Some(one) => {
                        self.instances.insert(one.instance_id.clone(), one);
                    }
                    None => {}
                }
            }
            Change::Event(event) => {
                self.events.push_back(event);
                if self.events.len() > EVENTS {
                    self.events.pop_front();
                }
            }
            Change::Nodes(nodes) => self.nodes = nodes,
            Change::Services(services) => self.services = services,
            Change::Failed(failure) => self.problem = failure.to_string(),
        }
    }

    /// Does what a key says; false if that is to end.
    pub(super) fn press(&mut self, key: Key) -> bool {
        match key {
            Key::Quit => return false,
            Key::NextPane => self.focus = self.focus.next(1),
            Key::LastPane => self.focus = self.focus.next(Pane::ALL.len() - 1),
            Key::Up => self.scroll(1, false),
            Key::Down => self.scroll(1, true),
            Key::PageUp => self.scroll(PAGE, false),
            Key::PageDown => self.scroll(PAGE, true),
            Key::Unwell => self.unwell = !self.unwell,
            Key::Resized => {}
        }
        true
    }

    /// The instances that are to be seen, by id.
    pub(super) fn instances(&self) -> Vec<&Instance> {
        let all = self.instances.values();
        all.filter(|one| !self.unwell || one.state != "Ready")
            .collect()
    }

    /// The events that are to be seen, oldest first.
    pub(super) fn events(&self) -> Vec<&Event> {
        let all = self.events.iter();
        all.filter(|one| !self.unwell || one.warning).collect()
    }

    /// How many there are, and how many of them are Ready.
    pub(super) fn ready(&self) -> (usize, usize) {
        let ready = self.instances.values().filter(|one| one.state == "Ready");
        (self.instances.len(), ready.count())
    }

    /// How far a part was scrolled: from its beginning, events from their end.
    pub(super) fn scrolled(&self, pane: Pane) -> usize {
        let scrolled = self.scrolled.get(&(pane as u8)).copied().unwrap_or(0);
        scrolled.min(self.rows(pane).saturating_sub(1))
    }

    fn rows(&self, pane: Pane) -> usize {
        match pane {
            // Each may have a fault domain of its own.
            Pane::Nodes => 2 * self.nodes.len(),
            Pane::Services => self.services.iter().map(|one| one.roles.len() + 1).sum(),
            Pane::Instances => self.instances().len(),
            Pane::Events => self.events().len(),
        }
    }

    fn scroll(&mut self, by: usize, to_end: bool) {
        let pane = self.focus;
        let now = self.scrolled(pane);
        // Events begin at their end.
        let away = to_end != (pane == Pane::Events);
        let next = if away {
            now.saturating_add(by)
        } else {
            now.saturating_sub(by)
        };
        self.scrolled.insert(pane as u8, next);
        let next = self.scrolled(pane);
        self.scrolled.insert(pane as u8, next);
    }
}

#[cfg(test)]
mod tests {
    use fabric_proto::v1::WatchInstancesResponse;

    use super::*;

    fn instance(id: usize, state: &str) -> Change {
        Change::Instance(Box::new(WatchInstancesResponse {
            instance: Some(Instance {
                instance_id: format!("shop-web-{id}"),
                state: state.to_owned(),
                ..Instance::default()
            }),
            deleted: state.is_empty(),
        }))
    }

    #[test]
    fn nobody_scrolls_beyond_what_there_is() {
        let mut view = View::default();
        (0..5).for_each(|id| view.take(instance(id, "Ready")));
        for _ in 0..3 {
            assert!(view.press(Key::PageDown));
        }
        assert_eq!(view.scrolled(Pane::Instances), 4);
        view.press(Key::Up);
        assert_eq!(view.scrolled(Pane::Instances), 3);
        // What goes meanwhile takes the place with it.
        (1..5).for_each(|id| view.take(instance(id, "")));
        assert_eq!(view.scrolled(Pane::Instances), 0);
    }

    #[test]
    fn events_are_scrolled_from_their_end_and_the_oldest_go() {
        let mut view = View::default();
        for cursor in 0..2 * EVENTS as u64 {
            let warning = cursor % 2 == 0;
            view.take(Change::Event(Event {
                cursor,
                warning,
                ..Event::default()
            }));
        }
        assert_eq!(view.events().len(), EVENTS);
        assert_eq!(view.events()[0].cursor, EVENTS as u64);
        view.press(Key::NextPane);
        view.press(Key::Up);
        assert_eq!(view.scrolled(Pane::Events), 1);
        view.press(Key::Unwell);
        assert_eq!(view.events().len(), EVENTS / 2);
    }

    #[test]
    fn a_controller_that_is_back_tells_everything_anew() {
        let mut view = View::default();
        view.take(instance(0, "Ready"));
        view.take(Change::Gone("gone".to_owned()));
        assert_eq!((view.ready(), view.problem.as_str()), ((1, 1), "gone"));
        view.take(Change::Connected);
        assert_eq!((view.ready(), view.problem.as_str()), ((0, 0), ""));
        assert!(!view.press(Key::Quit));
    }
}
