//! The one table from [`Error`] to the wire: code, reason, details, and a sentence that says what
//! failed, with which value, why, and what to do next.
//!
//! Code, reason and metadata keys are the API; sentences may change. Nothing that a caller may not
//! know gets in here: denials and ciphertext failures have one text each.
#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::HashMap;
use std::time::Duration;

use prost::Message as _;
use tonic::Code;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use crate::broker::MAX_PLAINTEXT;
use crate::error::Error;
use crate::error::Unauthenticated;
use crate::message::context::Error as ContextError;
use crate::metrics::RateScope;
use crate::policy::InvalidContext;
use crate::quota::Exceeded;

/// The status of `error` for the call `request_id`.
pub(super) fn status(error: &Error, request_id: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(error.reason(), DOMAIN, metadata(error));
    let mut trailers = MetadataMap::new();
    describe(error, request_id, &mut details);
    if let Some(pause) = pause(error) {
        details.set_retry_info(Some(pause));
        // What client cores obey; RetryInfo is for applications.
        let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        trailers.insert(PUSHBACK, millis.into());
    }
    Status::with_error_details_and_metadata(code(error), sentence(error), details, trailers)
}

/// [`status`] as a message, for one item of a batch of the call `request_id`.
pub(super) fn item_status(error: &Error, request_id: &str) -> tonic_types::Status {
    // The details of a status are that message, encoded.
    tonic_types::Status::decode(status(error, request_id).details())
        .expect("what was encoded a line above decodes")
}

/// tonic's own refusals of a request that may have `limit` bytes, as rows of this table. Paths that
/// are none never get to it, so what it does not implement is an encoding: we take no compressed
/// bodies.
pub(super) fn of_tonic(code: Code, limit: usize) -> Error {
    match code == Code::OutOfRange {
        true => Error::MessageTooLarge { limit },
        false => Error::Malformed,
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::AuditUnavailable(_)
        | Error::KmsThrottled { .. }
        | Error::KmsUnavailable(_)
        | Error::StoreUnavailable(_)
        | Error::Withdrawn => Code::Unavailable,
        Error::Bug(_) | Error::KmsAccessDenied(_) => Code::Internal,
        Error::Checksum(_)
        | Error::Context { .. }
        | Error::Invalid { .. }
        | Error::Malformed
        | Error::MessageTooLarge { .. }
        | Error::PlaintextTooLarge { .. }
        | Error::Unverified(_) => Code::InvalidArgument,
        Error::Denied(_) | Error::NotOperator | Error::Unmapped => Code::PermissionDenied,
        Error::Expired | Error::Stalled => Code::DeadlineExceeded,
        Error::GrantNotRenewable
        | Error::KeyDisabled
        | Error::KeyPendingDeletion(_)
        | Error::KmsGrantsUnsupported
        | Error::TenantKmsConfigInvalid(_)
        | Error::TenantKmsDenied(_)
        | Error::TenantSuspended
        | Error::TenantsFileSet => Code::FailedPrecondition,
        Error::GrantNameTaken => Code::AlreadyExists,
        Error::MethodUnknown => Code::Unimplemented,
        Error::GrantsExhausted { .. }
        | Error::Overloaded
        | Error::RateLimited(_)
        | Error::ResponseTooLarge { .. } => Code::ResourceExhausted,
        Error::Unauthenticated(_) => Code::Unauthenticated,
    }
}

