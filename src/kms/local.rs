//! The embedded KMS: keys in a sealed file beside the broker, behind the same contract as AWS KMS.
//!
//! Whoever has keyring and sealing key has every data key; it serves a laptop, a sidecar or a
//! single machine, not a fleet.

pub mod contents;
mod disk;
mod error;
pub mod file;
mod keyring;
pub mod sealing;
mod wrap;

use async_trait::async_trait;
use uuid::Uuid;

use crate::crypto::Secret;
use crate::crypto::random;
use crate::kms;
use crate::kms::DATA_KEY;
use crate::kms::DataKey;
use crate::kms::Demand;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::kms::LOCAL_PROVIDER;
use crate::kms::Unwrapped;
use crate::kms::Wrapped;
use crate::kms::local::contents::Contents;
use crate::kms::local::contents::Key;
use crate::kms::local::contents::Version;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;
use crate::name::KeyId;

pub use contents::Purpose;
pub use contents::State;
pub use error::Error;
pub use keyring::Keyring;
pub use keyring::Listing;
pub use sealing::SealingKey;

/// The newest version wraps; the version that the provider info names unwraps.
///
/// A call works on the keys as they are when it begins and never waits, for a rotation either.
/// The key's state is checked before the wrapped key is looked at.
#[async_trait]
impl Kms for Keyring {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<DataKey, kms::Error> {
        let plaintext = Secret::random().map_err(unavailable)?;
        Ok(DataKey {
            wrapped: self.wrap(key, &plaintext, context)?,
            plaintext,
            request_id: None,
        })
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<Wrapped, kms::Error> {
        Ok(Wrapped {
            wrapped: self.wrap(key, plaintext, context)?,
            request_id: None,
        })
    }

    /// A data key of another keyring, another key, or a version that this keyring has not got
    /// (it was restored from a backup that is too old) is [`kms::Error::IncorrectKey`].
    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<Unwrapped, kms::Error> {
        let contents = self.contents();
        let (id, key) = usable(&contents, key)?;
        let version = wrapper(contents.id, &id, key, wrapped).ok_or(kms::Error::IncorrectKey)?;
        let plaintext = wrap::unwrap(
            &version.material,
            &wrapped.provider_info,
            context,
            &wrapped.ciphertext,
        )
        .ok_or(kms::Error::InvalidCiphertext)?;
        Ok(Unwrapped {
            plaintext,
            current: version.number == key.primary.number,
            request_id: None,
        })
    }

    async fn describe_key(&self, key: &KeyRef) -> Result<(), kms::Error> {
        usable(&self.contents(), key).map(|_| ())
    }

    /// A key that is enabled does everything, for every context.
    async fn dry_run(
        &self,
        _: KmsOperation,
        key: &KeyRef,
        _: &EncryptionContext,
        _: &Demand,
    ) -> Result<(), kms::Error> {
        self.describe_key(key).await
    }
}

impl Keyring {
    fn wrap(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
    ) -> Result<EncryptedDataKey, kms::Error> {
        let contents = self.contents();
        let (id, key) = usable(&contents, key)?;
        let info = info(contents.id, &id, key.primary.number);
        let ciphertext =
            wrap::wrap(&key.primary.material, &info, context, plaintext).map_err(unavailable)?;
        Ok(EncryptedDataKey {
            provider_id: LOCAL_PROVIDER.to_owned(),
            provider_info: info,
            ciphertext,
        })
    }
}

/// The key that `key` names, if it may be used.
fn usable<'a>(contents: &'a Contents, key: &KeyRef) -> Result<(KeyId, &'a Key), kms::Error> {
    let unknown = || kms::Error::NotFound(format!("{key} is not in the keyring"));
    let id: KeyId = match key {
        KeyRef::Local(id) => id.parse().map_err(|_| unknown())?,
        KeyRef::Aws(_) | KeyRef::MultiRegion(_) => return Err(unknown()),
    };
    let key = contents.keys.get(&id).ok_or_else(unknown)?;
    match key.state {
        State::Enabled => Ok((id, key)),
        State::Disabled => Err(kms::Error::Disabled),
        state @ State::PendingDeletion { .. } => {
            Err(kms::Error::PendingDeletion(state.to_string()))
        }
    }
}

/// The version of `key` that `wrapped` says it was wrapped by, to the letter.
fn wrapper<'a>(
    keyring: Uuid,
    id: &KeyId,
    key: &'a Key,
    wrapped: &EncryptedDataKey,
) -> Option<&'a Version> {
    let number = wrapped.provider_info.rsplit('/').next()?.parse().ok()?;
    let claims =
        wrapped.provider_id == LOCAL_PROVIDER && wrapped.provider_info == info(keyring, id, number);
    key.versions()
        .find(|version| claims && version.number == number)
}

/// The provider info `<keyring id>/<key id>/<version>`, which the associated data binds.
fn info(keyring: Uuid, id: &KeyId, version: u32) -> String {
    format!("{keyring}/{id}/{version}")
}

fn unavailable(error: random::Error) -> kms::Error {
    kms::Error::Unavailable(error.to_string())
}
