//! What KMS is asked: for an entry, of one KMS key after another.

use std::iter;
use std::sync::Arc;

use crate::datakeys::id::Id;
use crate::datakeys::origin::Origin;
use crate::datakeys::refusal::Subject;
use crate::datakeys::share::Share;
use crate::directory::Key;
use crate::directory::Unwrapper;
use crate::kms::Demand;
use crate::kms::KeyRef;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;

/// For what KMS is asked, and for whom: owned, because the answer is awaited in a task of its own.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) share: Arc<Share>,
    pub(super) origin: Arc<Origin>,
    /// The entry that the answer is for.
    pub(super) id: Id,
    pub(super) context: EncryptionContext,
    pub(super) demand: Demand,
}

/// What one KMS key is to do for a question.
#[derive(Clone, Copy)]
pub(super) struct Ask<'q> {
    pub(super) question: &'q Question,
    pub(super) kms_key: &'q KeyRef,
    pub(super) operation: KmsOperation,
}

impl Question {
    /// Has `kms_key` do `operation`.
    pub(super) fn ask<'q>(&'q self, kms_key: &'q KeyRef, operation: KmsOperation) -> Ask<'q> {
        Ask {
            question: self,
            kms_key,
            operation,
        }
    }

    /// What makes a data key, if all answer.
    pub(super) fn making(&self) -> impl Iterator<Item = Ask<'_>> {
        let keys = self.origin.kms_keys();
        let generator = self.ask(keys.generator(), KmsOperation::GenerateDataKey);
        let additional = keys.additional();
        let additional = additional.map(|one| self.ask(one, KmsOperation::Encrypt));
        iter::once(generator).chain(additional)
    }

    /// The same for the context of the pairs that every context of the key has; none if those are
    /// none.
    pub(super) fn of_base(&self) -> Option<Self> {
        let pairs = self.origin.key().context();
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let context = EncryptionContext::new(pairs).ok()?;
        Some(Self {
            context,
            ..self.clone()
        })
    }
}

impl Ask<'_> {
    /// All of the tenant's use of the KMS key for this.
    pub(super) fn subject(&self) -> Subject {
        let key = self.question.origin.key();
        Subject::Use {
            key: key.name().key.clone(),
            generation: key.generation(),
            kms_key: self.kms_key.clone(),
            operation: self.operation,
        }
    }
}

/// A data key as one of our KMS keys has wrapped it.
#[derive(Clone)]
pub(super) struct Wrap {
    /// What is had by unwrapping it.
    pub(super) origin: Arc<Origin>,
    pub(super) kms_key: KeyRef,
    pub(super) wrapped: EncryptedDataKey,
}

/// The wraps of one data key that may each open it, in the order in which they are tried.
#[derive(Clone)]
pub(super) struct Wraps {
    pub(super) first: Wrap,
    pub(super) others: Vec<Wrap>,
}

impl Wraps {
    /// Those of `wrapped` that are [`ours`], for `share`; none if none is.
    pub(super) fn of(share: &Share, key: &Arc<Key>, wrapped: &[EncryptedDataKey]) -> Option<Self> {
        let mut all = ours(key, wrapped).map(|(wrapped, unwrapper)| Wrap {
            origin: share.origin(key, unwrapper.version, unwrapper.keys),
            kms_key: unwrapper.kms_key.clone(),
            wrapped: wrapped.clone(),
        });
        Some(Self {
            first: all.next()?,
            others: all.collect(),
        })
    }

    /// As they stand in the message.
    pub(super) fn wrapped(&self) -> Vec<EncryptedDataKey> {
        let all = iter::once(&self.first).chain(&self.others);
        all.map(|wrap| wrap.wrapped.clone()).collect()
    }
}

/// Those of `wrapped` that a KMS key of `key` has wrapped, by what they say, and which that is.
pub(super) fn ours<'k>(
    key: &'k Key,
    wrapped: &'k [EncryptedDataKey],
) -> impl Iterator<Item = (&'k EncryptedDataKey, Unwrapper<'k>)> {
    let unwrapper = |one| Some((one, key.kms().unwrapper(one)?));
    wrapped.iter().filter_map(unwrapper)
}
