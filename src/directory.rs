//! Tenants and their keys: which KMS keys wrap for a key, whom its policy names, how long and
//! for how much its data keys may serve. An immutable snapshot that a reload replaces whole.
//!
//! Says what is configured; whether a caller may do something is the policy room's to decide.

mod binding;
mod file;
mod key;
mod row;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

pub use binding::Binding;
pub use binding::KmsKeys;
pub use binding::UnfitAdditional;
pub use binding::Unwrapper;
pub use file::Fault;
pub use file::staleness;
pub use key::Key;
pub use key::KeyPolicy;
pub use key::Limits;
pub use key::Owner;
pub use key::Revocation;
pub use key::Role;
pub use key::Standing;
pub use key::Statement;
pub use key::Tenant;
pub use row::Content;
pub use row::Row;
pub use row::Unusable;

use crate::identity::Rules;
use crate::message::context;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::strict;

/// All tenants and keys of one moment.
#[derive(Debug, Default)]
pub struct Directory {
    homes: HashMap<TenantId, Arc<Home>>,
    generation: u64,
}

/// What a tenants file says, tenant by tenant: each a tenants file of its own, in one form whatever
/// the way it was written.
pub type Documents = BTreeMap<TenantId, String>;

/// A tenant with its keys, ordered by their ids.
#[derive(Clone, Debug)]
struct Home {
    tenant: Arc<Tenant>,
    keys: Box<[Arc<Key>]>,
}

impl Home {
    /// Adds to the tenant what no file says.
    fn mark(&mut self, standing: Standing, purged: u64) {
        let tenant = Arc::make_mut(&mut self.tenant);
        tenant.standing = standing;
        tenant.purged = purged;
        for key in &mut self.keys {
            Arc::make_mut(key).tenant = Arc::clone(&self.tenant);
        }
    }
}

