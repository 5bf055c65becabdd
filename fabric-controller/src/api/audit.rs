//! `fabric.v1.AuditService`

use std::sync::Arc;

use fabric_proto::v1::{
    AuditEntry, ListAuditEntriesRequest, ListAuditEntriesResponse, WatchAuditEntriesRequest,
    WatchAuditEntriesResponse, audit_service_server::AuditService,
};
use tonic::{Request, Response, Status};

use super::{Answers, Gone, Operator, convert, stream};
use crate::{
    controller::Controller,
    error::Result as ControllerResult,
    trust::audit::{self, AuditRecord, Follower, PAGE},
};

/// See the [module](self).
pub struct AuditApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl AuditService for AuditApi {
    async fn list_audit_entries(
        &self,
        request: Request<ListAuditEntriesRequest>,
    ) -> Result<Response<ListAuditEntriesResponse>, Status> {
        let ListAuditEntriesRequest {
            after_cursor,
            limit,
        } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(limit @ 1..=PAGE) => limit,
            _ => PAGE,
        };
        let store = &*self.controller.store;
        let page = audit::read(store, after_cursor, limit).await?;
        Ok(Response::new(ListAuditEntriesResponse {
            entries: page.entries.into_iter().map(entry).collect(),
            last_cursor: audit::newest(store).await?,
        }))
    }

    type WatchAuditEntriesStream = Answers<WatchAuditEntriesResponse>;

    async fn watch_audit_entries(
        &self,
        request: Request<WatchAuditEntriesRequest>,
    ) -> Result<Response<Self::WatchAuditEntriesStream>, Status> {
        let after = request.into_inner().after_cursor;
        let follower = Follower::new(Arc::clone(&self.controller.store), after);
        Ok(stream(&self.controller, |operator| {
            follow(follower, operator)
        }))
    }
}

async fn follow(
    mut follower: Follower,
    operator: Operator<WatchAuditEntriesResponse>,
) -> ControllerResult<Result<(), Gone>> {
    loop {
        for numbered in follower.next().await? {
            let entry = Some(entry(numbered));
            let answer = WatchAuditEntriesResponse { entry };
            if operator.send(answer).await.is_err() {
                return Ok(Err(Gone));
            }
        }
    }
}

fn entry((cursor, record): (u64, AuditRecord)) -> AuditEntry {
    AuditEntry {
        cursor,
        time: Some(convert::timestamp(record.time)),
        who: record.who,
        serial: record.serial,
        from: record.from,
        call: record.call,
        changed: record.changed,
        request_id: record.request_id,
        result: record.result,
        detail: record.detail,
    }
}
