//! Where data keys are wrapped and unwrapped: one contract, kept by AWS KMS and by the embedded
//! local KMS, and one closed error.
//!
//! Which KMS key to call comes from the directory, never from a ciphertext.

pub mod aws;
mod backends;
mod delegation;
mod demand;
mod denial;
mod guarded;
mod key;
pub mod local;
mod signer;
mod statement;

pub use backends::Backends;
pub use backends::Config;
pub use backends::LocalConfig;
pub use delegation::Delegated;
pub use delegation::Delegation;
pub use delegation::IamPrincipal;
pub use delegation::Made;
pub use delegation::MalformedIamPrincipal;
pub use delegation::Matching;
pub use delegation::Named;
pub use delegation::Revoked;
pub use delegation::Undelegated;
pub use demand::Demand;
pub use denial::Denial;
pub(crate) use guarded::Fair;
pub use guarded::Guarded;
pub use key::Arn;
pub use key::KeyRef;
pub use key::MalformedRef;
pub use key::Reach;
pub use key::Replicas;
pub use key::UnfitReplicas;
pub use signer::Signer;
pub use statement::Statement;

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::crypto::Secret;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;

/// The length of a data key, in bytes.
pub const DATA_KEY: usize = 32;

/// A key management service.
///
/// A [`Demand`] says for whom a call is made: what stands before a service goes by it, the service
/// itself need not. Calls are cancelled by dropping them; each ends by itself within the implementation's own
/// timeouts.
#[async_trait]
pub trait Kms: Send + Sync + 'static {
    /// Makes a data key and wraps it under `key`, bound to `context`.
    ///
    /// # Errors
    /// [`Error`]; never [`Error::InvalidCiphertext`] or [`Error::IncorrectKey`].
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<DataKey, Error>;

    /// Wraps `plaintext`, a data key that another key has made, under `key` as well, bound to
    /// `context`.
    ///
    /// # Errors
    /// [`Error`]; never [`Error::InvalidCiphertext`] or [`Error::IncorrectKey`].
    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Wrapped, Error>;

    /// Unwraps `wrapped`, which must have been wrapped under `key` and with this very `context`.
    ///
    /// # Errors
    /// [`Error::IncorrectKey`] when another key wrapped it, [`Error::InvalidCiphertext`] when it
    /// is damaged or bound to another context, else the state of the key or of the service.
    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Unwrapped, Error>;

    /// Asks whether `key` exists and may be used, without using it.
    ///
    /// # Errors
    /// What a use of the key would meet, as far as the service tells.
    async fn describe_key(&self, key: &KeyRef) -> Result<(), Error>;

    /// Asks whether `operation` with `key` would be done for `context`, without doing it.
    ///
    /// # Errors
    /// What the operation would meet, as far as the service tells.
    async fn dry_run(
        &self,
        operation: KmsOperation,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<(), Error>;

    /// Since when calls for `key` have waited for nothing but the service; waits while they do
    /// wait for something else, the loading of our own credentials say. None if they never did.
    ///
    /// The time of an attempt begins no earlier.
    async fn ready_since(&self, _key: &KeyRef) -> Option<Instant> {
        None
    }
}

/// A fresh data key: its plaintext, and the same wrapped.
pub struct DataKey {
    /// The key itself.
    pub plaintext: Secret<DATA_KEY>,
    /// What goes into message headers.
    pub wrapped: EncryptedDataKey,
    /// The service's name for this call, for the audit record (`x-amzn-RequestId`).
    pub request_id: Option<String>,
}

/// A known data key, wrapped once more.
pub struct Wrapped {
    /// What goes into message headers.
    pub wrapped: EncryptedDataKey,
    /// The service's name for this call, for the audit record.
    pub request_id: Option<String>,
}

/// An unwrapped data key.
pub struct Unwrapped {
    /// The key itself.
    pub plaintext: Secret<DATA_KEY>,
    /// Whether the KMS key would wrap with the same version now, as far as the service tells.
    pub current: bool,
    /// The service's name for this call, for the audit record.
    pub request_id: Option<String>,
}

/// What a KMS call can end in, sorted by what it means to us; AWS's codes are in its file.
///
/// The text in a variant is the service's own sentence, for operators; it holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Our role, or nobody, may use the key this way: a refusal, to be believed at once.
    #[error("KMS denies access to the key: {0}")]
    AccessDenied(Denial),
    /// More calls are wanted than our own budget allows: this one would not be made in time.
    #[error("more calls to KMS are wanted than may be made; there may be room in {pause:?}")]
    Crowded {
        /// How long it takes until there is room.
        pause: Duration,
    },
    /// Our own credentials are missing or no longer good.
    #[error("no usable KMS credentials: {0}")]
    Credentials(String),
    /// The key is disabled.
    #[error("the KMS key is disabled")]
    Disabled,
    /// Another key wrapped this data key.
    #[error("the data key was wrapped by another KMS key")]
    IncorrectKey,
    /// The wrapped key is damaged, or bound to another context.
    #[error("the wrapped data key does not open with this encryption context")]
    InvalidCiphertext,
    /// The service answered against its own contract, or called our request malformed.
    #[error("unexpected KMS answer: {0}")]
    Invalid(String),
    /// There is no such key, or it is of the wrong kind.
    #[error("no such KMS key: {0}")]
    NotFound(String),
    /// The key is in a state that allows no use, deletion pending for the most part.
    #[error("the KMS key is pending deletion or in another state that allows no use: {0}")]
    PendingDeletion(String),
    /// The service asks us to call less often.
    #[error("KMS throttles")]
    Throttled,
    /// The service failed, was not reached or did not answer in time.
    #[error("KMS is unavailable: {0}")]
    Unavailable(String),
}

impl Error {
    /// Whether the service has decided against the call. Everything else is an outage or a fault
    /// of somebody's, which says nothing about what is cached.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::AccessDenied(_)
            | Self::Disabled
            | Self::IncorrectKey
            | Self::InvalidCiphertext
            | Self::NotFound(_)
            | Self::PendingDeletion(_) => true,
            Self::Credentials(_)
            | Self::Crowded { .. }
            | Self::Invalid(_)
            | Self::Throttled
            | Self::Unavailable(_) => false,
        }
    }

    /// Whether the service has left it undecided, for want of room or because it failed: then
    /// another Region, or another key, may be asked instead.
    pub fn is_undecided(&self) -> bool {
        match self {
            Self::Crowded { .. } | Self::Throttled | Self::Unavailable(_) => true,
            Self::AccessDenied(_)
            | Self::Credentials(_)
            | Self::Disabled
            | Self::IncorrectKey
            | Self::InvalidCiphertext
            | Self::Invalid(_)
            | Self::NotFound(_)
            | Self::PendingDeletion(_) => false,
        }
    }
}

/// The provider id of AWS KMS.
pub const AWS_PROVIDER: &str = "aws-kms";
/// The provider id of the embedded local KMS; AWS SDKs skip its data keys.
pub const LOCAL_PROVIDER: &str = "keybroker-local";