fn sentence(error: &Error) -> String {
    match error {
        Error::AuditUnavailable(_) => {
            "no audit sink accepts records, and nothing is done without one: try again, and look \
             at the broker's log if it lasts"
                .into()
        }
        Error::Bug(_) => {
            "the broker failed in this call: give the request id to those who run it".into()
        }
        Error::Checksum(field) => format!(
            "{field} does not have the CRC32C that came with it: it was changed on its way, send \
             it again"
        ),
        Error::Context { field, why } => format!("{field}: {}", pairs(why)),
        Error::Denied(_) => {
            "there is no such key, or its policy does not allow this: ask the key's administrators"
                .into()
        }
        Error::Expired => "the deadline passed before the call was done: allow it more time".into(),
        Error::GrantNameTaken => {
            "a grant that you made of this key and that lives has this name and other parameters: \
             choose another name, or end that grant"
                .into()
        }
        Error::GrantNotRenewable => {
            "the grant says that it may not be renewed: make a new one, with renewable_for_seconds"
                .into()
        }
        Error::GrantsExhausted { limit } => {
            format!("{limit} grants of this key live: revoke some, or have them expire sooner")
        }
        Error::Invalid { field, why } => format!("{field}: {why}"),
        Error::KeyDisabled => {
            "the KMS key behind this key is disabled: ask its administrators to enable it".into()
        }
        Error::KeyPendingDeletion(_) => {
            "the KMS key behind this key is pending deletion or otherwise out of use: ask its \
             administrators to cancel that"
                .into()
        }
        Error::KmsAccessDenied(_) => {
            "KMS refuses the broker's own role on this key: those who run the broker must grant \
             kms:GenerateDataKey and kms:Decrypt on it"
                .into()
        }
        Error::KmsGrantsUnsupported => {
            "the KMS behind this key has no grants of its own: use a key of AWS KMS, or CreateGrant"
                .into()
        }
        Error::KmsThrottled { .. } => {
            "there are more calls to KMS than it takes, and no data key is cached: try again later"
                .into()
        }
        Error::KmsUnavailable(_) => {
            "KMS does not answer the broker and no data key is cached: try again later".into()
        }
        Error::Malformed => {
            "the request's body is not a message of this method's type: generate the client from \
             the broker's proto"
                .into()
        }
        Error::MessageTooLarge { limit } => {
            format!("the request's body is over the limit of {limit} bytes: send less in one call")
        }
        Error::MethodUnknown => {
            "there is no such method: see the services that reflection lists".into()
        }
        Error::NotOperator => {
            "only operators that the broker's configuration names may do this: ask those who run \
             the broker"
                .into()
        }
        Error::Overloaded => "the broker has more to do than it takes on: try again later".into(),
        Error::PlaintextTooLarge { length, limit } => format!(
            "the plaintext has {length} bytes, over the limit of {limit}: encrypt it {}in parts, \
             or under a key from GenerateDataKey",
            match u64::try_from(MAX_PLAINTEXT) == Ok(*limit) {
                true => "in a stream, ",
                // It is in one.
                false => "",
            }
        ),
        Error::RateLimited(exceeded) => format!(
            "{} spends more than its {} units a second (a call is one, and so are 8 KiB of it, an \
             item of a batch, a chunk of a stream; asking KMS is nine, a grant of KMS 999): call \
             less often, or ask those who run the broker for more",
            subject(exceeded),
            exceeded.rate
        ),
        Error::ResponseTooLarge { limit } => format!(
            "with this item's result the response would pass the limit of {limit} bytes: send the \
             item in another call"
        ),
        Error::Stalled => {
            "nothing moved on the stream for long: send and read without such pauses, or begin it \
             when its bytes are there"
                .into()
        }
        Error::StoreUnavailable(_) => {
            "the broker's store does not answer, or has not for too long to go by what was known: \
             try again later"
                .into()
        }
        Error::TenantKmsConfigInvalid(_) => {
            "the tenant's KMS key does not exist or is of the wrong kind: correct the key's \
             configuration"
                .into()
        }
        Error::TenantKmsDenied(_) => {
            "the tenant's KMS key refuses the broker: allow the broker's role \
             kms:GenerateDataKey and kms:Decrypt in its key policy"
                .into()
        }
        Error::TenantSuspended => {
            "the tenant is suspended: ask those who run the broker to resume it".into()
        }
        Error::TenantsFileSet => {
            "the broker's configuration names a tenants_file, which it brings in by itself: change \
             that file, or take the setting out"
                .into()
        }
        Error::Unauthenticated(Unauthenticated::Expired) => {
            "the client certificate has expired: connect with a new one".into()
        }
        Error::Unauthenticated(Unauthenticated::Missing) => {
            "the connection proves no identity: connect with a client certificate that has one \
             SPIFFE URI SAN"
                .into()
        }
        Error::Unauthenticated(Unauthenticated::Revoked) => {
            "the client certificate has been revoked: connect with a new one".into()
        }
        Error::Unauthenticated(Unauthenticated::TrustDomainUnknown) => {
            "no trust bundle of the broker verifies the client certificate (any more): connect \
             with one of a configured trust domain"
                .into()
        }
        Error::Unmapped => {
            "no identity rule maps this identity to a tenant: ask those who run the broker for one"
                .into()
        }
        Error::Unverified(_) => {
            "the ciphertext does not open under this key, context and associated data".into()
        }
        Error::Withdrawn => {
            "the data key of the stream was withdrawn, by a purge or a change of its key: begin \
             the stream again"
                .into()
        }
    }
}

