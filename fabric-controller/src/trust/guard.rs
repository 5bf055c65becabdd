//! The one place in which calls are allowed or denied: a layer around all services.
//!
//! It finds out who calls, holds the call to the [`table`](super::table), tells the
//! services who it is ([`Caller::of`]), and sees to it that the
//! [audit log](super::audit) has what changes something, and every denial.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};

use super::{
    audit::{Call, Denials},
    caller::{Caller, Kind},
    table::Rule,
    tls::Revoked,
};
use crate::{clock, controller::Controller, listen::Peer, metrics::Metrics, store::Store};

/// See the [module](self).
#[derive(Clone)]
pub struct Guard(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    revoked: Arc<Revoked>,
    denials: Arc<Denials>,
    metrics: Arc<Metrics>,
}

impl Guard {
    /// Around the services of a controller.
    #[must_use]
    pub fn new(controller: &Controller) -> Self {
        Self(Arc::new(Shared {
            store: Arc::clone(&controller.store),
            revoked: Arc::clone(&controller.trust.revoked),
            denials: Arc::clone(&controller.trust.denials),
            metrics: Arc::clone(&controller.metrics),
        }))
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, services: S) -> Guarded<S> {
        Guarded {
            guard: self.clone(),
            services,
        }
    }
}

/// Services behind the guard.
#[derive(Clone)]
pub struct Guarded<S> {
    guard: Guard,
    services: S,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer<Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let guard = Arc::clone(&self.guard.0);
        let waiting = self.services.clone();
        let mut services = std::mem::replace(&mut self.services, waiting);
        Box::pin(async move {
            let path = request.uri().path().trim_start_matches('/').to_owned();
            let Some(peer) = request.extensions().get::<Peer>() else {
                let unknown = Status::unauthenticated("it is not known who makes this call");
                return Ok(unknown.into_http());
            };
            let caller = Caller::new(peer);
            let begun = Instant::now();
            let counted = |status: &Status| {
                let method = Rule::of(&path).map(|rule| rule.call);
                let code = format!("{:?}", status.code());
                let took = begun.elapsed().as_secs_f64();
                guard.metrics.call(method, &code, took);
            };
            let rule = match guard.decide(&caller, &path) {
                Ok(rule) => rule,
                Err(denied) => {
                    counted(&denied);
                    guard
                        .denials
                        .write(&*guard.store, &caller, &path, &denied)
                        .await;
                    return Ok(denied.into_http());
                }
            };
            request.extensions_mut().insert(caller.clone());
            let call = rule.changes.then(|| Call::new(caller.clone(), rule.call));
            let answer = match &call {
                Some(call) => call.scope(services.call(request)).await?,
                None => services.call(request).await?,
            };
            let status = Status::from_header_map(answer.headers());
            let status = status.unwrap_or_else(|| Status::ok(""));
            counted(&status);
            let denied = status.code() == Code::PermissionDenied
                || (status.code() != Code::Ok && caller.kind == Kind::Joining);
            match call {
                _ if denied => {
                    guard
                        .denials
                        .write(&*guard.store, &caller, rule.call, &status)
                        .await;
                }
                Some(call) => call.ended(&*guard.store, &status).await,
                None => {}
            }
            Ok(answer)
        })
    }
}

impl Shared {
    /// The rule that allows it.
    fn decide(&self, caller: &Caller, path: &str) -> Result<&'static Rule, Status> {
        if !caller.serial.is_empty() && self.revoked.contains(&caller.serial) {
            return Err(Status::unauthenticated(format!(
                "the certificate {} of {caller} was revoked; if that was a mistake, an \
                 administrator can make a new one",
                caller.serial
            )));
        }
        if !caller.is_good(clock::system()) {
            return Err(Status::unauthenticated(format!(
                "the certificate of {caller} has expired by the controller's clock; get a new one"
            )));
        }
        let Some(rule) = Rule::of(path) else {
            // Who has no certificate is not told what there is.
            if caller.kind == Kind::Joining {
                return Err(Status::unauthenticated("this call needs a certificate"));
            }
            let what = "this controller has no such call; is it of another version?";
            return Err(Status::unimplemented(what));
        };
        if rule.allows(caller.kind) {
            return Ok(rule);
        }
        Err(match caller.kind {
            Kind::Joining => Status::unauthenticated(
                "this call needs a certificate: operators get one from `fabric-controller \
                 certificate create`, machines by `host-agent join`",
            ),
            _ => Status::permission_denied(format!(
                "{caller} may not call {}: that is for {}; `fabric-controller permissions` shows \
                 who may do what",
                rule.call,
                rule.who()
            )),
        })
    }
}