impl Directory {
    /// Reads the tenants file at `path`. See [`Directory::parse`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::parse(&read(path)?, path)
    }

    /// Reads the tenants file at `path`, for others to be told of it: also what it says of each
    /// tenant.
    ///
    /// # Errors
    /// [`Error`], as [`Directory::parse`].
    pub fn load_with_documents(path: &Path) -> Result<(Self, Documents), Error> {
        Self::parse_with_documents(&read(path)?, path)
    }

    /// [`Directory::load_with_documents`] of `text`; `path` is for errors alone.
    ///
    /// # Errors
    /// [`Error`], as [`Directory::parse`].
    pub fn parse_with_documents(text: &str, path: &Path) -> Result<(Self, Documents), Error> {
        let (homes, documents) = file::parse_with_documents(text, path)?;
        Ok((Self::first(homes), documents))
    }

    /// Reads `text`, a tenants file; `path` is for errors alone.
    ///
    /// All keys get the same generation. A directory that takes the place of another one must go
    /// through [`Directory::succeed`].
    ///
    /// # Errors
    /// [`Error`] at the first thing that is wrong, with its place. Nothing is clamped or skipped.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        Ok(Self::first(file::parse(text, path)?))
    }

    fn first(homes: HashMap<TenantId, Arc<Home>>) -> Self {
        Self {
            homes,
            generation: FIRST_GENERATION,
        }
    }

    /// The successor of this directory after changes of the store: a tenant is from now on what its
    /// row among `rows` says. One whose row is unusable is not there, and is named with the reason.
    #[must_use]
    pub fn with(&self, rows: impl IntoIterator<Item = Row>) -> (Self, Vec<(String, Unusable)>) {
        let mut homes = self.homes.clone();
        let mut unusable = Vec::new();
        let mut reader = row::Reader::default();
        for row in rows {
            let Row {
                id,
                content,
                standing,
                purged,
            } = row;
            let Ok(tenant) = id.parse::<TenantId>() else {
                unusable.push((id, Unusable::Id));
                continue;
            };
            match reader.home(&tenant, content, standing, purged) {
                Ok(Some(home)) => drop(homes.insert(tenant, home)),
                Ok(None) => drop(homes.remove(&tenant)),
                Err(error) => {
                    homes.remove(&tenant);
                    unusable.push((id, error));
                }
            }
        }
        (Self::first(homes).succeed(self), unusable)
    }

    /// This directory without those of its tenants that are `unfit`, which come back with what they
    /// are unfit for.
    #[must_use]
    pub fn without<E>(
        mut self,
        mut unfit: impl FnMut(&Tenant, &[Arc<Key>]) -> Option<E>,
    ) -> (Self, Vec<(TenantId, E)>) {
        let unfit =
            |home: &Arc<Home>| Some((home.tenant.id.clone(), unfit(&home.tenant, &home.keys)?));
        let unfit: Vec<_> = self.homes.values().filter_map(unfit).collect();
        for (tenant, _) in &unfit {
            self.homes.remove(tenant);
        }
        (self, unfit)
    }

    /// This directory as the successor of `previous`: a key keeps the generation it had if its
    /// KMS binding, its limits and its tenant's standing are the same and its data keys were not
    /// dropped meanwhile, else it gets one that no key ever had in the line of directories from
    /// which `previous` descends.
    #[must_use]
    pub fn succeed(mut self, previous: &Self) -> Self {
        self.generation = previous.generation + 1;
        for (tenant, home) in &mut self.homes {
            let known = previous.homes.get(tenant);
            if known.is_some_and(|known| Arc::ptr_eq(known, home)) {
                continue;
            }
            for key in &mut Arc::make_mut(home).keys {
                let generation = match previous.key(key.name()) {
                    Some(old) if old.caches_as(key) => old.generation(),
                    _ => self.generation,
                };
                Arc::make_mut(key).set_generation(generation);
            }
        }
        self
    }

    /// Checks that no pair of the encryption context has two sources: identity rules set no
    /// reserved name, and no name that is a fixed pair of any tenant, whatever its case.
    ///
    /// # Errors
    /// [`Clash`].
    pub fn check_rules(&self, rules: &Rules) -> Result<(), Clash> {
        if let Some(name) = rules
            .captured_names()
            .find(|name| context::is_reserved(name))
        {
            return Err(Clash::Reserved {
                name: name.to_owned(),
            });
        }
        let clash = self.tenants().find_map(|tenant| Clash::of(tenant, rules));
        clash.map_or(Ok(()), Err)
    }

    /// The key of this name.
    pub fn key(&self, name: &KeyName) -> Option<&Arc<Key>> {
        let keys = &self.homes.get(&name.tenant)?.keys;
        let position = keys
            .binary_search_by(|key| key.name().key.cmp(&name.key))
            .ok()?;
        keys.get(position)
    }

    /// The tenant of this id.
    pub fn tenant(&self, id: &TenantId) -> Option<&Arc<Tenant>> {
        self.homes.get(id).map(|home| &home.tenant)
    }

    /// The keys of a tenant, ordered by id; none for an unknown tenant.
    pub fn keys(&self, tenant: &TenantId) -> &[Arc<Key>] {
        self.homes.get(tenant).map_or(&[], |home| &home.keys)
    }

    /// All tenants, in no order.
    pub fn tenants(&self) -> impl ExactSizeIterator<Item = &Arc<Tenant>> {
        self.homes.values().map(|home| &home.tenant)
    }

    /// Whether it was read from somewhere: else it stands for tenants that nobody has told of yet.
    pub fn is_known(&self) -> bool {
        self.generation > 0
    }

    /// How many directories there have been in this line, this one included.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// The tenants file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key is wrong.
    #[error("{}:{line}:{column}: tenant {tenant}, key {key}: {fault}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Where the key's id stands: line and column, counted from 1.
        line: usize,
        /// The column in characters.
        column: usize,
        /// The tenant's id.
        tenant: TenantId,
        /// The key's id as written.
        key: String,
        /// What is wrong.
        fault: Box<Fault>,
    },
    /// The file could not be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is no TOML, or not what a tenants file looks like.
    #[error("{}: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: strict::Error,
    },
    /// A tenant is wrong.
    #[error("{}:{line}:{column}: tenant {tenant}: {fault}", path.display())]
    Tenant {
        /// The file.
        path: PathBuf,
        /// Where the tenant's id stands: line and column, counted from 1.
        line: usize,
        /// The column in characters.
        column: usize,
        /// The tenant's id as written.
        tenant: String,
        /// What is wrong.
        fault: Box<Fault>,
    },
}

/// The identity rules and the tenants would both set a pair of the encryption context.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    /// A rule sets a name that is a fixed pair of a tenant.
    #[error("identity rules set context name {name}, which is a fixed pair of tenant {tenant}")]
    Fixed {
        /// The name, as the tenant has it.
        name: String,
        /// The tenant.
        tenant: TenantId,
    },
    /// A rule sets a name that is ours.
    #[error("identity rules set context name {name}, which is reserved")]
    Reserved {
        /// The name.
        name: String,
    },
}

impl Clash {
    /// How `tenant` contradicts `rules`, if it does.
    pub fn of(tenant: &Tenant, rules: &Rules) -> Option<Self> {
        let sets = |name: &str| {
            let mut captured = rules.captured_names();
            captured.any(|one| one.eq_ignore_ascii_case(name))
        };
        let (name, _) = tenant.context().find(|(name, _)| sets(name))?;
        Some(Self::Fixed {
            name: name.to_owned(),
            tenant: tenant.id().clone(),
        })
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::Read {
        path: path.to_owned(),
        error,
    })
}

/// The generation of the keys of a first directory.
const FIRST_GENERATION: u64 = 1;

#[cfg(test)]
mod tests;
