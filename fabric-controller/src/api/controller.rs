//! `fabric.v1.ControllerService`

use std::sync::Arc;

use fabric_proto::v1::{
    GetControllerRequest, GetControllerResponse, controller_service_server::ControllerService,
};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{clock, controller::Controller};

/// See the [module](self).
pub struct ControllerApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl ControllerService for ControllerApi {
    async fn get_controller(
        &self,
        _request: Request<GetControllerRequest>,
    ) -> Result<Response<GetControllerResponse>, Status> {
        let config = &self.controller.config;
        let disk = self.controller.disk();
        Ok(Response::new(GetControllerResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: Some(convert::timestamp(clock::now())),
            started: Some(convert::timestamp(self.controller.started)),
            disk_bytes: disk.map_or(0, |disk| disk.bytes),
            disk_free_bytes: disk.map_or(0, |disk| disk.free_bytes),
            heartbeat_period: config.heartbeat_period.try_into().ok(),
            lost_after: config.lost_after.try_into().ok(),
            lease: config
                .lease
                .and_then(|policy| policy.length.try_into().ok()),
            events_kept: config.events_kept,
        }))
    }
}
