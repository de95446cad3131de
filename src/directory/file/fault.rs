//! What can be wrong with a tenants file that is TOML.

use jiff::SignedDuration;

use crate::directory::binding::UnfitAdditional;
use crate::directory::key::Tenant;
use crate::identity::principal::MalformedPattern;
use crate::kms::KeyRef;
use crate::kms::MalformedRef;
use crate::kms::UnfitReplicas;
use crate::message::context;
use crate::name::Malformed;
use crate::quota::Rate;

/// What is wrong with a tenant or a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A KMS key can't be the additional key that it is named as.
    #[error("kms names the additional_key {additional} for {key}: {error}")]
    Additional {
        /// The KMS key that has it.
        key: String,
        /// The one that is named for it.
        additional: String,
        /// Why.
        error: UnfitAdditional,
    },
    /// The fixed pairs, or the pairs of a condition, could not stand in an encryption context.
    #[error("context: {error}{}", detail(error))]
    Context {
        /// Why.
        error: context::Error,
    },
    /// The id is none.
    #[error("the id is {0}")]
    Id(Malformed),
    /// A name of a KMS key is malformed.
    #[error("kms {value:?} is {error}")]
    Kms {
        /// The name as written.
        value: String,
        /// Why.
        error: MalformedRef,
    },
    /// There are more names than a context has pairs, or one is longer than any of them.
    #[error("audit_context may hold {pairs} names of up to {length} bytes", pairs = context::MAX_PAIRS, length = context::MAX_NAME)]
    AuditContext,
    /// Grants could live for no time, or for too long.
    #[error("grants.max_lifetime is {0}; it must be 1s to 12h")]
    GrantLifetime(String),
    /// There is no KMS key.
    #[error("kms names no KMS key")]
    NoKms,
    /// A cache limit is 0, negative or above its ceiling.
    #[error("cache.{limit} is {value}; it must be above 0 and at most {ceiling}")]
    Limit {
        /// Which limit.
        limit: &'static str,
        /// The value as written.
        value: String,
        /// The ceiling, with its unit.
        ceiling: String,
    },
    /// A principal of a list is malformed.
    #[error("{list} names {value:?}, which is {error}")]
    Principal {
        /// The list.
        list: &'static str,
        /// The principal as written.
        value: String,
        /// Why.
        error: MalformedPattern,
    },
    /// The rate is out of its bounds.
    #[error("rate is {0}; it must be {least} to {most}", least = Rate::LEAST, most = Rate::MOST)]
    Rate(u32),
    /// A KMS key stands in the list twice, so that its version is unclear.
    #[error("kms names {0} twice")]
    RepeatedKms(KeyRef),
    /// The replicas of a KMS key can't be as they are named.
    #[error("kms names replica_regions for {key}: {error}")]
    Replicas {
        /// The KMS key as written.
        key: String,
        /// Why.
        error: UnfitReplicas,
    },
    /// Another tenant, or another key of the tenant, has the same id.
    #[error("the id stands in the file twice")]
    RepeatedId,
    /// A fixed pair has a name that is ours.
    #[error("context name {0} is reserved")]
    Reserved(String),
    /// What is known of the tenant would count for too short or too long a time.
    #[error("max_staleness is {span:#}; it must be 5s to 24h")]
    Staleness {
        /// As written.
        span: SignedDuration,
    },
    /// The weight is out of bounds.
    #[error("weight is {weight}; it must be 1 to {}", Tenant::MAX_WEIGHT)]
    Weight {
        /// The weight as written.
        weight: u32,
    },
}

fn detail(error: &context::Error) -> String {
    match error {
        context::Error::Empty => String::new(),
        context::Error::Long {
            what,
            length,
            limit,
        } => {
            format!(": a {what} of {length} bytes, at most {limit}")
        }
        context::Error::Many(count) => format!(": {count}, at most {}", context::MAX_PAIRS),
        context::Error::Duplicate(name) => format!(": {name}"),
        context::Error::Large(length) => {
            format!(": {length} bytes, at most {}", context::MAX_SERIALIZED)
        }
    }
}