fn subject(exceeded: &Exceeded) -> &'static str {
    match exceeded.scope {
        RateScope::Principal => "this caller",
        RateScope::Tenant => "this tenant",
    }
}

/// What is wrong with a caller's own pairs; names, never values.
fn pairs(why: &InvalidContext) -> String {
    match why {
        InvalidContext::Fixed { name } => {
            format!("the tenant fixes the pair {name:?}: leave it out, the broker adds it")
        }
        InvalidContext::Captured { name } => format!(
            "identity rules set the pair {name:?}: leave it out, the broker adds what the \
             identity proves"
        ),
        InvalidContext::Reserved { name } => format!(
            "the name {name:?} begins with a reserved prefix (keybroker:, aws-crypto-): choose \
             another"
        ),
        InvalidContext::Limits { error, .. } => match error {
            ContextError::Empty => "a name or a value is empty: give both".into(),
            ContextError::Long {
                what,
                length,
                limit,
            } => format!(
                "a {what} has {length} bytes, over the limit of {limit}: shorten it, or put it \
                 into associated_data"
            ),
            ContextError::Many(count) => format!(
                "with the broker's own there are {count} pairs, over the limit of 16: put what \
                 differs per record into associated_data"
            ),
            ContextError::Duplicate(name) => {
                format!("the name {name:?} stands there twice, case aside: keep one")
            }
            ContextError::Large(length) => format!(
                "with the broker's own the pairs have {length} bytes, over the limit of 4096: \
                 put what is long into associated_data"
            ),
        },
    }
}

/// Every variable part of the sentence that a program may want.
fn metadata(error: &Error) -> HashMap<String, String> {
    let pair = |name: &str, value: String| HashMap::from([(name.to_owned(), value)]);
    match error {
        Error::Checksum(field) => pair("field", (*field).into()),
        Error::Context { field, .. } | Error::Invalid { field, .. } => {
            pair("field", (*field).into())
        }
        Error::GrantsExhausted { limit }
        | Error::MessageTooLarge { limit }
        | Error::ResponseTooLarge { limit } => pair("limit", limit.to_string()),
        Error::RateLimited(exceeded) => HashMap::from([
            ("scope".to_owned(), exceeded.scope.label().to_owned()),
            ("limit".to_owned(), exceeded.rate.to_string()),
        ]),
        Error::PlaintextTooLarge { length, limit } => HashMap::from([
            ("length".to_owned(), length.to_string()),
            ("limit".to_owned(), limit.to_string()),
        ]),
        Error::AuditUnavailable(_)
        | Error::Bug(_)
        | Error::Denied(_)
        | Error::Expired
        | Error::GrantNameTaken
        | Error::GrantNotRenewable
        | Error::KeyDisabled
        | Error::KeyPendingDeletion(_)
        | Error::KmsAccessDenied(_)
        | Error::KmsGrantsUnsupported
        | Error::KmsThrottled { .. }
        | Error::KmsUnavailable(_)
        | Error::Malformed
        | Error::MethodUnknown
        | Error::NotOperator
        | Error::Overloaded
        | Error::Stalled
        | Error::StoreUnavailable(_)
        | Error::TenantKmsConfigInvalid(_)
        | Error::TenantKmsDenied(_)
        | Error::TenantSuspended
        | Error::TenantsFileSet
        | Error::Unauthenticated(_)
        | Error::Unmapped
        | Error::Unverified(_)
        | Error::Withdrawn => HashMap::new(),
    }
}

