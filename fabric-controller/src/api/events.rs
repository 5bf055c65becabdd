//! `fabric.v1.EventService`

use std::sync::Arc;

use fabric_proto::v1::{
    ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse,
    event_service_server::EventService,
};
use tonic::{Request, Response, Status};

use super::{Answers, Gone, Operator, convert, stream};
use crate::{
    controller::Controller,
    error::Result as ControllerResult,
    events::{self, Follower, PAGE},
};

/// See the [module](self).
pub struct EventApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl EventService for EventApi {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let ListEventsRequest {
            after_cursor,
            limit,
            subject,
        } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(limit @ 1..=PAGE) => limit,
            _ => PAGE,
        };
        let store = &*self.controller.store;
        let page = events::read(store, after_cursor, limit, &subject).await?;
        Ok(Response::new(ListEventsResponse {
            events: page.events.into_iter().map(convert::event).collect(),
            last_cursor: events::newest(store).await?,
        }))
    }

    type WatchEventsStream = Answers<WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let WatchEventsRequest {
            after_cursor,
            subject,
        } = request.into_inner();
        let follower = Follower::new(Arc::clone(&self.controller.store), after_cursor, subject);
        Ok(stream(&self.controller, |operator| {
            follow(follower, operator)
        }))
    }
}

async fn follow(
    mut follower: Follower,
    operator: Operator<WatchEventsResponse>,
) -> ControllerResult<Result<(), Gone>> {
    loop {
        for numbered in follower.next().await? {
            let event = Some(convert::event(numbered));
            if operator.send(WatchEventsResponse { event }).await.is_err() {
                return Ok(Err(Gone));
            }
        }
    }
}
