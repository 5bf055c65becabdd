//! Has a role come as far in the guest of a template as that is to have it: plays its host,
//! which knows of no instance.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{TemplateError, TemplateRole, key::Key};
use crate::{
    clock::Clock,
    guest::{
        report::{RoleCondition, duration},
        server::{GuestGoal, GuestLink, GuestServer, Heard},
    },
    hypervisor::Hypervisor,
    instance::{
        directory::{InstanceDirectory, ROLE_LOG},
        state::GuestSaid,
    },
    output::role_log::RoleLog,
};

/// How often the guest gives a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// For its hook, and for what comes after.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host of a guest that is nobody.
#[derive(Debug)]
pub(super) struct RoleHost {
    heard: mpsc::Receiver<Heard>,
    startup: Duration,
    /// What the guest is told, for as long as this is here.
    _goal: watch::Sender<Option<GuestGoal>>,
    _server: GuestServer,
}

impl RoleHost {
    /// Waits for the guest that will run in a directory.
    pub(super) fn listen(
        key: &Key,
        directory: &InstanceDirectory,
        role: &TemplateRole,
        hypervisor: &dyn Hypervisor,
    ) -> Result<Self, TemplateError> {
        let goal = watch::Sender::new(Some(GuestGoal {
            boot: 0,
            resumes: 0,
            incarnation: 1,
            instance: None,
            heartbeat: HEARTBEAT,
            off: false,
            role: Some(Arc::clone(&role.spec)),
            withheld: false,
        }));
        let (heard_by, heard) = mpsc::channel(64);
        let listen = || {
            let link = GuestLink {
                goal: goal.subscribe(),
                heard: heard_by,
                log: Arc::new(RoleLog::open(&directory.file(ROLE_LOG))?),
                clock: Clock::system(),
            };
            hypervisor.listen(directory, link)
        };
        let server = listen().map_err(|source| TemplateError::Listen {
            key: key.clone(),
            source,
        })?;
        Ok(Self {
            heard,
            startup: duration(role.spec.startup_grace).unwrap_or_default(),
            _goal: goal,
            _server: server,
        })
    }

    /// How long the role may take, after its guest has booted.
    pub(super) fn patience(&self) -> Duration {
        self.startup.saturating_add(PATIENCE)
    }

    /// Waits until the role fails; says how. One that cannot be made ready at its
    /// first attempt is not copied.
    pub(super) async fn failure(&mut self) -> String {
        while let Some(Heard { said, .. }) = self.heard.recv().await {
            if let GuestSaid::Role(report) = said {
                match report.condition {
                    RoleCondition::Unhealthy | RoleCondition::Stopped => return report.reason,
                    RoleCondition::Starting | RoleCondition::Ready | RoleCondition::Busy => {}
                }
            }
        }
        std::future::pending().await
    }
}
