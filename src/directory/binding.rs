//! Which KMS keys wrap for a key, and which unwrap.

use crate::kms::KeyRef;
use crate::message::EncryptedDataKey;

/// The KMS keys of a key, in at least one version, all named differently. The position in the list
/// is the version, counted from 1; the last is primary and wraps, all of them unwrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    older: Box<[KmsKeys]>,
    primary: KmsKeys,
}

impl Binding {
    /// The versions of `list`, oldest first; none for an empty list.
    pub(super) fn new(mut list: Vec<KmsKeys>) -> Option<Self> {
        let primary = list.pop()?;
        Some(Self {
            older: list.into(),
            primary,
        })
    }

    /// The KMS keys that wrap new data keys.
    pub fn primary(&self) -> &KmsKeys {
        &self.primary
    }

    /// The version of the primary keys, which is also how many there are.
    pub fn primary_version(&self) -> usize {
        self.older.len() + 1
    }

    /// The version of `key`, if it is one of these.
    pub fn version_of(&self, key: &KeyRef) -> Option<usize> {
        let mut versions = self.versions().zip(1..);
        let found = versions.find(|(keys, _)| keys.iter().any(|one| one == key));
        found.map(|(_, version)| version)
    }

    /// The key that `wrapped` says it was wrapped by: that very key, or else a replica of it.
    pub fn unwrapper(&self, wrapped: &EncryptedDataKey) -> Option<Unwrapper<'_>> {
        let claimed = |named: bool| {
            let very = |key: &KeyRef| !named || key.is_named_by(wrapped);
            let numbered = (1..).zip(self.versions());
            let mut all = numbered.flat_map(|(version, keys)| {
                keys.iter().map(move |kms_key| Unwrapper {
                    version,
                    keys,
                    kms_key,
                })
            });
            all.find(|one| one.kms_key.claims(wrapped) && very(one.kms_key))
        };
        claimed(true).or_else(|| claimed(false))
    }

    /// The KMS keys of each version, oldest first.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = &KmsKeys> {
        self.older.iter().chain([&self.primary])
    }

    /// All KMS keys, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &KeyRef> {
        self.versions().flat_map(KmsKeys::iter)
    }
}

/// A KMS key that may open a data key.
#[derive(Clone, Copy, Debug)]
pub struct Unwrapper<'b> {
    /// The version that it is of.
    pub version: usize,
    /// All KMS keys of that version.
    pub keys: &'b KmsKeys,
    /// The KMS key.
    pub kms_key: &'b KeyRef,
}

/// What wraps the data keys of one version of a key: a generator key, which makes them too, and
/// perhaps an additional key that has no material in common with it. Each opens what both have
/// wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsKeys {
    generator: KeyRef,
    additional: Option<KeyRef>,
}

impl KmsKeys {
    /// One key alone.
    pub(super) fn of(generator: KeyRef) -> Self {
        Self {
            generator,
            additional: None,
        }
    }

    /// Two keys that are independent of each other.
    ///
    /// # Errors
    /// [`UnfitAdditional`].
    pub(super) fn with_additional(
        generator: KeyRef,
        additional: KeyRef,
    ) -> Result<Self, UnfitAdditional> {
        let same = match (generator.arn(), additional.arn()) {
            (Some(one), Some(other)) => one.is_replica_of(other),
            (None, None) => generator == additional,
            (Some(_), None) | (None, Some(_)) => return Err(UnfitAdditional::Elsewhere),
        };
        match same {
            true => Err(UnfitAdditional::Same),
            false => Ok(Self {
                generator,
                additional: Some(additional),
            }),
        }
    }

    /// The key that data keys are made with.
    pub fn generator(&self) -> &KeyRef {
        &self.generator
    }

    /// The key that wraps them as well.
    pub fn additional(&self) -> Option<&KeyRef> {
        self.additional.as_ref()
    }

    /// Both, the generator first.
    pub fn iter(&self) -> impl Iterator<Item = &KeyRef> {
        [&self.generator].into_iter().chain(&self.additional)
    }
}

/// A KMS key cannot be the additional key of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitAdditional {
    /// One of the two is a key of AWS KMS, and the other a local one.
    #[error("one of them is in AWS KMS and the other in a keyring")]
    Elsewhere,
    /// They are one key, or replicas of one.
    #[error("both are one key, or replicas of one: whoever loses one loses the other")]
    Same,
}
