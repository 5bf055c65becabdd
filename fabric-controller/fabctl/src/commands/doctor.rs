//! `fabctl doctor`

use fabric_trust::context::Context as Trusted;

use crate::{
    cli::{Doctor, Format},
    client::Client,
    doctor::{Finding, checks, facts::Facts},
    error::{Failure, Result},
    show::{self, doctor as shown},
};

/// A controller that cannot be reached, and a context that cannot be used, are findings.
pub(super) async fn run(chosen: Result<Trusted>, settings: Doctor, format: Format) -> Result<()> {
    let (facts, findings) = look(chosen, settings).await;
    match format {
        Format::Table => show::print_line(&shown::lines(&facts, &findings))?,
        Format::Json => show::print_json(&shown::object(&facts, &findings))?,
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(Failure::Found(shown::summary(&findings)))
    }
}

async fn look(chosen: Result<Trusted>, settings: Doctor) -> (Facts, Vec<Finding>) {
    let context = match chosen {
        Ok(context) => context,
        Err(failure) => return (Facts::default(), vec![unusable("context", &failure)]),
    };
    let mut facts = Facts::of(&context);
    match Client::connect(&context).await {
        Ok(client) => {
            facts = facts.gather(&client).await;
            let findings = checks::findings(&facts, settings.patience.into());
            (facts, findings)
        }
        Err(failure) => {
            let mut findings = vec![unusable("controller", &failure)];
            findings.extend(checks::findings(&facts, settings.patience.into()));
            (facts, findings)
        }
    }
}

/// Without it nothing else can be looked at.
fn unusable(subject: &str, failure: &Failure) -> Finding {
    let remedy = failure
        .hint()
        .unwrap_or_else(|| "mend that first; nothing else could be looked at".to_owned());
    Finding::problem(subject, failure.causes().join(": "), remedy)
}
