//! `fabctl context`

use fabric_trust::context::{Context, Contexts};
use serde_json::{Value, json};

use crate::{
    cli::{ContextCommand, Format},
    context::Known,
    error::{Failure, Result},
    show,
};

pub(super) fn run(command: ContextCommand, format: Format) -> Result<()> {
    let mut known = Known::read()?;
    match command {
        ContextCommand::List => {
            let all = known.contexts.contexts.iter();
            let rows: Vec<Value> = all
                .map(|(name, context)| describe(name, context, *name == known.contexts.current))
                .collect();
            match format {
                Format::Json => show::print_json(&rows.into()),
                Format::Table => rows.iter().try_for_each(|row| show::print_line(&line(row))),
            }
        }
        ContextCommand::Show { name } => {
            let name = name.unwrap_or_else(|| known.contexts.current.clone());
            let current = name == known.contexts.current;
            let shown = describe(&name, known.get(&name)?, current);
            match format {
                Format::Json => show::print_json(&shown),
                Format::Table => {
                    let fields = shown.as_object().into_iter().flatten();
                    for (field, value) in fields {
                        let value = value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned);
                        show::print_line(&format!("{field:<12} {value}"))?;
                    }
                    show::print_line(&format!("{:<12} {}", "file", known.file.display()))
                }
            }
        }
        ContextCommand::Use { name } => {
            known.get(&name)?;
            known.contexts.current.clone_from(&name);
            known.write()?;
            show::print_line(&format!("using {name}"))
        }
        ContextCommand::Import { file, name } => {
            let given = Contexts::read(&file)?;
            let found = given.contexts.get(&given.current).cloned();
            let context = found.ok_or_else(|| {
                Failure::Input(format!("there is no context in {}", file.display()))
            })?;
            let name = name.unwrap_or(given.current);
            let other = known.contexts.contexts.get(&name);
            if other.is_some_and(|other| other.server != context.server) {
                return Err(Failure::Input(format!(
                    "there is a context {name:?} already, for another controller; give this one \
                     another name with --name"
                )));
            }
            known.contexts.contexts.insert(name.clone(), context);
            known.contexts.current.clone_from(&name);
            known.write()?;
            show::print_line(&format!("using {name}"))
        }
    }
}

/// All but the keys.
fn describe(name: &str, context: &Context, current: bool) -> Value {
    let identity = context.identity();
    let (who, expires) = match &identity {
        Ok(identity) => (
            identity.to_string(),
            humantime::format_rfc3339_seconds(identity.not_after).to_string(),
        ),
        Err(_) if context.certificate.is_empty() => {
            ("whoever opens the socket".to_owned(), "-".to_owned())
        }
        Err(error) => (error.to_string(), "-".to_owned()),
    };
    json!({
        "name": name,
        "current": current,
        "server": context.server.to_string(),
        "who": who,
        "expires": expires,
    })
}

fn line(row: &Value) -> String {
    let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let mark = if row["current"] == true { "*" } else { " " };
    format!(
        "{mark} {:<16} {:<28} {:<20} until {}",
        text("name"),
        text("server"),
        text("who"),
        text("expires")
    )
}
