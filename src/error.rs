//! Everything a call can end in, as one closed list. Unaware of gRPC: `grpc/status.rs` holds the
//! table from here to the wire.
#![deny(clippy::wildcard_enum_match_arm)]

use std::borrow::Cow;
use std::time::Duration;

use crate::audit;
use crate::datakeys;
use crate::directory::Owner;
use crate::kms;
use crate::message::Flaw;
use crate::policy;
use crate::quota;
use crate::store;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No audit sink accepted the call's record in time.
    #[error("the audit record was not accepted")]
    AuditUnavailable(#[from] audit::Unavailable),
    /// A fault of our own: an invariant is broken.
    #[error("internal fault: {0}")]
    Bug(Cow<'static, str>),
    /// A field does not have the CRC32C that came with it.
    #[error("CRC32C of {0} does not match")]
    Checksum(&'static str),
    /// The caller's own pairs are no encryption context, or not theirs to set.
    #[error("encryption context refused in {field}: {why}")]
    Context {
        /// The request's field.
        field: &'static str,
        /// What is wrong.
        why: policy::InvalidContext,
    },
    /// The policy does not allow it, or there is no such key: the reason is for the audit alone.
    #[error("denied: {0}")]
    Denied(#[from] policy::Denied),
    /// The deadline passed.
    #[error("deadline passed")]
    Expired,
    /// A living grant has the name, and is another one.
    #[error("the name of the grant is taken")]
    GrantNameTaken,
    /// The grant says that it is not to be renewed.
    #[error("the grant is not renewable")]
    GrantNotRenewable,
    /// As many grants of the key live as may.
    #[error("{limit} grants of the key live")]
    GrantsExhausted {
        /// How many.
        limit: usize,
    },
    /// A field's value is not acceptable.
    #[error("{field}: {why}")]
    Invalid {
        /// The request's field.
        field: &'static str,
        /// What is wrong with which value.
        why: String,
    },
    /// The KMS key is disabled.
    #[error("KMS key disabled")]
    KeyDisabled,
    /// The KMS key is pending deletion.
    #[error("KMS key pending deletion: {0}")]
    KeyPendingDeletion(String),
    /// Our own role lacks a right on a key that our operator answers for, or the key that our
    /// directory names does not exist.
    #[error("KMS refuses the broker: {0}")]
    KmsAccessDenied(String),
    /// The KMS behind the key has no grants of its own.
    #[error("the KMS of the key has no grants")]
    KmsGrantsUnsupported,
    /// KMS takes no more calls, by its own word or by our budget, and nothing usable is cached.
    #[error("KMS throttles")]
    KmsThrottled {
        /// How long to wait before the same call.
        pause: Duration,
    },
    /// KMS is out of reach and nothing usable is cached.
    #[error("KMS unavailable: {0}")]
    KmsUnavailable(String),
    /// The request's body is longer than any message may be.
    #[error("request body over its limit")]
    MessageTooLarge {
        /// The limit of its method, in bytes.
        limit: usize,
    },
    /// No such method.
    #[error("no such method")]
    MethodUnknown,
    /// The request's body is no message of its type.
    #[error("undecodable request body")]
    Malformed,
    /// The caller is no operator of the broker.
    #[error("not an operator")]
    NotOperator,
    /// There is more to do than the broker takes on.
    #[error("too much to do")]
    Overloaded,
    /// A plaintext is longer than its limit.
    #[error("plaintext of {length} bytes over the limit of {limit}")]
    PlaintextTooLarge {
        /// Its length in bytes, as far as it is known.
        length: u64,
        /// The most bytes it may have.
        limit: u64,
    },
    /// The caller or its tenant has spent what it may.
    #[error(transparent)]
    RateLimited(#[from] quota::Exceeded),
    /// An item's result has no room left in its batch's response.
    #[error("no room left in the response")]
    ResponseTooLarge {
        /// The response's limit in bytes.
        limit: usize,
    },
    /// What the store says counts, and it does not say it, or has not for long.
    #[error("the store is out of reach: {0}")]
    StoreUnavailable(Cow<'static, str>),
    /// Nothing moved on a stream for long.
    #[error("the stream stood still")]
    Stalled,
    /// The tenant's own KMS key does not exist or is of the wrong kind.
    #[error("tenant's KMS configuration: {0}")]
    TenantKmsConfigInvalid(String),
    /// The tenant's own KMS key refuses the broker.
    #[error("tenant's KMS key refuses the broker: {0}")]
    TenantKmsDenied(String),
    /// The caller's tenant, or the key's, is suspended.
    #[error("the tenant is suspended")]
    TenantSuspended,
    /// The broker takes its tenants from a file of its own.
    #[error("tenants_file is set")]
    TenantsFileSet,
    /// The connection proves no identity, or not any more.
    #[error("unauthenticated: {0}")]
    Unauthenticated(#[from] Unauthenticated),
    /// No rule maps the caller's identity to a tenant.
    #[error("identity maps to no tenant")]
    Unmapped,
    /// A ciphertext does not open; the cause is for the audit and our own CLI alone.
    #[error("ciphertext refused: {0}")]
    Unverified(Unverified),
    /// The data key of a stream was purged, or its key is not what it was.
    #[error("the data key was withdrawn")]
    Withdrawn,
}

/// Why a connection proves no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// The certificate has expired since the handshake.
    #[error("certificate expired")]
    Expired,
    /// There is no identity to verify.
    #[error("no identity")]
    Missing,
    /// The certificate has been revoked.
    #[error("certificate revoked")]
    Revoked,
    /// No bundle of ours verifies the identity.
    #[error("trust domain unknown")]
    TrustDomainUnknown,
}

/// Why a ciphertext does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// Its bytes are no message that opens.
    #[error(transparent)]
    Flaw(#[from] Flaw),
    /// No data key in it is wrapped by a key that the directory gives the named key.
    #[error("no data key in the message belongs to this key")]
    ForeignKey,
    /// KMS did not unwrap its data key.
    #[error("KMS does not unwrap the data key with this context")]
    Unwrap,
    /// Its context is not the one that this caller and request stand for.
    #[error(transparent)]
    Context(#[from] policy::Mismatch),
}

impl Unverified {
    /// A stable label for audit records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Flaw(flaw) => flaw.label(),
            Self::ForeignKey => "foreign_key",
            Self::Unwrap => "unwrap_failed",
            Self::Context(mismatch) => mismatch.label(),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::StoreUnavailable(error.to_string().into())
    }
}

impl From<Flaw> for Error {
    fn from(flaw: Flaw) -> Self {
        Self::Unverified(flaw.into())
    }
}

impl Error {
    /// What a failed look-up of a data key means for a call under a key of `owner`.
    pub fn of_data_key(error: datakeys::Error, owner: Owner) -> Self {
        match error {
            datakeys::Error::Bug(what) => Self::Bug(what.into()),
            datakeys::Error::Full => Self::Overloaded,
            datakeys::Error::NoWrappedKey => Self::Unverified(Unverified::ForeignKey),
            datakeys::Error::Kms(error) => Self::of_kms(error, owner),
        }
    }

    /// What a failed call of KMS means for a call under a key of `owner`.
    pub fn of_kms(error: kms::Error, owner: Owner) -> Self {
        match (error, owner) {
            (kms::Error::AccessDenied(why), Owner::Operator) => {
                Self::KmsAccessDenied(why.to_string())
            }
            (kms::Error::AccessDenied(why), Owner::Tenant) => {
                Self::TenantKmsDenied(why.to_string())
            }
            (kms::Error::Credentials(why), _) => Self::KmsUnavailable(why),
            (kms::Error::Crowded { pause }, _) => Self::KmsThrottled {
                pause: pause.clamp(PAUSE, LONGEST_PAUSE),
            },
            (kms::Error::Disabled, _) => Self::KeyDisabled,
            (kms::Error::IncorrectKey | kms::Error::InvalidCiphertext, _) => {
                Self::Unverified(Unverified::Unwrap)
            }
            (kms::Error::Invalid(why), _) => {
                Self::Bug(format!("unexpected KMS answer: {why}").into())
            }
            (kms::Error::NotFound(why), Owner::Operator) => Self::KmsAccessDenied(why),
            (kms::Error::NotFound(why), Owner::Tenant) => Self::TenantKmsConfigInvalid(why),
            (kms::Error::PendingDeletion(why), _) => Self::KeyPendingDeletion(why),
            (kms::Error::Throttled, _) => Self::KmsThrottled { pause: PAUSE },
            (kms::Error::Unavailable(why), _) => Self::KmsUnavailable(why),
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::AuditUnavailable(_)
            | Self::KmsThrottled { .. }
            | Self::KmsUnavailable(_)
            | Self::Overloaded
            | Self::RateLimited(_)
            | Self::StoreUnavailable(_)
            | Self::Withdrawn => true,
            Self::Bug(_)
            | Self::Checksum(_)
            | Self::Context { .. }
            | Self::Denied(_)
            | Self::Expired
            | Self::GrantNameTaken
            | Self::GrantNotRenewable
            | Self::GrantsExhausted { .. }
            | Self::Invalid { .. }
            | Self::KeyDisabled
            | Self::KeyPendingDeletion(_)
            | Self::KmsAccessDenied(_)
            | Self::KmsGrantsUnsupported
            | Self::Malformed
            | Self::MessageTooLarge { .. }
            | Self::MethodUnknown
            | Self::NotOperator
            | Self::PlaintextTooLarge { .. }
            | Self::ResponseTooLarge { .. }
            | Self::Stalled
            | Self::TenantKmsConfigInvalid(_)
            | Self::TenantKmsDenied(_)
            | Self::TenantSuspended
            | Self::TenantsFileSet
            | Self::Unauthenticated(_)
            | Self::Unmapped
            | Self::Unverified(_) => false,
        }
    }

    /// The stable name of the reason: the wire's, the audit's and the metrics'.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::AuditUnavailable(_) => "AUDIT_UNAVAILABLE",
            Self::Bug(_) => "INTERNAL",
            Self::Checksum(_) => "CHECKSUM_MISMATCH",
            Self::Context { .. } => "CONTEXT_INVALID",
            Self::Denied(_) => "POLICY_DENIED",
            Self::Expired | Self::Stalled => "DEADLINE_EXCEEDED",
            Self::GrantNameTaken => "GRANT_NAME_TAKEN",
            Self::GrantNotRenewable => "GRANT_NOT_RENEWABLE",
            Self::GrantsExhausted { .. } => "GRANTS_EXHAUSTED",
            Self::Invalid { .. } => "FIELD_INVALID",
            Self::KeyDisabled => "KEY_DISABLED",
            Self::KeyPendingDeletion(_) => "KEY_PENDING_DELETION",
            Self::KmsAccessDenied(_) => "KMS_ACCESS_DENIED",
            Self::KmsGrantsUnsupported => "KMS_GRANTS_UNSUPPORTED",
            Self::KmsThrottled { .. } => "KMS_THROTTLED",
            Self::KmsUnavailable(_) => "KMS_UNAVAILABLE",
            Self::Malformed => "REQUEST_MALFORMED",
            Self::MessageTooLarge { .. } => "MESSAGE_TOO_LARGE",
            Self::MethodUnknown => "METHOD_UNKNOWN",
            Self::NotOperator => "NOT_AN_OPERATOR",
            Self::Overloaded => "OVERLOADED",
            Self::PlaintextTooLarge { .. } => "PLAINTEXT_TOO_LARGE",
            Self::RateLimited(_) => "RATE_LIMITED",
            Self::ResponseTooLarge { .. } => "RESPONSE_TOO_LARGE",
            Self::StoreUnavailable(_) => "STORE_UNAVAILABLE",
            Self::TenantKmsConfigInvalid(_) => "TENANT_KMS_CONFIG_INVALID",
            Self::TenantKmsDenied(_) => "TENANT_KMS_DENIED",
            Self::TenantSuspended => "TENANT_SUSPENDED",
            Self::TenantsFileSet => "TENANTS_FILE_SET",
            Self::Unauthenticated(Unauthenticated::Expired) => "IDENTITY_EXPIRED",
            Self::Unauthenticated(Unauthenticated::Missing) => "IDENTITY_MISSING",
            Self::Unauthenticated(Unauthenticated::Revoked) => "IDENTITY_REVOKED",
            Self::Unauthenticated(Unauthenticated::TrustDomainUnknown) => "TRUST_DOMAIN_UNKNOWN",
            Self::Unmapped => "IDENTITY_UNMAPPED",
            Self::Unverified(_) => "CIPHERTEXT_INVALID",
            Self::Withdrawn => "DATA_KEY_WITHDRAWN",
        }
    }
}

/// The shortest pause before a call for which KMS had no room.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest: as long as any call may take.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
