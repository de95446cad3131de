//! The RPCs about grants: parse, act, render.

mod kms;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use jiff::Timestamp;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::broker::Creation;
use crate::broker::GrantPage;
use crate::broker::Granted;
use crate::broker::Listing;
use crate::broker::Retirement;
use crate::error::Error;
use crate::grants::Constraint;
use crate::grants::Grant;
use crate::grants::Kind;
use crate::grants::Operation;
use crate::grants::Operations;
use crate::grants::Terms;
use crate::grpc::pb;
use crate::grpc::pb::GrantOperation;
use crate::grpc::pb::grant_service_server::GrantService;
use crate::grpc::service::Service;
use crate::message::EncryptionContext;

#[tonic::async_trait]
impl GrantService for Service {
    async fn create_grant(
        &self,
        request: Request<pb::CreateGrantRequest>,
    ) -> Result<Response<pb::CreateGrantResponse>, Status> {
        self.serve(request, async |call, request| {
            let Granted { grant, token } = call.create_grant(creation(request)?).await?;
            Ok(pb::CreateGrantResponse {
                grant: Some(render(&grant)),
                grant_token: token,
            })
        })
        .await
    }

    async fn list_grants(
        &self,
        request: Request<pb::ListGrantsRequest>,
    ) -> Result<Response<pb::ListGrantsResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::ListGrantsRequest {
                key,
                grant_id,
                grantee_principal,
                page_size,
                page_token,
            } = request;
            let listing = Listing {
                of: key,
                id: grant_id,
                principal: grantee_principal,
                size: page_size,
                after: page_token,
            };
            let (grants, next_page_token) = page(&call.list_grants(listing).await?);
            Ok(pb::ListGrantsResponse {
                grants,
                next_page_token,
            })
        })
        .await
    }

    async fn list_retirable_grants(
        &self,
        request: Request<pb::ListRetirableGrantsRequest>,
    ) -> Result<Response<pb::ListRetirableGrantsResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::ListRetirableGrantsRequest {
                parent,
                retiring_principal,
                page_size,
                page_token,
            } = request;
            let listing = Listing {
                of: parent,
                id: String::new(),
                principal: retiring_principal,
                size: page_size,
                after: page_token,
            };
            let (grants, next_page_token) = page(&call.list_retirable_grants(listing).await?);
            Ok(pb::ListRetirableGrantsResponse {
                grants,
                next_page_token,
            })
        })
        .await
    }

    async fn retire_grant(
        &self,
        request: Request<pb::RetireGrantRequest>,
    ) -> Result<Response<pb::RetireGrantResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::RetireGrantRequest {
                grant_token,
                key,
                grant_id,
            } = request;
            let which = match (grant_token.is_empty(), key.is_empty(), grant_id.is_empty()) {
                (false, true, true) => Retirement::Token(grant_token),
                (true, _, _) => Retirement::Named { key, id: grant_id },
                (false, _, _) => {
                    let why = "it comes with a key or a grant_id: name the grant in one way";
                    return Err(invalid("grant_token", why.to_owned()));
                }
            };
            call.retire_grant(which).await?;
            Ok(pb::RetireGrantResponse {})
        })
        .await
    }

    async fn revoke_grant(
        &self,
        request: Request<pb::RevokeGrantRequest>,
    ) -> Result<Response<pb::RevokeGrantResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::RevokeGrantRequest { key, grant_id } = request;
            call.revoke_grant(&key, &grant_id).await?;
            Ok(pb::RevokeGrantResponse {})
        })
        .await
    }

    async fn renew_grant(
        &self,
        request: Request<pb::RenewGrantRequest>,
    ) -> Result<Response<pb::RenewGrantResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::RenewGrantRequest {
                key,
                grant_id,
                lifetime_seconds,
            } = request;
            let renewed = call.renew_grant(&key, &grant_id, seconds(lifetime_seconds));
            let Granted { grant, token } = renewed.await?;
            Ok(pb::RenewGrantResponse {
                grant: Some(render(&grant)),
                grant_token: token,
            })
        })
        .await
    }

    async fn create_kms_grant(
        &self,
        request: Request<pb::CreateKmsGrantRequest>,
    ) -> Result<Response<pb::CreateKmsGrantResponse>, Status> {
        self.serve(request, async |call, request| {
            let created = call.create_kms_grant(kms::creation(request)?).await?;
            Ok(pb::CreateKmsGrantResponse {
                grant: Some(kms::render(&created.grant)),
                grant_token: created.token,
            })
        })
        .await
    }

    async fn list_kms_grants(
        &self,
        request: Request<pb::ListKmsGrantsRequest>,
    ) -> Result<Response<pb::ListKmsGrantsResponse>, Status> {
        self.serve(request, async |call, request| {
            let page = call.list_kms_grants(kms::listing(request)).await?;
            let next = page.next.map(|id| id.to_string());
            Ok(pb::ListKmsGrantsResponse {
                grants: page.grants.iter().map(kms::render).collect(),
                next_page_token: next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn revoke_kms_grant(
        &self,
        request: Request<pb::RevokeKmsGrantRequest>,
    ) -> Result<Response<pb::RevokeKmsGrantResponse>, Status> {
        self.serve(request, async |call, request| {
            let pb::RevokeKmsGrantRequest { key, grant_id } = request;
            call.revoke_kms_grant(&key, &grant_id).await?;
            Ok(pb::RevokeKmsGrantResponse {})
        })
        .await
    }
}

fn creation(request: pb::CreateGrantRequest) -> Result<Creation, Error> {
    let pb::CreateGrantRequest {
        key,
        grantee_principal,
        retiring_principal,
        operations,
        constraints,
        name,
        lifetime_seconds,
        renewable_for_seconds,
        max_uses,
        grant_tokens,
    } = request;
    let operations = list(operations)?;
    let grantee = grantee_principal.parse();
    let grantee = grantee.map_err(|error: crate::identity::principal::MalformedPattern| {
        invalid("grantee_principal", format!("it is {error}"))
    })?;
    Ok(Creation {
        key,
        terms: Terms {
            grantee,
            operations,
            constraint: constraints.map(constraint).transpose()?.flatten(),
        },
        retiring: optional("retiring_principal", &retiring_principal)?,
        name: optional("name", &name)?,
        lifetime: seconds(lifetime_seconds),
        renewable: seconds(renewable_for_seconds),
        max_uses: NonZeroU32::new(max_uses),
        tokens: grant_tokens,
    })
}

fn list(operations: Vec<i32>) -> Result<Operations, Error> {
    let known = operations.into_iter().map(operation);
    let operations: Option<Vec<Operation>> = known.collect();
    operations.and_then(Operations::new).ok_or_else(|| {
        let why = "there is none, or one that keys cannot do".to_owned();
        invalid("operations", why)
    })
}

fn constraint(constraints: pb::GrantConstraints) -> Result<Option<Constraint>, Error> {
    let pb::GrantConstraints {
        encryption_context_equals: equals,
        encryption_context_subset: subset,
    } = constraints;
    let refused = |why: String| invalid("constraints", why);
    let (kind, pairs): (Kind, BTreeMap<String, String>) =
        match (equals.is_empty(), subset.is_empty()) {
            (true, true) => return Ok(None),
            (false, true) => (Kind::Equals, equals),
            (true, false) => (Kind::Subset, subset),
            (false, false) => {
                let why = "encryption_context_equals and encryption_context_subset: take one";
                return Err(refused(why.to_owned()));
            }
        };
    let pairs = EncryptionContext::new(pairs).map_err(|error| refused(error.to_string()))?;
    let constraint = Constraint::new(kind, pairs).map_err(|error| refused(error.to_string()))?;
    Ok(Some(constraint))
}

fn page(page: &GrantPage) -> (Vec<pb::Grant>, String) {
    let next = page.next.map(|id| id.to_string());
    let grants = page.grants.iter().map(render);
    (grants.collect(), next.unwrap_or_default())
}

fn render(grant: &Grant) -> pb::Grant {
    let wanted = &grant.wanted;
    let constraints = wanted.terms.constraint.as_ref().map(|constraint| {
        let pairs = constraint.pairs().pairs();
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (pairs, none) = (pairs.collect(), BTreeMap::new());
        match constraint.kind() {
            Kind::Equals => pb::GrantConstraints {
                encryption_context_equals: pairs,
                encryption_context_subset: none,
            },
            Kind::Subset => pb::GrantConstraints {
                encryption_context_equals: none,
                encryption_context_subset: pairs,
            },
        }
    });
    let operations = wanted.terms.operations.iter();
    let renewable = wanted.renewable.map(|_| timestamp(grant.last_expiry()));
    pb::Grant {
        id: grant.id.to_string(),
        key: String::from(&wanted.key),
        grantee_principal: wanted.terms.grantee.to_string(),
        retiring_principal: wanted
            .retiring
            .as_ref()
            .map_or_else(String::new, |one| one.to_string()),
        issuing_principal: grant.creator.to_string(),
        operations: operations.map(|one| number(one).into()).collect(),
        constraints,
        name: wanted
            .name
            .as_ref()
            .map_or_else(String::new, |name| name.as_str().to_owned()),
        create_time: Some(timestamp(grant.created)),
        expire_time: Some(timestamp(grant.expires)),
        renewable_until_time: renewable,
        max_uses: wanted.max_uses.map_or(0, NonZeroU32::get),
        parent_id: grant
            .ancestors
            .last()
            .map_or_else(String::new, |one| one.id.to_string()),
    }
}

pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// What is on the wire, if it is an operation.
pub(super) fn operation(number: i32) -> Option<Operation> {
    match GrantOperation::try_from(number).ok()? {
        GrantOperation::Unspecified => None,
        GrantOperation::CreateGrant => Some(Operation::CreateGrant),
        GrantOperation::Decrypt => Some(Operation::Decrypt),
        GrantOperation::DescribeKey => Some(Operation::DescribeKey),
        GrantOperation::Encrypt => Some(Operation::Encrypt),
        GrantOperation::GenerateDataKey => Some(Operation::GenerateDataKey),
        GrantOperation::GenerateDataKeyWithoutPlaintext => {
            Some(Operation::GenerateDataKeyWithoutPlaintext)
        }
        GrantOperation::ReEncryptFrom => Some(Operation::ReEncryptFrom),
        GrantOperation::ReEncryptTo => Some(Operation::ReEncryptTo),
        GrantOperation::RetireGrant => Some(Operation::RetireGrant),
    }
}

/// The operation on the wire.
pub(super) fn number(operation: Operation) -> GrantOperation {
    match operation {
        Operation::CreateGrant => GrantOperation::CreateGrant,
        Operation::Decrypt => GrantOperation::Decrypt,
        Operation::DescribeKey => GrantOperation::DescribeKey,
        Operation::Encrypt => GrantOperation::Encrypt,
        Operation::GenerateDataKey => GrantOperation::GenerateDataKey,
        Operation::GenerateDataKeyWithoutPlaintext => {
            GrantOperation::GenerateDataKeyWithoutPlaintext
        }
        Operation::ReEncryptFrom => GrantOperation::ReEncryptFrom,
        Operation::ReEncryptTo => GrantOperation::ReEncryptTo,
        Operation::RetireGrant => GrantOperation::RetireGrant,
    }
}

/// What `text` says; nothing when it is empty.
fn optional<T>(field: &'static str, text: &str) -> Result<Option<T>, Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    match text {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|error| invalid(field, format!("it is {error}"))),
    }
}

fn seconds(count: u32) -> Option<Duration> {
    (count != 0).then(|| Duration::from_secs(count.into()))
}

fn invalid(field: &'static str, why: String) -> Error {
    Error::Invalid { field, why }
}
