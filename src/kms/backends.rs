//! The key management services that are configured, as one: each key goes to its own.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::SignedDuration;
use serde::Deserialize;
use tokio::time::Instant;

use crate::crypto::Secret;
use crate::kms::Arn;
use crate::kms::DATA_KEY;
use crate::kms::DataKey;
use crate::kms::Delegated;
use crate::kms::Delegation;
use crate::kms::Demand;
use crate::kms::Error;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::kms::Made;
use crate::kms::Named;
use crate::kms::Revoked;
use crate::kms::Undelegated;
use crate::kms::Unwrapped;
use crate::kms::Wrapped;
use crate::kms::aws;
use crate::kms::aws::Aws;
use crate::kms::local::Keyring;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;

/// The `kms` part of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// AWS KMS.
    pub aws: aws::Config,
    /// The embedded KMS; without it there are no `local:` keys.
    pub local: Option<LocalConfig>,
}

/// The embedded KMS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// The keyring file, made by `keybroker keyring init`.
    pub keyring: PathBuf,
    /// What the keyring is sealed with: the path of a file, or `credential:<name>` for one that
    /// systemd hands over.
    pub sealing_key: String,
    /// The age at which a key gets a new version while the server runs; never when not set.
    pub rotation_period: Option<SignedDuration>,
}

impl Config {
    /// Makes relative paths relative to `folder`.
    pub fn anchor(&mut self, folder: &Path) {
        if let Some(local) = &mut self.local {
            local.keyring = folder.join(&local.keyring);
            if !local.sealing_key.starts_with("credential:") {
                local.sealing_key = folder
                    .join(&local.sealing_key)
                    .to_string_lossy()
                    .into_owned();
            }
        }
    }
}

/// The services behind one contract.
pub struct Backends {
    /// AWS KMS.
    pub aws: Aws,
    /// The embedded KMS, where configured.
    pub local: Option<Arc<Keyring>>,
}

impl Backends {
    fn of(&self, key: &KeyRef) -> Result<&dyn Kms, Error> {
        match (key, &self.local) {
            (KeyRef::Aws(_) | KeyRef::MultiRegion(_), _) => Ok(&self.aws),
            (KeyRef::Local(_), Some(local)) => Ok(local.as_ref()),
            (KeyRef::Local(_), None) => Err(Error::NotFound(format!(
                "{key}: no local KMS is configured"
            ))),
        }
    }
}

#[async_trait]
impl Delegation for Backends {
    async fn create_grant(
        &self,
        key: &Arn,
        delegation: &Delegated<'_>,
    ) -> Result<Made, Undelegated> {
        self.aws.create_grant(key, delegation).await
    }

    async fn revoke_grant(&self, key: &Arn, id: &str) -> Result<Revoked, Error> {
        self.aws.revoke_grant(key, id).await
    }

    async fn grants_named(&self, key: &Arn, prefix: &str) -> Result<Vec<Named>, Error> {
        self.aws.grants_named(key, prefix).await
    }
}

#[async_trait]
impl Kms for Backends {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<DataKey, Error> {
        self.of(key)?.generate_data_key(key, context, demand).await
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Wrapped, Error> {
        let kms = self.of(key)?;
        kms.encrypt(key, plaintext, context, demand).await
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Unwrapped, Error> {
        self.of(key)?.decrypt(key, wrapped, context, demand).await
    }

    async fn describe_key(&self, key: &KeyRef) -> Result<(), Error> {
        self.of(key)?.describe_key(key).await
    }

    async fn dry_run(
        &self,
        operation: KmsOperation,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<(), Error> {
        let kms = self.of(key)?;
        kms.dry_run(operation, key, context, demand).await
    }

    async fn ready_since(&self, key: &KeyRef) -> Option<Instant> {
        self.of(key).ok()?.ready_since(key).await
    }
}