/// The detail that conventions give this error beside ErrorInfo and RetryInfo.
fn describe(error: &Error, request_id: &str, details: &mut ErrorDetails) {
    match error {
        Error::Checksum(field) | Error::Context { field, .. } | Error::Invalid { field, .. } => {
            details.add_bad_request_violation(*field, sentence(error));
        }
        Error::Malformed | Error::MessageTooLarge { .. } => {
            details.add_bad_request_violation("", sentence(error));
        }
        Error::PlaintextTooLarge { .. } => {
            details.add_bad_request_violation("plaintext", sentence(error));
        }
        Error::Bug(_) | Error::Denied(_) | Error::NotOperator | Error::Unmapped => {
            details.set_request_info(request_id, "");
        }
        Error::RateLimited(exceeded) => {
            details.add_quota_failure_violation(exceeded.scope.label(), sentence(error));
        }
        Error::GrantNotRenewable
        | Error::KeyDisabled
        | Error::KeyPendingDeletion(_)
        | Error::KmsGrantsUnsupported
        | Error::TenantSuspended
        | Error::TenantsFileSet => {
            details.add_precondition_failure_violation(error.reason(), "", sentence(error));
        }
        Error::TenantKmsConfigInvalid(_) => {
            details.add_precondition_failure_violation(error.reason(), "", sentence(error));
            details.add_help_link(WRONG_KEY, HELP);
        }
        Error::TenantKmsDenied(_) => {
            details.add_precondition_failure_violation(error.reason(), "", sentence(error));
            details.add_help_link(MISSING_STATEMENT, HELP);
        }
        Error::KmsAccessDenied(_) => {
            details.add_help_link(MISSING_STATEMENT, HELP);
        }
        Error::Unauthenticated(_) => {
            details.add_help_link("how the broker knows its callers", HELP);
        }
        Error::GrantsExhausted { .. } => {
            details.add_quota_failure_violation("grants", sentence(error));
        }
        Error::AuditUnavailable(_)
        | Error::Expired
        | Error::GrantNameTaken
        | Error::KmsThrottled { .. }
        | Error::KmsUnavailable(_)
        | Error::MethodUnknown
        | Error::Overloaded
        | Error::ResponseTooLarge { .. }
        | Error::Stalled
        | Error::StoreUnavailable(_)
        | Error::Unverified(_)
        | Error::Withdrawn => {}
    }
}

/// How long to wait before the same call, for errors that pass.
fn pause(error: &Error) -> Option<Duration> {
    error.retryable().then(|| match error {
        Error::KmsThrottled { pause } => *pause,
        // In whole milliseconds, and not before.
        Error::RateLimited(exceeded) => {
            let millis = u64::try_from(exceeded.wait.as_millis()).unwrap_or(u64::MAX);
            Duration::from_millis(millis.saturating_add(1))
        }
        Error::AuditUnavailable(_)
        | Error::Bug(_)
        | Error::Checksum(_)
        | Error::Context { .. }
        | Error::Denied(_)
        | Error::Expired
        | Error::GrantNameTaken
        | Error::GrantNotRenewable
        | Error::GrantsExhausted { .. }
        | Error::Invalid { .. }
        | Error::KeyDisabled
        | Error::KeyPendingDeletion(_)
        | Error::KmsAccessDenied(_)
        | Error::KmsGrantsUnsupported
        | Error::KmsUnavailable(_)
        | Error::Malformed
        | Error::MessageTooLarge { .. }
        | Error::MethodUnknown
        | Error::NotOperator
        | Error::Overloaded
        | Error::PlaintextTooLarge { .. }
        | Error::ResponseTooLarge { .. }
        | Error::Stalled
        | Error::StoreUnavailable(_)
        | Error::TenantKmsConfigInvalid(_)
        | Error::TenantKmsDenied(_)
        | Error::TenantSuspended
        | Error::TenantsFileSet
        | Error::Unauthenticated(_)
        | Error::Unmapped
        | Error::Unverified(_)
        | Error::Withdrawn => Duration::from_millis(500),
    })
}

/// The domain of every ErrorInfo.
pub const DOMAIN: &str = "keybroker";
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const MISSING_STATEMENT: &str = "allow the broker's role kms:GenerateDataKey, kms:Encrypt (for an additional key), kms:Decrypt \
     and kms:DescribeKey on the key";
const WRONG_KEY: &str =
    "name an existing symmetric encryption key of the tenant's account, by its ARN and no alias";
const HELP: &str = "README.md#errors";
