//! A running controller: its tasks, its listeners, its end.

use std::{
    io,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use fabric_metrics::serve::Listener as MetricsListener;
use fabric_proto::{
    FILE_DESCRIPTOR_SET,
    node::v1::node_service_server::NodeServiceServer as HostAgentServer,
    v1::{
        audit_service_server::AuditServiceServer, blob_service_server::BlobServiceServer,
        controller_service_server::ControllerServiceServer,
        event_service_server::EventServiceServer, instance_service_server::InstanceServiceServer,
        node_service_server::NodeServiceServer, placement_service_server::PlacementServiceServer,
        service_service_server::ServiceServiceServer, trust_service_server::TrustServiceServer,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time,
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};

use crate::{
    api::{
        AuditApi, BlobApi, ControllerApi, EventApi, InstanceApi, NodeApi, PlacementApi, ServiceApi,
        TrustApi,
    },
    clock,
    controller::{Config, Controller, OpenError},
    data_dir::{DataDir, DataDirError},
    error::Result as ControllerResult,
    events, idempotency,
    listen::{Address, ListenError, Listener, Peer},
    maintenance::{self, MaintenanceError},
    metrics,
    model::definition::LONGEST_FILE,
    node_session::{self, NodeSessions},
    reconcile::{self, Reconciler, chain, goal::Terms},
    trust::{
        TrustError, audit, grant,
        guard::Guard,
        setup::{self, Setup},
    },
};

/// How long calls may take to end once everything is to.
const GRACE: Duration = Duration::from_secs(5);
/// How often is tidied up.
const TIDY: Duration = Duration::from_secs(60);
/// How often a silent connection is asked whether it is still there, and how
/// long for an answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Most calls at once on one connection.
const CALLS: u32 = 1024;
/// What a message has around its longest field.
const AROUND: usize = 64 * 1024;
/// Biggest message of a node: the status of very many instances.
const FROM_NODE: usize = 16 << 20;
/// Biggest message to an operator: the list of very many instances.
const TO_OPERATOR: usize = 64 << 20;

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A restore was cut off, and cannot be carried on.
    #[error("the restore that was cut off cannot be carried on")]
    Restore(#[source] MaintenanceError),
    /// Its store or its certificates cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Certificates cannot be made.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot serve metrics.
    #[error(transparent)]
    Metrics(#[from] fabric_metrics::serve::ListenError),
    /// A listener failed.
    #[error("a listener failed")]
    Transport(#[source] tonic::transport::Error),
    /// Reflection cannot describe the services.
    #[error("the services' description cannot be read")]
    Description(#[source] tonic_reflection::server::Error),
}

/// A controller that is about to run.
pub struct Serve {
    controller: Arc<Controller>,
    listeners: Vec<Listener>,
    metrics: Option<MetricsListener>,
}

impl Serve {
    /// Takes the data directory and opens the listeners.
    ///
    /// # Errors
    ///
    /// Either cannot be had.
    pub async fn prepare(
        data_dir: &Path,
        addresses: Vec<Address>,
        mut config: Config,
    ) -> Result<Self, ServeError> {
        let locked = DataDir::open(data_dir)?;
        if maintenance::finish_restore(&locked).map_err(ServeError::Restore)? {
            tracing::info!("carried on a restore that was cut off");
        }
        let mut listeners = Vec::new();
        for address in addresses {
            listeners.push(Listener::bind(address).await?);
        }
        let metrics = match &config.metrics_listen {
            Some(address) => Some(MetricsListener::bind(address).await?),
            None => None,
        };
        // With the ports that were given.
        let addresses: Vec<_> = listeners.iter().map(Listener::address).cloned().collect();
        let server = setup::server(&addresses).unwrap_or_else(setup::local);
        if let Some(new) = setup::set_up(data_dir, &server, &[])? {
            tell(&new);
        }
        config.names.extend(setup::listened(&addresses));
        let controller = Controller::open(locked, config).await?;
        Ok(Self {
            controller,
            listeners,
            metrics,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.listeners.iter().map(Listener::address)
    }

    /// Runs until `stop` is cancelled, then ends every call within a grace.
    ///
    /// # Errors
    ///
    /// A listener failed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServeError> {
        let mut scraped = JoinSet::new();
        if let Some(listener) = self.metrics {
            scraped.spawn(serve_metrics(Arc::clone(&self.controller), listener));
        }
        let connections = self.listeners.into_iter().map(|listener| {
            tracing::info!("listening on {}", listener.address());
            listener.connections(&self.controller.trust.gate)
        });
        let connections = connections.collect();
        serve(self.controller, connections, stop).await
    }
}

/// Runs a controller on the connections that come, until `stop` is cancelled, then ends
/// every call within a grace.
///
/// # Errors
///
/// A listener failed.
pub async fn serve<S, C>(
    controller: Arc<Controller>,
    listeners: Vec<S>,
    stop: CancellationToken,
) -> Result<(), ServeError>
where
    S: Stream<Item = io::Result<C>> + Send + 'static,
    C: Connected<ConnectInfo = Peer> + AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let end = controller.end.clone();
    let mut tasks = background(&controller);
    let routes = routes(&controller).await?;
    let guard = Guard::new(&controller);
    let mut servers = JoinSet::new();
    for connections in listeners {
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(Some(CALLS))
            .layer(guard.clone())
            .add_routes(routes.clone());
        let ended = end.clone().cancelled_owned();
        servers.spawn(server.serve_with_incoming_shutdown(connections, ended));
    }
    drop(routes);
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        ended = servers.join_next() => ended.and_then(Result::ok).and_then(Result::err),
    };
    tracing::info!("ending");
    end.cancel();
    let drain = async {
        while servers.join_next().await.is_some() {}
        while tasks.join_next().await.is_some() {}
        controller.tasks.close();
        controller.tasks.wait().await;
    };
    if time::timeout(GRACE, drain).await.is_err() {
        tracing::warn!(
            "some calls did not end within {} s and are cut off",
            GRACE.as_secs()
        );
    }
    servers.shutdown().await;
    tasks.shutdown().await;
    failed.map_or(Ok(()), |error| Err(ServeError::Transport(error)))
}

/// Tells what a new data directory has, and how to use it.
fn tell(new: &Setup) {
    tracing::info!(fingerprint = new.fingerprint, "made a CA");
    tracing::info!(
        "an administrator's context is in {0}: `fabctl context import {0}`",
        new.file.display()
    );
}

/// What goes on beside calls.
fn background(controller: &Arc<Controller>) -> JoinSet<()> {
    let reconciler = Reconciler {
        store: Arc::clone(&controller.store),
        registry: Arc::clone(&controller.registry),
        outputs: Arc::clone(&controller.outputs),
        waker: Arc::clone(&controller.waker),
        policy: controller.config.policy,
        lease: controller.config.lease,
        terms: Terms {
            heartbeat_period: controller.config.heartbeat_period,
            lease: controller.config.lease.map(|policy| policy.length),
        },
        condemn_percent: controller.config.condemn_percent,
        metrics: Arc::clone(&controller.metrics),
        told_held: AtomicBool::new(false),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(reconciler.run(controller.end.clone()));
    tasks.spawn(node_session::watch_nodes(Arc::clone(controller)));
    tasks.spawn(tidy(Arc::clone(controller)));
    let (store, waker) = (Arc::clone(&controller.store), Arc::clone(&controller.waker));
    let end = controller.end.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = end.cancelled() => {}
            ended = reconcile::wake_on_changes(store, waker) => {
                if let Err(error) = ended {
                    tracing::error!(error = %chain(&error), "the store cannot be watched");
                }
            }
        }
    });
    tasks
}

/// Answers with metrics, to whoever can reach the listener, until the controller ends.
async fn serve_metrics(controller: Arc<Controller>, listener: MetricsListener) {
    let end = controller.end.clone();
    let look = move || {
        let controller = Arc::clone(&controller);
        async move {
            let text = metrics::look::text(&controller).await;
            text.map_err(|error| chain(&error))
        }
    };
    tokio::select! {
        () = end.cancelled() => {}
        () = listener.serve(look) => {}
    }
}

/// Keeps within bounds what would otherwise grow for ever.
async fn tidy(controller: Arc<Controller>) {
    let mut timer = time::interval(TIDY);
    loop {
        tokio::select! {
            () = controller.end.cancelled() => return,
            _ = timer.tick() => {}
        }
        let store = &*controller.store;
        let done: ControllerResult<()> = async {
            controller.blobs.sweep().await?;
            events::trim(store, controller.config.events_kept).await?;
            audit::trim(store, controller.config.events_kept).await?;
            idempotency::forget_old(store, clock::now()).await?;
            let serials = grant::forget_expired(store, clock::now()).await?;
            let left = |serial: &str| serials.iter().any(|one| one == serial);
            controller.trust.revoked.retain(left);
            Ok(())
        }
        .await;
        if let Err(error) = done {
            tracing::warn!(error = %chain(&error), "cannot tidy up; trying again later");
        }
        if let Err(error) = controller.trust.tls.renew(clock::system()) {
            tracing::error!(error = %chain(&error), "cannot renew the controller's certificate");
        }
    }
}

/// All services, with health and reflection.
async fn routes(controller: &Arc<Controller>) -> Result<Routes, ServeError> {
    let shared = || Arc::clone(controller);
    let own = ControllerServiceServer::new(ControllerApi {
        controller: shared(),
    })
    .max_decoding_message_size(AROUND);
    let nodes = NodeServiceServer::new(NodeApi {
        controller: shared(),
    });
    let blobs = BlobServiceServer::new(BlobApi {
        controller: shared(),
    })
    .max_decoding_message_size(crate::blobs::PIECE + AROUND);
    let services = ServiceServiceServer::new(ServiceApi {
        controller: shared(),
    })
    .max_decoding_message_size(LONGEST_FILE * 2 + AROUND)
    .max_encoding_message_size(TO_OPERATOR);
    let instances = InstanceServiceServer::new(InstanceApi {
        controller: shared(),
    })
    .max_decoding_message_size(AROUND)
    .max_encoding_message_size(TO_OPERATOR);
    let events = EventServiceServer::new(EventApi {
        controller: shared(),
    })
    .max_decoding_message_size(AROUND)
    .max_encoding_message_size(TO_OPERATOR);
    let placement = PlacementServiceServer::new(PlacementApi {
        controller: shared(),
    })
    .max_decoding_message_size(LONGEST_FILE * 2 + AROUND)
    .max_encoding_message_size(TO_OPERATOR);
    let trust = TrustServiceServer::new(TrustApi {
        controller: shared(),
    })
    .max_decoding_message_size(AROUND);
    let audit = AuditServiceServer::new(AuditApi {
        controller: shared(),
    })
    .max_decoding_message_size(AROUND);
    let sessions = HostAgentServer::new(NodeSessions::new(shared()))
        .max_decoding_message_size(FROM_NODE)
        .max_encoding_message_size(FROM_NODE);
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<ControllerServiceServer<ControllerApi>>()
        .await;
    health.set_serving::<NodeServiceServer<NodeApi>>().await;
    health.set_serving::<BlobServiceServer<BlobApi>>().await;
    health
        .set_serving::<ServiceServiceServer<ServiceApi>>()
        .await;
    health
        .set_serving::<InstanceServiceServer<InstanceApi>>()
        .await;
    health.set_serving::<EventServiceServer<EventApi>>().await;
    health
        .set_serving::<PlacementServiceServer<PlacementApi>>()
        .await;
    health.set_serving::<TrustServiceServer<TrustApi>>().await;
    health.set_serving::<AuditServiceServer<AuditApi>>().await;
    health.set_serving::<HostAgentServer<NodeSessions>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(ServeError::Description)?;
    Ok(Routes::new(health_service)
        .add_service(reflection)
        .add_service(own)
        .add_service(nodes)
        .add_service(blobs)
        .add_service(services)
        .add_service(placement)
        .add_service(instances)
        .add_service(events)
        .add_service(trust)
        .add_service(audit)
        .add_service(sessions))
}
