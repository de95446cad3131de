//! The tenants file: what it looks like, and what must hold for it to be used.

mod fault;
mod raw;
mod values;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use jiff::SignedDuration;
use toml::Spanned;

pub use fault::Fault;
pub use values::staleness;

use self::values::audited;
use self::values::binding;
use self::values::check_context;
use self::values::grant_ceiling;
use self::values::limits;
use super::Documents;
use super::Error;
use super::Home;
use super::key::Key;
use super::key::KeyPolicy;
use super::key::Pairs;
use super::key::Revocation;
use super::key::Role;
use super::key::Standing;
use super::key::Statement;
use super::key::Tenant;
use crate::crypto::digest::sha256;
use crate::identity::PrincipalPattern;
use crate::message::EncryptionContext;
use crate::message::context;
use crate::name::KeyId;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::quota::Rate;
use crate::strict;

/// The tenants of `text`, each with its keys in order.
pub(super) fn parse(text: &str, path: &Path) -> Result<Homes, Error> {
    Shared::default().homes(text, path)
}

/// The same, and what `text` says of each.
pub(super) fn parse_with_documents(text: &str, path: &Path) -> Result<(Homes, Documents), Error> {
    let mut documents = Documents::new();
    let homes = Shared::default().homes_seen(text, path, |raw| {
        // One with a malformed id makes the whole file unusable.
        if let Ok(id) = raw.id.get_ref().parse() {
            documents.insert(id, raw.document());
        }
    })?;
    Ok((homes, documents))
}

/// Tenants by their ids.
pub(super) type Homes = HashMap<TenantId, Arc<Home>>;

/// Cuts `text` before each line that begins with `[[tenant]]`, with the offset of each piece, so
/// that a hundred thousand tenants need not stand in memory as TOML all at once.
///
/// If all pieces are TOML, they mean what `text` means: a cut within a value of several lines
/// would leave the piece before it incomplete. If something else than comments stands before the
/// first tenant, all of `text` is one piece.
fn pieces(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let header = |line: &str| line.trim_start().starts_with("[[tenant]]");
    let mut rest = (0, text);
    let mut preamble = text.lines().take_while(|line| !header(line));
    let cuts = preamble.all(|line| line.is_empty() || line.starts_with('#'));
    std::iter::from_fn(move || {
        let (offset, text) = rest;
        let mut lines = text.split_inclusive('\n');
        let first = lines.next()?.len();
        let others = lines.take_while(|line| !(cuts && header(line)));
        let length = first + others.map(str::len).sum::<usize>();
        let (piece, after) = text.split_at(length);
        rest = (offset + length, after);
        Some((offset, piece))
    })
}

/// Equal texts, kept once: with a hundred thousand tenants most names, values and key ids are the
/// same few.
#[derive(Default)]
pub(super) struct Shared {
    texts: HashSet<Arc<str>>,
    ids: HashMap<String, KeyId>,
}

impl Shared {
    /// The tenants of `text`; `path` is for errors.
    pub(super) fn homes(&mut self, text: &str, path: &Path) -> Result<Homes, Error> {
        self.homes_seen(text, path, |_| ())
    }

    /// The same. Each is seen by `see` before it is checked, perhaps twice.
    fn homes_seen(
        &mut self,
        text: &str,
        path: &Path,
        mut see: impl FnMut(&raw::Tenant),
    ) -> Result<Homes, Error> {
        match Reader::new(text, path, self).homes(pieces(text), &mut see) {
            // The text as a whole decides, and knows the place of what is wrong.
            Err(Error::Syntax { .. }) => Reader::new(text, path, self).homes([(0, text)], &mut see),
            result => result,
        }
    }
}

