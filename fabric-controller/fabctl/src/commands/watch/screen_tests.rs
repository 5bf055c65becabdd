//! Pictures of views, as a terminal would have them.

use std::time::Duration;

use fabric_proto::{
    node::v1::Inventory,
    v1::{Deployment, EventCause, ServiceRole, WatchInstancesResponse},
};
use prost_types::Timestamp;
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

use super::*;
use crate::commands::watch::{follow::Change, view::Key};

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn node(name: &str, domain: &str, connected: bool) -> Node {
    Node {
        node_id: name.to_owned(),
        fault_domain: domain.to_owned(),
        connected,
        last_seen: at(970),
        inventory: Some(Inventory {
            cpus: 8,
            ..Inventory::default()
        }),
        instances: 2,
        vcpus_used: 4,
        memory_used_bytes: 1 << 30,
        disk_free_bytes: 5 << 30,
        ..Node::default()
    }
}

fn instance(id: &str, state: &str, reason: &str) -> Change {
    Change::Instance(Box::new(WatchInstancesResponse {
        instance: Some(Instance {
            instance_id: id.to_owned(),
            node_id: "n1".to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            since: at(940),
            ..Instance::default()
        }),
        deleted: false,
    }))
}

fn event(cursor: u64, reason: &str, cause: &str) -> Change {
    Change::Event(Event {
        cursor,
        time: at(i64::try_from(cursor).unwrap()),
        reason: reason.to_owned(),
        subject: "shop-web-0".to_owned(),
        message: "why not".to_owned(),
        warning: reason == "VmmExited",
        cause: (!cause.is_empty()).then(|| EventCause {
            reason: cause.to_owned(),
            ..EventCause::default()
        }),
        ..Event::default()
    })
}

fn fabric() -> View {
    let mut view = View::default();
    let rack = [node("n1", "rack-1", true), node("n2", "rack-1", false)];
    let alone = node("n3", "n3", true);
    view.take(Change::Nodes(rack.into_iter().chain([alone]).collect()));
    let role = ServiceRole {
        name: "web".to_owned(),
        instances: 2,
        ready: 1,
        ..ServiceRole::default()
    };
    view.take(Change::Services(vec![Service {
        name: "shop".to_owned(),
        deployments: vec![Deployment {
            slot: Slot::Staging.into(),
            roles: vec![role],
            ..Deployment::default()
        }],
        ..Service::default()
    }]));
    view.take(instance("shop-web-0", "Ready", ""));
    view.take(instance("shop-web-1", "Recovering", "killed\u{1b}[2J"));
    view.take(event(1, "VmmExited", ""));
    view.take(event(2, "VmRestarting", "VmmExited"));
    view
}

fn picture(view: &View, width: u16, height: u16) -> Buffer {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view, now)).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(view: &View, width: u16, height: u16) -> Vec<String> {
    let buffer = picture(view, width, height);
    let rows = (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect());
    rows.collect()
}

fn line<'a>(lines: &'a [String], with: &str) -> &'a str {
    let found = lines.iter().find(|line| line.contains(with));
    found.unwrap_or_else(|| panic!("{with} is not in {lines:#?}"))
}

#[test]
fn everything_is_on_the_screen() {
    let lines = lines(&fabric(), 140, 36);
    assert!(lines[0].contains("2/3 nodes heard") && lines[0].contains("1/2 instances Ready"));
    let place = |with: &str| lines.iter().position(|line| line.contains(with)).unwrap();
    assert!(place("rack-1") < place("  n1") && place("  n1") < place("  n2"));
    assert!(line(&lines, "  n2").contains("silent 30s"));
    assert!(
        line(&lines, "│n3").contains("connected"),
        "it is its own domain"
    );
    assert!(line(&lines, "shop (staging)").contains("1/2"));
    assert!(line(&lines, "shop-web-0 ").contains("Ready      60s"));
    let wild = line(&lines, "shop-web-1");
    assert!(
        wild.contains("Recovering") && wild.contains("killed [2J"),
        "{wild}"
    );
    assert!(line(&lines, "VmRestarting").contains("why not  ← VmmExited"));
    assert!(lines[35].contains("q quit"));
}

#[test]
fn states_have_their_colours() {
    let buffer = picture(&fabric(), 140, 36);
    let colour = |word: &str| {
        let width = usize::from(buffer.area.width);
        let text: Vec<_> = buffer
            .content
            .iter()
            .map(ratatui::buffer::Cell::symbol)
            .collect();
        let starts = |at: &usize| text[*at..].concat().starts_with(word);
        let at = (0..text.len() - width).find(starts).unwrap();
        buffer.content[at].fg
    };
    assert_eq!(colour("silent 30s"), Color::Red);
    assert_eq!(colour("Ready      60s"), Color::Green);
    assert_eq!(colour("Recovering"), Color::Yellow);
}

#[test]
fn what_is_not_well_can_be_seen_alone() {
    let mut view = fabric();
    view.press(Key::Unwell);
    let lines = lines(&view, 140, 36);
    assert!(!lines.iter().any(|line| line.contains("shop-web-0 Ready")));
    assert!(line(&lines, "Instances that are not Ready (1)").contains('─'));
    assert!(line(&lines, "Warnings (1)").contains('─'));
}

#[test]
fn parts_are_scrolled_and_say_so() {
    let mut view = View::default();
    (0..100).for_each(|id| view.take(instance(&format!("shop-web-{id:03}"), "Ready", "")));
    (1..100).for_each(|cursor| view.take(event(cursor, &format!("Event{cursor:03}"), "")));
    view.press(Key::PageDown);
    let shown = lines(&view, 120, 40);
    assert!(!shown.iter().any(|line| line.contains("shop-web-009")));
    line(&shown, "shop-web-010");
    line(&shown, "Instances (100, 10 passed)");
    line(&shown, "Event099");
    view.press(Key::NextPane);
    view.press(Key::Up);
    let shown = lines(&view, 120, 40);
    assert!(!shown.iter().any(|line| line.contains("Event099")));
    line(&shown, "Event098");
}

#[test]
fn a_controller_that_is_gone_is_told_in_the_last_line() {
    let mut view = fabric();
    view.take(Change::Gone("the controller is gone".to_owned()));
    let shown = lines(&view, 100, 30);
    assert!(shown[29].contains("the controller is gone"));
}

#[test]
fn any_size_can_be_drawn() {
    let mut view = fabric();
    (0..50).for_each(|id| view.take(instance(&format!("shop-web-{id}"), "Ready", "")));
    for (width, height) in [(1, 1), (2, 3), (10, 5), (20, 8), (80, 24), (300, 100)] {
        picture(&view, width, height);
        picture(&View::default(), width, height);
    }
}
