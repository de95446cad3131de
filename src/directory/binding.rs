//! Which KMS keys wrap for a key, and which unwrap.

use crate::kms::KeyRef;
use crate::message::EncryptedDataKey;

/// The KMS keys of a key, at least one, all named differently. The position in the list is the version,
/// counted from 1; the last is primary and wraps, all of them unwrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    older: Box<[KeyRef]>,
    primary: KeyRef,
}

impl Binding {
    /// The keys of `list`, oldest first; none for an empty list.
    pub(super) fn new(mut list: Vec<KeyRef>) -> Option<Self> {
        let primary = list.pop()?;
        Some(Self {
            older: list.into(),
            primary,
        })
    }

    /// The key that wraps new data keys.
    pub fn primary(&self) -> &KeyRef {
        &self.primary
    }

    /// The version of the primary key, which is also how many there are.
    pub fn primary_version(&self) -> usize {
        self.older.len() + 1
    }

    /// The version of `key`, if it is one of these.
    pub fn version_of(&self, key: &KeyRef) -> Option<usize> {
        self.iter()
            .zip(1..)
            .find(|(one, _)| *one == key)
            .map(|(_, version)| version)
    }

    /// The key that `wrapped` says it was wrapped by, and its version: that very key, or else a
    /// replica of it.
    pub fn unwrapper(&self, wrapped: &EncryptedDataKey) -> Option<(usize, &KeyRef)> {
        let claimed = |named: bool| {
            let very = |key: &KeyRef| !named || key.is_named_by(wrapped);
            let mut versions = (1..).zip(self.iter());
            versions.find(|(_, key)| key.claims(wrapped) && very(key))
        };
        claimed(true).or_else(|| claimed(false))
    }

    /// All keys, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &KeyRef> {
        self.older.iter().chain([&self.primary])
    }
}
