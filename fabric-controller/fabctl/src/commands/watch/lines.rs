//! Every change of an instance and every event as a line.

use std::collections::BTreeMap;

use fabric_proto::v1::{Instance, WatchInstancesResponse};
use serde_json::json;

use super::follow::Change;
use crate::{
    cli::Format,
    error::Result,
    show::{self, clean, table},
};

/// What was printed last of each instance.
pub(super) struct Lines {
    format: Format,
    instances: BTreeMap<String, Instance>,
}

impl Lines {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            instances: BTreeMap::new(),
        }
    }

    pub(super) fn print(&mut self, change: Change) -> Result<()> {
        match (change, self.format) {
            (Change::Gone(why), Format::Table) => show::print_line(&why),
            (Change::Gone(why), Format::Json) => {
                eprintln!("{why}");
                Ok(())
            }
            (Change::Instance(change), _) => self.instance(*change),
            (Change::Event(event), Format::Table) => show::print_line(&table::event(&event)),
            (Change::Event(event), Format::Json) => {
                show::print_json(&json!({ "event": show::json::event(&event) }))
            }
            (Change::Connected, _) => {
                // Everything comes again.
                self.instances.clear();
                Ok(())
            }
            (Change::Nodes(_) | Change::Services(_) | Change::Failed(_), _) => Ok(()),
        }
    }

    fn instance(&mut self, change: WatchInstancesResponse) -> Result<()> {
        let Some(instance) = change.instance else {
            return Ok(());
        };
        if self.format == Format::Json {
            let shown = show::json::instance(&instance);
            show::print_json(&json!({ "instance": shown, "deleted": change.deleted }))?;
        } else {
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
            let id = instance.instance_id.clone();
            self.instances.insert(id, instance);
        }
        Ok(())
    }
}
