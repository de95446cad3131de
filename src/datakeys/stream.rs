//! Data keys in use for as long as a stream goes on. Whoever holds one keeps it in memory, and so
//! must ask [`Cut`] again and again: a purge waits for it.

use std::sync::Arc;

use crate::crypto::Plaintext;
use crate::datakeys::key::OpeningKey;
use crate::datakeys::key::SealingKey;
use crate::datakeys::origin::Origin;
use crate::message::Flaw;
use crate::message::stream::Opener;
use crate::message::stream::Sealer;

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
#[derive(Clone)]
pub struct Cut(Arc<Origin>);

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
        Cut(Arc::clone(self.key.origin()))
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
        Cut(Arc::clone(self.key.origin()))
    }
}

impl Cut {
    /// Whether the data key may serve no more: it was purged, KMS refused it, or its key is not
    /// what it was. Its age is no reason: it bounds when messages begin.
    pub fn is_done(&self) -> bool {
        self.0.cut().is_some()
    }
}
