//! Items that are equal in all that a permit depends on, put together.

use std::collections::HashMap;
use std::sync::Arc;

use crate::broker::Binding;
use crate::broker::Pairs;
use crate::broker::batch::Done;
use crate::datakeys;
use crate::datakeys::Version;
use crate::error::Error;
use crate::policy::Permit;

/// Items under one permit.
pub(super) struct Group {
    pub(super) permit: Permit,
    /// The key's full name.
    pub(super) key: Arc<str>,
    /// Which items, at least one, in order.
    pub(super) items: Vec<usize>,
    /// Their sizes, in bytes.
    pub(super) sizes: Vec<u64>,
}

impl Group {
    pub(super) fn done<T>(&self, version: &Arc<Version>, content: T) -> Done<T> {
        Done {
            name: Arc::clone(&self.key),
            version: Arc::clone(version),
            content,
        }
    }

    pub(super) fn failed(&self, error: &datakeys::Error) -> Error {
        Error::of_data_key(error.clone(), self.permit.key().owner())
    }
}

/// What a permit depends on, within one call.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Alike<'i> {
    name: &'i str,
    own: &'i Pairs,
    tokens: &'i [String],
    /// Of a message to open; nothing to seal.
    claims: &'i [u8],
}

impl<'i> Alike<'i> {
    pub(super) fn of(binding: &'i Binding, claims: &'i [u8]) -> Self {
        Self {
            name: &binding.name,
            own: &binding.context,
            tokens: &binding.tokens,
            claims,
        }
    }
}

/// The groups so far.
#[derive(Default)]
pub(super) struct Groups<'i> {
    pub(super) all: Vec<Group>,
    known: HashMap<Alike<'i>, usize>,
    /// Most items are like the one before.
    latest: Option<(Alike<'i>, usize)>,
}

impl<'i> Groups<'i> {
    /// Puts the item `place` of `length` bytes into the group of those like it, or into one of its
    /// own with a permit from `authorize`.
    pub(super) fn admit(
        &mut self,
        place: usize,
        length: usize,
        alike: Alike<'i>,
        authorize: impl FnOnce() -> Result<Permit, Error>,
    ) -> Result<(), Error> {
        let size = u64::try_from(length).map_err(|_| Error::Bug("a length over u64".into()))?;
        let known = match self.latest {
            Some((latest, group)) if latest == alike => Some(group),
            Some(_) | None => self.known.get(&alike).copied(),
        };
        let group = match known {
            Some(group) => group,
            None => {
                let permit = authorize()?;
                self.all.push(Group {
                    key: permit.key().name().to_string().into(),
                    permit,
                    items: Vec::new(),
                    sizes: Vec::new(),
                });
                let group = self.all.len() - 1;
                self.known.insert(alike, group);
                group
            }
        };
        self.latest = Some((alike, group));
        if let Some(group) = self.all.get_mut(group) {
            group.items.push(place);
            group.sizes.push(size);
        }
        Ok(())
    }
}
