//! Draws what is known. Pure: a view, a time and a size, and there is one picture.

use std::time::SystemTime;

use fabric_proto::v1::{Event, Instance, Node, Service, Slot};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::view::{Pane, View};
use crate::show::{clean, words};

/// Lines around the rows of a part: its border, and what its columns are.
const AROUND: u16 = 3;
/// What keys do, as long as nothing else has to be said.
const KEYS: &str = " q quit   Tab next part   ↑ ↓ PgUp PgDn scroll   w only what is not well ";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, now: SystemTime) {
    let third = frame.area().height / 3;
    let nodes = node_rows(&view.nodes, now);
    let services = service_rows(&view.services);
    let above = u16::try_from(nodes.len().max(services.len())).unwrap_or(u16::MAX);
    let above = above
        .saturating_add(AROUND)
        .clamp(AROUND + 1, third.max(AROUND + 1));
    let [title, top, middle, bottom, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(above),
        Constraint::Fill(1),
        Constraint::Length(third),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(top);
    frame.render_widget(Paragraph::new(summary(view)), title);
    part(
        frame,
        left,
        view,
        Pane::Nodes,
        "Nodes by fault domain",
        NODES,
        nodes,
    );
    part(
        frame,
        right,
        view,
        Pane::Services,
        "Services",
        SERVICES,
        services,
    );
    let shown = view.instances();
    let instances = shown.iter().map(|one| instance_row(one, now)).collect();
    let name = if view.unwell {
        "Instances that are not Ready"
    } else {
        "Instances"
    };
    part(
        frame,
        middle,
        view,
        Pane::Instances,
        name,
        INSTANCES,
        instances,
    );
    events(frame, bottom, view);
    let last = if view.problem.is_empty() {
        Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM))
    } else {
        Line::styled(
            format!(" {} ", view.problem),
            bad().add_modifier(Modifier::BOLD),
        )
    };
    frame.render_widget(Paragraph::new(last), keys);
}

type Columns = &'static [(&'static str, Constraint)];

const NODES: Columns = &[
    ("NODE", Constraint::Fill(2)),
    ("STATE", Constraint::Fill(2)),
    ("INSTANCES", Constraint::Length(9)),
    ("VCPUS", Constraint::Length(5)),
    ("MEMORY", Constraint::Length(9)),
    ("DISK LEFT", Constraint::Length(9)),
];
const SERVICES: Columns = &[
    ("SERVICE", Constraint::Fill(2)),
    ("ROLE", Constraint::Fill(1)),
    ("READY", Constraint::Length(7)),
    ("UPDATE", Constraint::Fill(1)),
];
const INSTANCES: Columns = &[
    ("INSTANCE", Constraint::Fill(2)),
    ("STATE", Constraint::Length(10)),
    ("SINCE", Constraint::Length(6)),
    ("NODE", Constraint::Fill(1)),
    ("RESTARTS", Constraint::Length(12)),
    ("REASON", Constraint::Fill(4)),
];

/// A part of the screen with a table in it, from where it was scrolled to.
fn part(
    frame: &mut Frame<'_>,
    area: Rect,
    view: &View,
    pane: Pane,
    name: &str,
    columns: Columns,
    rows: Vec<Row<'_>>,
) {
    let (all, skipped) = (rows.len(), view.scrolled(pane));
    let header = columns.iter().map(|(name, _)| *name);
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::DIM));
    let widths = columns.iter().map(|(_, width)| *width);
    let table = Table::new(rows.into_iter().skip(skipped), widths)
        .header(header)
        .block(block(view, pane, name, all, skipped));
    frame.render_widget(table, area);
}

fn block<'a>(view: &View, pane: Pane, name: &'a str, all: usize, skipped: usize) -> Block<'a> {
    let place = match skipped {
        0 => format!(" {name} ({all}) "),
        _ => format!(" {name} ({all}, {skipped} passed) "),
    };
    let style = if view.focus == pane {
        Style::new().fg(Color::Cyan)
    } else {
        Style::new().add_modifier(Modifier::DIM)
    };
    Block::bordered().title(place).border_style(style)
}

fn summary(view: &View) -> Line<'static> {
    let heard = view.nodes.iter().filter(|node| node.connected).count();
    let (instances, ready) = view.ready();
    let count = |is: usize, of: usize, what: &str| {
        let style = if is == of { good() } else { bad() };
        Span::styled(format!(" {is}/{of} {what} "), style)
    };
    Line::from(vec![
        Span::styled(" fabric ", Style::new().add_modifier(Modifier::BOLD)),
        count(heard, view.nodes.len(), "nodes heard"),
        count(ready, instances, "instances Ready"),
    ])
}

