//! Data keys in use for as long as a stream goes on. Whoever holds one keeps it in memory, and so
//! must ask [`Cut`] again and again: a purge waits for it.

use std::sync::Arc;

use crate::clock::Instant;
use crate::crypto::Plaintext;
use crate::datakeys::DataKeys;
use crate::datakeys::Error;
use crate::datakeys::id::Id;
use crate::datakeys::key::OpeningKey;
use crate::datakeys::key::Reserved;
use crate::datakeys::key::SealingKey;
use crate::datakeys::origin::Origin;
use crate::datakeys::waiters::Patience;
use crate::message::EncryptedDataKey;
use crate::message::Flaw;
use crate::message::stream::Opener;
use crate::message::stream::Sealer;
use crate::policy::Permit;

/// One message on its way out.
pub struct Sealing {
    // Dropped in this order: the message's own keys are wiped before the data key counts as gone.
    sealer: Sealer,
    key: Arc<SealingKey>,
}

/// One message on its way in.
pub struct Opening {
    // As in `Sealing`.
    opener: Opener,
    key: Arc<OpeningKey>,
}

/// Tells whether a data key may still be used, and keeps nobody waiting who wants it gone.
pub struct Cut {
    origin: Arc<Origin>,
    hard: Instant,
}

impl DataKeys {
    /// As [`DataKeys::sealing`], for a message of unknown length: its data key seals nothing else.
    /// What it seals is for the caller to keep within the key's limit of bytes.
    ///
    /// # Errors
    /// [`Error::Full`], or what KMS answers.
    pub async fn sealing_alone(
        &self,
        permit: &Permit,
        patience: &Patience,
    ) -> Result<Reserved, Error> {
        let id = Id::sealing(permit.key(), permit.context().serialized());
        let share = self.upstream.shares.of(permit.tenant());
        self.single_use(&share, permit, id, patience).await
    }

    /// Asks of a data key in use what is asked of one to be used: that of one of `wrapped`, from
    /// the cache or by KMS. Returns until when the answer holds, and no data key.
    ///
    /// # Errors
    /// As [`DataKeys::opening`].
    pub async fn confirm(
        &self,
        permit: &Permit,
        wrapped: &[EncryptedDataKey],
        patience: &Patience,
    ) -> Result<Instant, Error> {
        let opener = self.unwrapped(permit, wrapped, 1, patience).await?;
        Ok(opener.key.hard())
    }
}

impl Sealing {
    pub(super) fn new(sealer: Sealer, key: Arc<SealingKey>) -> Self {
        Self { sealer, key }
    }

    /// As [`Sealer::push`].
    pub fn push(&mut self, plaintext: &[u8]) -> Vec<u8> {
        self.sealer.push(plaintext)
    }

    /// As [`Sealer::finish`].
    pub fn finish(self) -> Vec<u8> {
        self.sealer.finish()
    }

    /// What tells when the data key is to be given up.
    pub fn cut(&self) -> Cut {
        Cut {
            origin: Arc::clone(self.key.origin()),
            hard: self.key.hard(),
        }
    }

    /// The data key as KMS wrapped it.
    pub fn wrapped(&self) -> Vec<EncryptedDataKey> {
        self.key.envelope().encrypted_data_keys()
    }
}

impl Opening {
    pub(super) fn new(opener: Opener, key: Arc<OpeningKey>) -> Self {
        Self { opener, key }
    }

    /// As [`Opener::push`].
    ///
    /// # Errors
    /// [`Flaw`].
    pub fn push(&mut self, ciphertext: &[u8]) -> Result<Plaintext, Flaw> {
        self.opener.push(ciphertext)
    }

    /// As [`Opener::finish`].
    ///
    /// # Errors
    /// [`Flaw`].
    pub fn finish(self) -> Result<(), Flaw> {
        self.opener.finish()
    }

    /// What tells when the data key is to be given up.
    pub fn cut(&self) -> Cut {
        Cut {
            origin: Arc::clone(self.key.origin()),
            hard: self.key.hard(),
        }
    }
}

impl Cut {
    /// Whether the data key may serve no more: it was purged, KMS refused it, or its key is not
    /// what it was.
    pub fn is_done(&self) -> bool {
        self.origin.cut().is_some()
    }

    /// When it has served its time: from then on it serves only what
    /// [`DataKeys::confirm`] grants.
    pub fn hard(&self) -> Instant {
        self.hard
    }
}
