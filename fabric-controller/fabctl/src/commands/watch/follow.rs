//! What the controller tells, for ever; one that is restarted is found again.

use std::time::Duration;

use fabric_proto::v1::{
    Event, ListEventsRequest, ListNodesRequest, ListServicesRequest, Node, Service,
    WatchEventsRequest, WatchInstancesRequest, WatchInstancesResponse,
};
use tokio::{sync::mpsc, time};
use tonic::{Code, Status};

use crate::{
    client::Client,
    error::{Failure, Result},
    show::clean,
};

/// Events of before that are told first.
const BEFORE: u64 = 12;
/// How long until a controller that has gone is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often nodes and services are asked for.
const LOOK: Duration = Duration::from_secs(1);

/// Something that is not as it was.
#[derive(Debug)]
pub(super) enum Change {
    /// Everything is told anew.
    Connected,
    /// The controller does not answer; why.
    Gone(String),
    /// An instance.
    Instance(Box<WatchInstancesResponse>),
    /// Something has happened.
    Event(Event),
    /// All nodes.
    Nodes(Vec<Node>),
    /// All services that are watched.
    Services(Vec<Service>),
    /// Nothing more will be told.
    Failed(Failure),
}

/// See the [module](self).
pub(super) struct Follow {
    pub(super) client: Client,
    /// Only this service, unless empty.
    pub(super) service: String,
    /// Nodes and services as well.
    pub(super) whole: bool,
    pub(super) changes: mpsc::Sender<Change>,
}

impl Follow {
    pub(super) async fn run(self) {
        if let Err(failure) = self.follow().await {
            let _ = self.changes.send(Change::Failed(failure)).await;
        }
    }

    async fn follow(&self) -> Result<()> {
        let mut cursor = self.newest().await?.saturating_sub(BEFORE);
        loop {
            let status = match self.follow_once(&mut cursor).await {
                Err(Failure::Call(status)) if status.code() == Code::Unavailable => status,
                other => return other,
            };
            let why = clean(status.message());
            let gone = format!("the controller is gone ({why}); trying again");
            self.tell(Change::Gone(gone)).await?;
            time::sleep(AGAIN).await;
        }
    }

    async fn newest(&self) -> Result<u64> {
        let request = ListEventsRequest {
            after_cursor: u64::MAX,
            limit: 1,
            subject: String::new(),
        };
        let answer = self.client.events().list_events(request).await?;
        Ok(answer.into_inner().last_cursor)
    }

    async fn follow_once(&self, cursor: &mut u64) -> Result<()> {
        let request = WatchInstancesRequest {
            service: self.service.clone(),
        };
        let mut instances = self.client.instances();
        let mut instances = instances.watch_instances(request).await?.into_inner();
        let request = WatchEventsRequest {
            after_cursor: *cursor,
            subject: String::new(),
        };
        let mut events = self.client.events();
        let mut events = events.watch_events(request).await?.into_inner();
        self.tell(Change::Connected).await?;
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let ended = || Failure::from(Status::unavailable("the controller has ended the watch"));
        loop {
            tokio::select! {
                change = instances.message() => {
                    let change = Box::new(change?.ok_or_else(ended)?);
                    self.tell(Change::Instance(change)).await?;
                }
                event = events.message() => {
                    if let Some(event) = event?.ok_or_else(ended)?.event {
                        *cursor = event.cursor;
                        if self.is_watched(&event) {
                            self.tell(Change::Event(event)).await?;
                        }
                    }
                }
                _ = look.tick(), if self.whole => self.look().await?,
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let answer = self.client.nodes().list_nodes(ListNodesRequest {}).await?;
        self.tell(Change::Nodes(answer.into_inner().nodes)).await?;
        let request = ListServicesRequest {};
        let answer = self.client.services().list_services(request).await?;
        let mut services = answer.into_inner().services;
        services.retain(|one| self.service.is_empty() || one.name == self.service);
        self.tell(Change::Services(services)).await
    }

    fn is_watched(&self, event: &Event) -> bool {
        let service = &self.service;
        service.is_empty()
            || event.subject == *service
            || event.subject.starts_with(&format!("{service}-"))
    }

    /// Nobody wants it any more: an end like any other.
    async fn tell(&self, change: Change) -> Result<()> {
        let gone = |_| Failure::from(Status::cancelled("nobody watches any more"));
        self.changes.send(change).await.map_err(gone)
    }
}
