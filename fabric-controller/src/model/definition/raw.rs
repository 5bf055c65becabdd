//! The service file as TOML sees it: which keys there are and of which type.
//!
//! Values are checked in [`super::check`], where the name of the role is known
//! and all problems can be told at once. Unknown keys are refused here.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Spanned<String>,
    #[serde(default)]
    pub(super) sizes: BTreeMap<Spanned<String>, Size>,
    #[serde(default)]
    pub(super) role: Vec<Role>,
    #[serde(default)]
    pub(super) update: Update,
}

/// `[update]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Update {
    pub(super) bake: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<String>>,
    pub(super) on_failure: Option<Spanned<String>>,
    pub(super) upgrade_domains: Option<Spanned<i64>>,
    pub(super) fault_domains: Option<Spanned<i64>>,
}

/// `[sizes.NAME]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Size {
    pub(super) vcpus: Spanned<i64>,
    pub(super) memory: Spanned<String>,
    pub(super) cpu_weight: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) resources: BTreeMap<Spanned<String>, Spanned<i64>>,
}

/// `[[role]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Role {
    pub(super) name: Spanned<String>,
    pub(super) kind: Spanned<String>,
    pub(super) size: Spanned<String>,
    pub(super) instances: Option<Spanned<i64>>,
    pub(super) image: Spanned<String>,
    pub(super) package: Option<Spanned<String>>,
    pub(super) command: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    pub(super) environment: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default)]
    pub(super) settings: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) settings_change: Option<Spanned<String>>,
    pub(super) upgrade_domains: Option<Spanned<i64>>,
    pub(super) fault_domains: Option<Spanned<i64>>,
    pub(super) spread: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) node_labels: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) kvm: Option<Spanned<String>>,
    pub(super) availability_set: Option<Spanned<String>>,
    pub(super) os_updates: Option<Spanned<String>>,
    pub(super) stop_grace: Option<Spanned<String>>,
    pub(super) startup_grace: Option<Spanned<String>>,
    pub(super) user: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) endpoint: Vec<Endpoint>,
    pub(super) liveness: Option<Spanned<Probe>>,
    pub(super) readiness: Option<Spanned<Probe>>,
    pub(super) restart: Option<Restart>,
    pub(super) warm_start: Option<Spanned<bool>>,
    pub(super) before_snapshot: Option<Spanned<Vec<String>>>,
    pub(super) after_start: Option<Spanned<Vec<String>>>,
}

/// `[[role.endpoint]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Endpoint {
    pub(super) name: Spanned<String>,
    pub(super) protocol: Spanned<String>,
    pub(super) port: Spanned<i64>,
    pub(super) target_port: Option<Spanned<i64>>,
}

/// `[role.liveness]` and `[role.readiness]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Probe {
    pub(super) http: Option<HttpCheck>,
    pub(super) tcp: Option<TcpCheck>,
    pub(super) exec: Option<Spanned<Vec<String>>>,
    pub(super) period: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<String>>,
    pub(super) failure_threshold: Option<Spanned<i64>>,
    pub(super) success_threshold: Option<Spanned<i64>>,
}

/// `http = { port = 8080, path = "/" }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpCheck {
    pub(super) port: Spanned<i64>,
    pub(super) path: Option<Spanned<String>>,
}

/// `tcp = { port = 8080 }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TcpCheck {
    pub(super) port: Spanned<i64>,
}

/// `[role.restart]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Restart {
    pub(super) policy: Option<Spanned<String>>,
    pub(super) backoff_initial: Option<Spanned<String>>,
    pub(super) backoff_max: Option<Spanned<String>>,
}
