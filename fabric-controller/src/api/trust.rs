//! `fabric.v1.TrustService`

use std::{sync::Arc, time::Duration};

use fabric_proto::{
    id::NodeId,
    v1::{
        Certificate, CertificateRole, CreateCertificateRequest, CreateCertificateResponse,
        CreateTokenRequest, CreateTokenResponse, JoinNodeRequest, JoinNodeResponse,
        ListCertificatesRequest, ListCertificatesResponse, RenewCertificateRequest,
        RenewCertificateResponse, RevokeCertificateRequest, RevokeCertificateResponse,
        trust_service_server::TrustService,
    },
};
use fabric_trust::{
    identity::{Role, check_name},
    token::JoinToken,
};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    clock,
    controller::Controller,
    error::{Error, Result as ControllerResult},
    idempotency::Once,
    model::{node::NodeRecord, time::WallTime},
    records::{self, Kept},
    store::Txn,
    trust::{
        ca::{CaError, Issued, Requested},
        caller::Caller,
        grant::{self, CertificateRecord, TokenRecord},
    },
};

/// Longest life of a token.
const TOKEN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest life of an operator's certificate.
const OPERATOR_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// See the [module](self).
pub struct TrustApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl TrustService for TrustApi {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.make_token(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn join_node(
        &self,
        request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        let answer = self.join(request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.renew(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn create_certificate(
        &self,
        request: Request<CreateCertificateRequest>,
    ) -> Result<Response<CreateCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.certify(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn list_certificates(
        &self,
        _request: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        let now = clock::now();
        let mut all = grant::certificates(&*self.controller.store).await?;
        all.retain(|kept| now < kept.value.expires);
        all.sort_by(|a, b| {
            let (a, b) = (&a.value, &b.value);
            (&a.name, b.issued, &a.serial).cmp(&(&b.name, a.issued, &b.serial))
        });
        let certificates = all.iter().map(|kept| certificate(&kept.value)).collect();
        Ok(Response::new(ListCertificatesResponse { certificates }))
    }

    async fn revoke_certificate(
        &self,
        request: Request<RevokeCertificateRequest>,
    ) -> Result<Response<RevokeCertificateResponse>, Status> {
        let answer = self.revoke(request.into_inner()).await?;
        Ok(Response::new(answer))
    }
}

impl TrustApi {
    async fn make_token(
        &self,
        caller: &Caller,
        request: CreateTokenRequest,
    ) -> ControllerResult<CreateTokenResponse> {
        let once = Once::of("CreateToken", &request, |it| &mut it.request_id)?;
        let node = match request.node_id.as_str() {
            "" => None,
            name => Some(node_id(name)?),
        };
        let ttl = duration("ttl", request.ttl, TOKEN_LIFE)?;
        let now = clock::now();
        let expires: WallTime = (grant::system_time(now) + ttl).into();
        let token = JoinToken::generate(self.controller.trust.ca.der())
            .map_err(|error| Error::Internal(error.to_string()))?;
        let hash = token.digest();
        let key = &records::token(&hash);
        let record = &TokenRecord {
            node,
            expires,
            issued_by: caller.to_string(),
        };
        // What is kept of the answer is the hash, and not the token.
        let kept = &CreateTokenResponse {
            token: hash.clone(),
            expires: Some(convert::timestamp(expires)),
        };
        let answer: CreateTokenResponse = once
            .commit(&*self.controller.store, now, || async move {
                let txn = records::replace(Txn::new(), key, None, record)?;
                Ok((txn, kept.clone()))
            })
            .await?;
        if answer.token != hash {
            return Err(Error::Precondition(
                "request_id: a token was made for it before, which is not kept here; make \
                 another with a new request id"
                    .to_owned(),
            ));
        }
        Ok(CreateTokenResponse {
            token: token.to_string(),
            ..answer
        })
    }

    async fn join(&self, request: JoinNodeRequest) -> ControllerResult<JoinNodeResponse> {
        let once = Once::of("JoinNode", &request, |it| &mut it.request_id)?;
        let token: JoinToken = request
            .token
            .parse()
            .map_err(|error| Error::Invalid(format!("token: {error}")))?;
        let wanted = match request.node_id.as_str() {
            "" => None,
            name => Some(node_id(name)?),
        };
        let requested = &Requested::read(&request.csr)?;
        let (key, wanted) = (&records::token(&token.digest()), &wanted);
        let now = clock::now();
        let store = &*self.controller.store;
        once.commit(store, now, || async move {
            let Some(kept) = records::get::<TokenRecord>(store, key).await? else {
                return Err(no_token("is not known, or was used before"));
            };
            if now >= kept.value.expires {
                return Err(no_token("has expired"));
            }
            let node = match (&kept.value.node, wanted) {
                (Some(named), Some(wanted)) if named != wanted => {
                    return Err(Error::Denied(format!(
                        "the token is for node {named}, not for {wanted}; leave --node-id out, \
                         or make another token"
                    )));
                }
                (Some(named), _) => named.clone(),
                (None, Some(wanted)) => {
                    self.check_free(wanted).await?;
                    wanted.clone()
                }
                (None, None) => {
                    return Err(Error::Invalid(
                        "node_id: the token names no node, so say which this is".to_owned(),
                    ));
                }
            };
            let by = format!("a token of {}", kept.value.issued_by);
            let (txn, issued) = self.node_certificate(requested, &node, &by, now)?;
            let txn = txn.when(key, Some(kept.modified)).delete(key);
            let answer = JoinNodeResponse {
                node_id: node.to_string(),
                certificate_pem: issued.pem,
                ca_pem: self.controller.trust.ca.pem().to_owned(),
            };
            Ok((txn, answer))
        })
        .await
    }

    /// A token that names no node cannot make one of another's name.
    async fn check_free(&self, node: &NodeId) -> ControllerResult<()> {
        let store = &*self.controller.store;
        let now = clock::now();
        let known = records::get::<NodeRecord>(store, &records::node(node)).await?;
        let held = grant::certificates(store).await?.iter().any(|kept| {
            let one = &kept.value;
            one.role == Role::Node.word() && one.name == node.as_str() && one.is_live(now)
        });
        if known.is_some() || held {
            return Err(Error::Precondition(format!(
                "there is a node {node} already; take another --node-id, or make a token that \
                 names it: `fabric-controller token create --node {node}`"
            )));
        }
        Ok(())
    }

    fn node_certificate(
        &self,
        requested: &Requested,
        node: &NodeId,
        by: &str,
        now: WallTime,
    ) -> ControllerResult<(Txn, Issued)> {
        let trust = &self.controller.trust;
        let issued = trust
            .ca
            .issue(requested, Role::Node, node.as_str(), trust.node_ttl);
        let issued = issued.map_err(unmade)?;
        let record = CertificateRecord::new(&issued, Role::Node, node.as_str(), by, now);
        let key = records::certificate(&issued.serial);
        Ok((records::replace(Txn::new(), &key, None, &record)?, issued))
    }

    async fn renew(
        &self,
        caller: &Caller,
        request: RenewCertificateRequest,
    ) -> ControllerResult<RenewCertificateResponse> {
        let once = Once::of("RenewCertificate", &request, |it| &mut it.request_id)?;
        let Some(node) = &caller.node()? else {
            return Err(Error::Precondition(
                "by unix socket there is no certificate to renew".to_owned(),
            ));
        };
        let requested = &Requested::read(&request.csr)?;
        let own = &records::certificate(&caller.serial);
        let by = &caller.to_string();
        let now = clock::now();
        let store = &*self.controller.store;
        let answer: RenewCertificateResponse = once
            .commit(store, now, || async move {
                // One that is revoked at this moment makes no other.
                let old = records::get::<CertificateRecord>(store, own).await?;
                if old.as_ref().is_some_and(|old| old.value.revoked.is_some()) {
                    return Err(Error::Denied("the certificate was revoked".to_owned()));
                }
                let (txn, issued) = self.node_certificate(requested, node, by, now)?;
                let txn = txn.when(own, old.map(|old| old.modified));
                let answer = RenewCertificateResponse {
                    certificate_pem: issued.pem,
                    ca_pem: self.controller.trust.ca.pem().to_owned(),
                };
                Ok((txn, answer))
            })
            .await?;
        // This connection is good as long as what came over it.
        caller.renewed(grant::system_time(now) + self.controller.trust.node_ttl);
        Ok(answer)
    }

    async fn certify(
        &self,
        caller: &Caller,
        request: CreateCertificateRequest,
    ) -> ControllerResult<CreateCertificateResponse> {
        let once = Once::of("CreateCertificate", &request, |it| &mut it.request_id)?;
        check_name(&request.name).map_err(|rule| Error::Invalid(format!("name: {rule}")))?;
        let role = match request.role() {
            CertificateRole::Admin => Role::Admin,
            CertificateRole::Operator => Role::Operator,
            CertificateRole::Reader => Role::Reader,
            CertificateRole::Node | CertificateRole::Unspecified => {
                return Err(Error::Invalid(
                    "role: must be admin, operator or reader; machines join with a token"
                        .to_owned(),
                ));
            }
        };
        let ttl = duration("ttl", request.ttl, OPERATOR_LIFE)?;
        let requested = &Requested::read(&request.csr)?;
        let (name, by) = (&request.name, &caller.to_string());
        let now = clock::now();
        once.commit(&*self.controller.store, now, || async move {
            let ca = &self.controller.trust.ca;
            let issued = ca.issue(requested, role, name, ttl).map_err(unmade)?;
            let record = CertificateRecord::new(&issued, role, name, by, now);
            let key = records::certificate(&issued.serial);
            let answer = CreateCertificateResponse {
                certificate_pem: issued.pem,
                ca_pem: ca.pem().to_owned(),
                certificate: Some(certificate(&record)),
            };
            Ok((records::replace(Txn::new(), &key, None, &record)?, answer))
        })
        .await
    }

    async fn revoke(
        &self,
        request: RevokeCertificateRequest,
    ) -> ControllerResult<RevokeCertificateResponse> {
        let once = Once::of("RevokeCertificate", &request, |it| &mut it.request_id)?;
        let (serial, name) = (&request.serial, &request.name);
        if serial.is_empty() == name.is_empty() {
            return Err(Error::Invalid("give either serial or name".to_owned()));
        }
        let meant = |record: &CertificateRecord| {
            record.serial == *serial || (!name.is_empty() && record.name == *name)
        };
        let now = clock::now();
        let store = &*self.controller.store;
        let answer: RevokeCertificateResponse = once
            .commit(store, now, || async move {
                let all = grant::certificates(store).await?.into_iter();
                let all: Vec<Kept<_>> = all.filter(|kept| meant(&kept.value)).collect();
                if all.is_empty() {
                    return Err(Error::NotFound {
                        kind: "certificate",
                        name: format!("{serial}{name}").chars().take(100).collect(),
                        hint: "see `fabric-controller certificate list`",
                    });
                }
                let (mut txn, mut certificates) = (Txn::new(), Vec::new());
                for kept in all.iter().filter(|kept| kept.value.is_live(now)) {
                    let record = CertificateRecord {
                        revoked: Some(now),
                        ..kept.value.clone()
                    };
                    let key = records::certificate(&record.serial);
                    txn = records::replace(txn, &key, Some(kept.modified), &record)?;
                    certificates.push(certificate(&record));
                }
                Ok((txn, RevokeCertificateResponse { certificates }))
            })
            .await?;
        for one in &answer.certificates {
            self.controller.trust.revoked.add(&one.serial);
        }
        Ok(answer)
    }
}

fn certificate(record: &CertificateRecord) -> Certificate {
    let role = match record.role.parse() {
        Ok(Role::Admin) => CertificateRole::Admin,
        Ok(Role::Operator) => CertificateRole::Operator,
        Ok(Role::Reader) => CertificateRole::Reader,
        Ok(Role::Node) => CertificateRole::Node,
        Err(_) => CertificateRole::Unspecified,
    };
    Certificate {
        serial: record.serial.clone(),
        name: record.name.clone(),
        role: role.into(),
        issued: Some(convert::timestamp(record.issued)),
        expires: Some(convert::timestamp(record.expires)),
        issued_by: record.issued_by.clone(),
        revoked: record.revoked.map(convert::timestamp),
    }
}

fn node_id(name: &str) -> ControllerResult<NodeId> {
    name.parse()
        .map_err(|error| Error::Invalid(format!("node_id: {error}")))
}

fn no_token(why: &str) -> Error {
    Error::Denied(format!(
        "the token {why}; make another with `fabric-controller token create --node` on the \
         controller's machine"
    ))
}

fn unmade(error: CaError) -> Error {
    Error::Internal(format!("no certificate can be made: {error}"))
}

fn duration(
    field: &str,
    given: Option<prost_types::Duration>,
    most: Duration,
) -> ControllerResult<Duration> {
    let given = given.and_then(|given| Duration::try_from(given).ok());
    let allowed = Duration::from_secs(1)..=most;
    given
        .filter(|given| allowed.contains(given))
        .ok_or_else(|| {
            let days = most.as_secs() / (24 * 3600);
            Error::Invalid(format!("{field}: must be from 1 s to {days} days"))
        })
}
