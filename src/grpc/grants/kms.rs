//! Grants of AWS KMS on the wire.

use crate::broker::KmsCreation;
use crate::broker::Listing;
use crate::error::Error;
use crate::grpc::grants::constraint;
use crate::grpc::grants::invalid;
use crate::grpc::grants::list;
use crate::grpc::grants::number;
use crate::grpc::grants::seconds;
use crate::grpc::grants::timestamp;
use crate::grpc::pb;
use crate::kms::MalformedIamPrincipal;
use crate::store::kms_grants::KmsGrant;

pub(super) fn creation(request: pb::CreateKmsGrantRequest) -> Result<KmsCreation, Error> {
    let pb::CreateKmsGrantRequest {
        key,
        grantee_principal,
        operations,
        constraints,
        lifetime_seconds,
    } = request;
    let grantee = grantee_principal.parse();
    let grantee = grantee.map_err(|error: MalformedIamPrincipal| {
        invalid("grantee_principal", format!("it is {error}"))
    })?;
    Ok(KmsCreation {
        key,
        grantee,
        operations: list(operations)?,
        constraint: constraints.map(constraint).transpose()?.flatten(),
        lifetime: seconds(lifetime_seconds),
    })
}

pub(super) fn listing(request: pb::ListKmsGrantsRequest) -> Listing {
    let pb::ListKmsGrantsRequest {
        key,
        page_size,
        page_token,
    } = request;
    Listing {
        of: key,
        id: String::new(),
        principal: String::new(),
        size: page_size,
        after: page_token,
    }
}

pub(super) fn render(grant: &KmsGrant) -> pb::KmsGrant {
    let operations = grant.operations.iter();
    pb::KmsGrant {
        id: grant.id.to_string(),
        key: String::from(&grant.key),
        kms_key_arn: grant.arn.as_str().to_owned(),
        kms_grant_id: grant.kms_id.clone().unwrap_or_default(),
        grantee_principal: grant.grantee.to_string(),
        operations: operations.map(|one| number(one).into()).collect(),
        issuing_principal: grant.creator.to_string(),
        create_time: Some(timestamp(grant.created)),
        expire_time: Some(timestamp(grant.expires)),
    }
}
