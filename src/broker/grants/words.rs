//! What callers ask of grants, as records and statements say it, and which field is to blame.

use crate::audit;
use crate::broker::binding::invalid;
use crate::error::Error;
use crate::grants::Constraint;
use crate::grants::Excess;
use crate::grants::Id;
use crate::grants::Kind;
use crate::grants::Unfit;
use crate::grants::Wanted;
use crate::identity::Principal;
use crate::kms::Revoked;
use crate::store::kms_grants::Ending;
use crate::store::kms_grants::KmsGrant;

/// What a grant is to be, for the record: names, and never the values of pairs.
pub(super) fn said(wanted: &Wanted) -> audit::Terms {
    let terms = &wanted.terms;
    let constraint = terms.constraint.as_ref();
    let names = constraint.into_iter().flat_map(|one| one.pairs().pairs());
    audit::Terms {
        grantee_principal: terms.grantee.to_string(),
        retiring_principal: wanted.retiring.as_ref().map(Principal::to_string),
        operations: terms.operations.iter().map(|one| one.label()).collect(),
        constraint: constraint.map(constraint_label),
        encryption_context_keys: names.map(|(name, _)| name.to_owned()).collect(),
        name: wanted.name.as_ref().map(|name| name.as_str().to_owned()),
        max_uses: wanted.max_uses.map(|uses| uses.get()),
    }
}

/// How a constraint compares, as KMS names it.
pub(super) fn constraint_label(constraint: &Constraint) -> &'static str {
    match constraint.kind() {
        Kind::Equals => "EncryptionContextEquals",
        Kind::Subset => "EncryptionContextSubset",
    }
}

/// Has `record` name `grant`, which KMS calls `kms_id`.
pub(super) fn name_kms_grant(record: &mut audit::Record, grant: &KmsGrant, kms_id: &str) {
    record.grant_id = Some(grant.id);
    record.resources = vec![audit::Resource {
        name: String::from(&grant.key).into(),
        arn: grant.arn.as_str().into(),
        kind: "KMSKey",
    }];
    record.kms_grant = Some(Box::new(audit::KmsGrant {
        id: kms_id.to_owned(),
        name: grant.name.clone(),
        grantee_principal: grant.grantee.to_string(),
        issuing_principal: grant.creator.to_string(),
        ending: None,
        already_gone: None,
    }));
}

/// The same, and that it has ended for `ending`.
pub(super) fn name_ended(
    record: &mut audit::Record,
    grant: &KmsGrant,
    kms_id: &str,
    ending: Ending,
    revoked: Revoked,
) {
    name_kms_grant(record, grant, kms_id);
    record.kms_request_ids.extend(revoked.request_id);
    if let Some(named) = &mut record.kms_grant {
        named.ending = Some(ending.label());
        named.already_gone = Some(revoked.already_gone);
    }
}

/// The request's field that is to blame.
pub(super) fn field_of(unfit: Unfit) -> &'static str {
    match unfit {
        Unfit::Counted => "max_uses",
        Unfit::Depth | Unfit::Excess(Excess::Delegation | Excess::Operations) => "operations",
        Unfit::Excess(Excess::Constraint) => "constraints",
        Unfit::Excess(Excess::Lifetime) | Unfit::Lifetime { .. } => "lifetime_seconds",
        Unfit::Renewable { .. } => "renewable_for_seconds",
    }
}

pub(in crate::broker) fn grant_id(text: &str) -> Result<Id, Error> {
    text.parse()
        .map_err(|error: crate::grants::MalformedId| invalid("grant_id", error.to_string()))
}