/// Turns what a file says into what holds.
struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
    /// Where in `text` the piece begins that is being read.
    offset: usize,
    shared: &'a mut Shared,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, path: &'a Path, shared: &'a mut Shared) -> Self {
        Self {
            text,
            path,
            offset: 0,
            shared,
        }
    }

    fn homes<'p>(
        mut self,
        pieces: impl IntoIterator<Item = (usize, &'p str)>,
        see: &mut impl FnMut(&raw::Tenant),
    ) -> Result<Homes, Error> {
        let mut homes = HashMap::new();
        for (offset, piece) in pieces {
            self.offset = offset;
            let file: raw::File = strict::parse(piece).map_err(|error| Error::Syntax {
                path: self.path.to_owned(),
                error,
            })?;
            for raw in file.tenant {
                see(&raw);
                let id = raw.id.clone();
                let home = self.home(raw)?;
                if homes.insert(home.tenant.id.clone(), home.into()).is_some() {
                    return Err(self.tenant_error(&id, Fault::RepeatedId));
                }
            }
        }
        homes.shrink_to_fit();
        Ok(homes)
    }

    fn home(&mut self, raw: raw::Tenant) -> Result<Home, Error> {
        let raw::Tenant {
            id,
            weight,
            context,
            audit_context,
            rate,
            max_staleness,
            revocation,
            key,
        } = raw;
        let tenant = self
            .tenant(&id, weight, context, rate, max_staleness)
            .and_then(|tenant| {
                let audit_context = audited(audit_context)?;
                Ok(Tenant {
                    audit_context,
                    revocation,
                    ..tenant
                })
            })
            .map_err(|fault| self.tenant_error(&id, fault))?;
        let tenant = Arc::new(tenant);
        let mut keys = BTreeMap::new();
        for raw in key {
            let id = raw.id.clone();
            let key = self.key(raw, &tenant).and_then(|key| {
                match keys.insert(key.name.key.clone(), Arc::new(key)) {
                    None => Ok(()),
                    Some(_) => Err(Fault::RepeatedId),
                }
            });
            key.map_err(|fault| self.key_error(&tenant, &id, fault))?;
        }
        Ok(Home {
            tenant,
            keys: keys.into_values().collect(),
        })
    }

    fn tenant(
        &mut self,
        id: &Spanned<String>,
        weight: u32,
        context: BTreeMap<String, String>,
        rate: Option<u32>,
        max_staleness: Option<SignedDuration>,
    ) -> Result<Tenant, Fault> {
        let id = id.get_ref().parse().map_err(Fault::Id)?;
        if let Some(name) = context.keys().find(|name| context::is_reserved(name)) {
            return Err(Fault::Reserved(name.clone()));
        }
        EncryptionContext::new(context.clone()).map_err(|error| Fault::Context { error })?;
        if !(1..=Tenant::MAX_WEIGHT).contains(&weight) {
            return Err(Fault::Weight { weight });
        }
        Ok(Tenant {
            id,
            weight,
            context: self.pairs(context),
            standing: Standing::Active,
            purged: 0,
            max_staleness: match max_staleness {
                Some(span) => Some(staleness(span).ok_or(Fault::Staleness { span })?),
                None => None,
            },
            audit_context: Box::default(),
            rate: match rate {
                Some(rate) => Some(Rate::new(rate).ok_or(Fault::Rate(rate))?),
                None => None,
            },
            revocation: Revocation::default(),
        })
    }

    fn key(&mut self, raw: raw::Key, tenant: &Arc<Tenant>) -> Result<Key, Fault> {
        let raw::Key {
            id,
            kms,
            owner,
            administrators,
            users,
            encrypt_only,
            decrypt_only,
            external_users,
            shared_captures,
            cache,
            grants,
        } = raw;
        let name = KeyName {
            tenant: tenant.id.clone(),
            key: self.id(id.into_inner())?,
        };
        check_context(tenant, &name)?;
        Ok(Key {
            digests: [name.tenant.as_str(), name.key.as_str()].map(|id| sha256(id.as_bytes())),
            name,
            tenant: tenant.clone(),
            kms: binding(kms)?,
            owner,
            generation: super::FIRST_GENERATION,
            limits: limits(cache)?,
            grant_ceiling: grant_ceiling(grants.max_lifetime)?,
            policy: KeyPolicy {
                administrators: self.statements(Role::Administrator, administrators)?,
                users: self.statements(Role::User, users)?,
                encrypt_only: self.statements(Role::EncryptOnly, encrypt_only)?,
                decrypt_only: self.statements(Role::DecryptOnly, decrypt_only)?,
                external_users: self.statements(Role::External, external_users)?,
            },
            shared_captures: shared_captures
                .into_iter()
                .map(|name| self.shared(name))
                .collect(),
        })
    }

    fn statements(
        &mut self,
        role: Role,
        list: Vec<raw::Statement>,
    ) -> Result<Box<[Statement]>, Fault> {
        let statement = |raw: raw::Statement| {
            let principal: PrincipalPattern =
                raw.principal.parse().map_err(|error| Fault::Principal {
                    list: role.label(),
                    value: raw.principal,
                    error,
                })?;
            EncryptionContext::new(raw.context.clone())
                .map_err(|error| Fault::Context { error })?;
            Ok(Statement {
                principal,
                condition: self.pairs(raw.context),
            })
        };
        list.into_iter().map(statement).collect()
    }

    fn pairs(&mut self, pairs: BTreeMap<String, String>) -> Pairs {
        pairs
            .into_iter()
            .map(|(name, value)| (self.shared(name), self.shared(value)))
            .collect()
    }

    fn shared(&mut self, text: String) -> Arc<str> {
        match self.shared.texts.get(text.as_str()) {
            Some(known) => known.clone(),
            None => {
                let text: Arc<str> = text.into();
                self.shared.texts.insert(text.clone());
                text
            }
        }
    }

    fn id(&mut self, text: String) -> Result<KeyId, Fault> {
        match self.shared.ids.get(&text) {
            Some(known) => Ok(known.clone()),
            None => {
                let id: KeyId = text.parse().map_err(Fault::Id)?;
                self.shared.ids.insert(text, id.clone());
                Ok(id)
            }
        }
    }

    fn tenant_error(&self, id: &Spanned<String>, fault: Fault) -> Error {
        let (line, column) = strict::position(self.text, self.offset + id.span().start);
        Error::Tenant {
            path: self.path.to_owned(),
            line,
            column,
            tenant: id.get_ref().clone(),
            fault: fault.into(),
        }
    }

    fn key_error(&self, tenant: &Tenant, id: &Spanned<String>, fault: Fault) -> Error {
        let (line, column) = strict::position(self.text, self.offset + id.span().start);
        Error::Key {
            path: self.path.to_owned(),
            line,
            column,
            tenant: tenant.id.clone(),
            key: id.get_ref().clone(),
            fault: fault.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What was read, for comparison.
    fn shown(homes: Homes) -> BTreeMap<TenantId, String> {
        let show = |home: Arc<Home>| format!("{:?} {:?}", home.tenant, home.keys);
        homes
            .into_iter()
            .map(|(id, home)| (id, show(home)))
            .collect()
    }

    const LINES: [&str; 14] = [
        "[[tenant]]",
        "  [[tenant]] # another",
        "id = \"a\"",
        "id = 'b'",
        "context.x = \"\"\"",
        "\"\"\"",
        "context.y = '''",
        "'''",
        "[[tenant.key]]",
        "kms = [\"local:a\",",
        "]",
        "kms = \"local:b\"",
        "# comment",
        "tenant = [",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn pieces_mean_what_the_whole_means(
            lines in proptest::collection::vec(proptest::sample::select(LINES.as_slice()), 0..12),
        ) {
            let text = lines.join("\n");
            let read = |pieces: Vec<(usize, &str)>| {
                let mut shared = Shared::default();
                let reader = Reader::new(&text, Path::new("tenants.toml"), &mut shared);
                reader.homes(pieces, &mut |_| ())
            };
            let lengths: usize = pieces(&text).map(|(_, piece)| piece.len()).sum();
            prop_assert_eq!(lengths, text.len());
            if let Ok(homes) = read(pieces(&text).collect()) {
                let whole = read(vec![(0, text.as_str())]);
                prop_assert_eq!(shown(homes), shown(whole.unwrap()));
            }
        }
    }
}
