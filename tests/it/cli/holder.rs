//! A client of a broker's Unix socket that makes grants for whoever runs the tests, uses and ends
//! them. Each grant has a number, by which a use means that grant and no other.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::grpc::pb::grant_service_client::GrantServiceClient;
use tokio::net::UnixStream;
use tokio::time::Duration;
use tokio::time::interval;
use tonic::IntoRequest as _;
use tonic::Request;
use tonic::Status;

use super::site::uid;
use crate::harness::Client;
use crate::harness::Connection;
use crate::harness::Refusal;
use crate::harness::Wire;
use crate::harness::rpcs::pairs;
use crate::harness::soon;

/// A client on one connection.
pub(super) struct Holder {
    client: Client,
    grants: GrantServiceClient<Wire>,
}

/// A grant as its maker knows it.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) number: u64,
    pub(super) id: String,
    pub(super) token: String,
    pub(super) expires: Timestamp,
}

impl Holder {
    /// On the socket of the broker whose folder is `folder`.
    pub(super) async fn at(folder: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(folder.join("broker.sock")).await?;
        let connection = Connection::new(stream).await?;
        Ok(Self {
            client: connection.client(),
            grants: connection.grants(),
        })
    }

    /// The same, once there is a broker.
    pub(super) async fn soon_at(folder: &Path) -> Self {
        soon(async {
            let mut ticks = interval(Duration::from_millis(10));
            loop {
                ticks.tick().await;
                if let Ok(holder) = Self::at(folder).await {
                    return holder;
                }
            }
        })
        .await
    }

    /// Makes the grant `number`: to Encrypt with the key `orders`, for `lifetime` from now on and
    /// from each renewal.
    pub(super) async fn create(&mut self, number: u64, lifetime: u32) -> Result<Held, Status> {
        let request = pb::CreateGrantRequest {
            key: KEY.to_owned(),
            grantee_principal: format!("unix:uid={}", uid()),
            operations: vec![GrantOperation::Encrypt.into()],
            constraints: Some(pb::GrantConstraints {
                encryption_context_subset: context(number),
                ..Default::default()
            }),
            lifetime_seconds: lifetime,
            renewable_for_seconds: 3600,
            ..Default::default()
        };
        let answer = self.grants.create_grant(patient(request)).await?;
        let pb::CreateGrantResponse { grant, grant_token } = answer.into_inner();
        Ok(held(number, grant, grant_token))
    }

    /// Makes a grant of AWS KMS.
    pub(super) async fn delegate(
        &mut self,
        wish: pb::CreateKmsGrantRequest,
    ) -> Result<pb::KmsGrant, Status> {
        let answer = self.grants.create_kms_grant(patient(wish)).await?;
        Ok(answer.into_inner().grant.unwrap())
    }

    /// Has it live longer; none where it is over.
    pub(super) async fn renew(&mut self, held_before: &Held) -> Result<Option<Held>, Status> {
        let request = pb::RenewGrantRequest {
            key: KEY.to_owned(),
            grant_id: held_before.id.clone(),
            lifetime_seconds: 0,
        };
        let renewed = self.grants.renew_grant(patient(request)).await;
        Ok(allowed(renewed)?.map(|answer| {
            let pb::RenewGrantResponse { grant, grant_token } = answer;
            held(held_before.number, grant, grant_token)
        }))
    }

    /// Takes the grant `id` back.
    pub(super) async fn revoke(&mut self, id: &str) -> Result<(), Status> {
        let request = pb::RevokeGrantRequest {
            key: KEY.to_owned(),
            grant_id: id.to_owned(),
        };
        self.grants.revoke_grant(patient(request)).await.map(drop)
    }

    /// Whether the grant allows a use, with its token.
    pub(super) async fn uses(&mut self, held: &Held) -> Result<bool, Status> {
        let request = pb::EncryptRequest {
            name: KEY.to_owned(),
            plaintext: "x".into(),
            encryption_context: context(held.number),
            grant_tokens: vec![held.token.clone()],
            ..Default::default()
        };
        let used = self.client.encrypt(patient(request)).await;
        Ok(allowed(used)?.is_some())
    }

    /// The ids of all grants that live.
    pub(super) async fn list(&mut self) -> Result<Vec<String>, Status> {
        let mut ids = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = pb::ListGrantsRequest {
                key: KEY.to_owned(),
                page_token,
                ..Default::default()
            };
            let page = self.grants.list_grants(patient(request)).await?;
            let page = page.into_inner();
            ids.extend(page.grants.into_iter().map(|grant| grant.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(ids);
            }
        }
    }
}

/// None for a refusal.
fn allowed<T>(answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if is_refusal(&status) => Ok(None),
        Err(status) => Err(status),
    }
}

fn is_refusal(status: &Status) -> bool {
    status.code() == tonic::Code::PermissionDenied && Refusal::of(status).reason == "POLICY_DENIED"
}

fn held(number: u64, grant: Option<pb::Grant>, token: String) -> Held {
    let grant = grant.unwrap();
    let expires = grant.expire_time.unwrap();
    Held {
        number,
        id: grant.id,
        token,
        expires: Timestamp::new(expires.seconds, expires.nanos).unwrap(),
    }
}

fn context(number: u64) -> BTreeMap<String, String> {
    pairs([("order", &number.to_string())])
}

/// Longer than any pause that a test makes.
fn patient<T>(message: T) -> Request<T> {
    let mut request = message.into_request();
    request.set_timeout(Duration::from_secs(30));
    request
}

const KEY: &str = "keys/orders";