/// Nodes under the name of what they fail together with, unless that is their own.
fn node_rows(nodes: &[Node], now: SystemTime) -> Vec<Row<'static>> {
    let mut sorted: Vec<&Node> = nodes.iter().collect();
    sorted.sort_by_key(|node| (&node.fault_domain, &node.node_id));
    let mut rows = Vec::new();
    let mut domain = "";
    for node in sorted {
        let own = node.fault_domain == node.node_id;
        if !own && node.fault_domain != domain {
            let name = clean(&node.fault_domain);
            rows.push(Row::new([name]).style(Style::new().add_modifier(Modifier::BOLD)));
        }
        domain = &node.fault_domain;
        rows.push(node_row(node, own, now));
    }
    rows
}

fn node_row(node: &Node, own: bool, now: SystemTime) -> Row<'static> {
    let inventory = node.inventory.clone().unwrap_or_default();
    let mut state = match (node.connected, node.fenced) {
        (true, _) => "connected".to_owned(),
        (false, true) => "fenced".to_owned(),
        (false, false) => format!("silent {}", words::age(node.last_seen.as_ref(), now)),
    };
    let closed = words::closed(node);
    for why in &closed {
        state = format!("{state}, {why}");
    }
    let style = match (node.connected, closed.is_empty()) {
        (false, _) => bad(),
        (true, false) => doubtful(),
        (true, true) => good(),
    };
    let indent = if own { "" } else { "  " };
    Row::new([
        Cell::new(format!("{indent}{}", node.node_id)),
        Cell::new(state).style(style),
        Cell::new(node.instances.to_string()),
        Cell::new(format!("{}/{}", node.vcpus_used, inventory.cpus)),
        Cell::new(words::bytes(node.memory_used_bytes)),
        Cell::new(words::bytes(node.disk_free_bytes)),
    ])
}

fn service_rows(services: &[Service]) -> Vec<Row<'static>> {
    let mut rows = Vec::new();
    for service in services {
        for deployment in &service.deployments {
            let name = match deployment.slot() {
                Slot::Staging => format!("{} (staging)", service.name),
                Slot::Production | Slot::Unspecified => service.name.clone(),
            };
            let update = deployment.update.as_ref();
            let update = update.map(|update| words::update_state(update.state()));
            let update = update.filter(|state| state != "done").unwrap_or_default();
            for role in &deployment.roles {
                let style = if role.ready == role.instances {
                    good()
                } else {
                    bad()
                };
                rows.push(Row::new([
                    Cell::new(name.clone()),
                    Cell::new(role.name.clone()),
                    Cell::new(format!("{}/{}", role.ready, role.instances)).style(style),
                    Cell::new(update.clone()).style(doubtful()),
                ]));
            }
        }
    }
    rows
}

fn instance_row(instance: &Instance, now: SystemTime) -> Row<'static> {
    let style = match instance.state.as_str() {
        "Ready" => good(),
        "Failed" | "Unhealthy" | "Unknown" => bad(),
        _ => doubtful(),
    };
    let status = instance.status.clone().unwrap_or_default();
    let role_restarts = status.role.map_or(0, |role| role.restarts);
    Row::new([
        Cell::new(instance.instance_id.clone()),
        Cell::new(clean(&instance.state)).style(style),
        Cell::new(words::age(instance.since.as_ref(), now)),
        Cell::new(instance.node_id.clone()),
        Cell::new(format!("{} vm, {role_restarts} role", status.vm_restarts)),
        Cell::new(clean(&instance.reason)),
    ])
}

/// The newest last; scrolled from there.
fn events(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let shown = view.events();
    let skipped = view.scrolled(Pane::Events);
    let room = usize::from(area.height.saturating_sub(2));
    let end = shown.len().saturating_sub(skipped);
    let lines = shown[end.saturating_sub(room)..end].iter();
    let lines: Vec<Line<'_>> = lines.map(|event| event_line(event)).collect();
    let name = if view.unwell { "Warnings" } else { "Events" };
    let block = block(view, Pane::Events, name, shown.len(), skipped);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn event_line(event: &Event) -> Line<'static> {
    let style = if event.warning {
        doubtful()
    } else {
        Style::new()
    };
    let cause = event.cause.as_ref().map(|cause| clean(&cause.reason));
    let cause = cause.map(|reason| format!("  ← {reason}"));
    Line::from(vec![
        Span::raw(format!("{} ", words::clock(event.time.as_ref()))),
        Span::styled(format!("{:<18} ", clean(&event.reason)), style),
        Span::raw(format!("{:<20} ", clean(&event.subject))),
        Span::raw(clean(&event.message)),
        Span::styled(
            cause.unwrap_or_default(),
            Style::new().add_modifier(Modifier::DIM),
        ),
    ])
}

const fn good() -> Style {
    Style::new().fg(Color::Green)
}

const fn doubtful() -> Style {
    Style::new().fg(Color::Yellow)
}

const fn bad() -> Style {
    Style::new().fg(Color::Red)
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
