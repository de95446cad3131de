//! Whether a caller may do something with a key, and with which encryption context. The only
//! place where a [`Permit`] is made.
//!
//! Authorization comes before every other check, so that a caller without rights learns nothing:
//! unknown and forbidden keys end in the same [`Denied`] by the same path.

mod action;
mod refused;

use std::sync::Arc;

use crate::directory::Clash;
use crate::directory::Directory;
use crate::directory::Key;
use crate::directory::Role;
use crate::directory::Standing;
use crate::grants::Backing;
use crate::grants::Basis;
use crate::grants::Found;
use crate::grants::Operation;
use crate::grants::Use;
use crate::identity::Caller;
use crate::identity::Rules;
use crate::message::EncryptionContext;
use crate::message::context;
use crate::name::KeyId;
use crate::name::KeyName;
use crate::name::TenantId;

pub use action::Action;
pub use action::Direction;
pub use refused::Denied;
pub use refused::InvalidContext;
pub use refused::Mismatch;
pub use refused::Refused;

/// What is configured at one moment: the tenants, and the identity rules that fit them. A reload
/// of either makes a new one; a [`Caller`] of older rules is to be mapped anew.
#[derive(Clone, Debug)]
pub struct Policy {
    directory: Arc<Directory>,
    rules: Arc<Rules>,
}

impl Policy {
    /// The policy of `directory` for callers mapped by `rules`.
    ///
    /// # Errors
    /// [`Clash`] when both would set a pair of some encryption context.
    pub fn new(directory: Arc<Directory>, rules: Arc<Rules>) -> Result<Self, Clash> {
        directory.check_rules(&rules)?;
        Ok(Self { directory, rules })
    }

    /// The tenants and keys.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// The identity rules.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Whether `caller` may seal under the key `name`, adding the pairs `own` to the context.
    ///
    /// The context is the tenant's and key's own pairs, the tenant's fixed pairs, the caller's
    /// captures and `own`. The key's policy is asked first; what it does not allow, a grant of
    /// `grants` may.
    ///
    /// # Errors
    /// [`Refused::Denied`], also for an `action` that does not seal, or [`Refused::OutOfTouch`];
    /// then [`Refused::Context`]. Never [`Refused::Mismatch`].
    pub fn authorize_seal(
        &self,
        caller: &Caller,
        action: Action,
        name: &KeyName,
        own: &[(String, String)],
        grants: Backing<'_>,
    ) -> Result<Permit, Refused> {
        let (key, rule) = self.allow(caller, action, Direction::Seal, name, grants, |key| {
            sealing_context(key, caller, own)
        })?;
        check_standing(&key)?;
        self.check_own(&key, own)?;
        Ok(Permit {
            context: seal_context(&key, caller, own)?,
            key,
            action,
            rule,
        })
    }

    /// Whether `caller` may open a message whose header holds the context `header`, under the key
    /// `name` or else the key that the header names, when the request names the pairs `own`.
    ///
    /// After authorization the header must hold exactly: the pairs of tenant and key; the
    /// tenant's fixed pairs; under each name that identity rules set what the caller itself
    /// captured, be it nothing, unless the key shares that name; and `own`.
    ///
    /// # Errors
    /// [`Refused::Mismatch`] when no `name` is given and the header names no key, then
    /// [`Refused::Denied`], also for an `action` that does not open, or [`Refused::OutOfTouch`];
    /// then [`Refused::Context`] for pairs in `own` that no caller may name; then
    /// [`Refused::Mismatch`] when the header is another one.
    pub fn authorize_open(
        &self,
        caller: &Caller,
        action: Action,
        name: Option<&KeyName>,
        header: &EncryptionContext,
        own: &[(String, String)],
        grants: Backing<'_>,
    ) -> Result<Permit, Refused> {
        let named = key_named(header);
        let name = name.or(named.as_ref()).ok_or(Mismatch::NoKey)?;
        let (key, rule) = self.allow(caller, action, Direction::Open, name, grants, |_| {
            header.pairs()
        })?;
        check_standing(&key)?;
        self.check_own(&key, own)?;
        let checked = match named.as_ref() == Some(key.name()) {
            true => self.check_header(&key, caller, header, own),
            false => Err(Mismatch::Key),
        };
        if let Err(mismatch) = checked {
            // Pairs that a header holds are sound; of others the caller is told what they are not.
            EncryptionContext::new(own.iter().map(text)).map_err(|error| unfit(own, error))?;
            return Err(mismatch.into());
        }
        Ok(Permit {
            context: header.clone(),
            key,
            action,
            rule,
        })
    }

    /// The key `name`, if `caller` holds any role on it or a grant of `grants` shows it, and which.
    /// Conditions and constraints bind the use of a key and not the sight of it.
    ///
    /// # Errors
    /// [`Refused::Denied`] or [`Refused::OutOfTouch`].
    pub fn authorize_describe(
        &self,
        caller: &Caller,
        name: &KeyName,
        grants: Backing<'_>,
    ) -> Result<(&Arc<Key>, Rule), Refused> {
        let key = self.directory.key(name).ok_or_else(|| unknown(grants))?;
        if let Some(role) = role_of(caller, key) {
            return Ok((key, Rule::Policy(role)));
        }
        let wanted = Use::somewhere(key, caller.principal(), Operation::DescribeKey);
        Ok((key, granted(&wanted, grants)?.ok_or(Denied::NoStatement)?))
    }

    /// The key `name`, and whether `caller` manages it.
    ///
    /// # Errors
    /// [`Refused::Denied`] or [`Refused::OutOfTouch`] where there is no such key.
    pub fn manages(
        &self,
        caller: &Caller,
        name: &KeyName,
        grants: Backing<'_>,
    ) -> Result<(&Arc<Key>, Manages), Refused> {
        let key = self.directory.key(name).ok_or_else(|| unknown(grants))?;
        let mut administrators = key.policy().statements(Role::Administrator).iter();
        let named = caller.tenant() == key.tenant().id()
            && administrators.any(|one| one.principal().matches(caller.principal()));
        Ok((key, if named { Manages::Yes } else { Manages::No }))
    }

    /// The keys of `tenant` on which `caller` holds any role, ordered by id, with the first such
    /// role.
    pub fn visible_keys(
        &self,
        caller: &Caller,
        tenant: &TenantId,
    ) -> impl Iterator<Item = (&Arc<Key>, Role)> {
        let keys = self.directory.keys(tenant).iter();
        keys.filter_map(|key| Some((key, role_of(caller, key)?)))
    }

    /// The key, and what allows `action` with the context `pairs`: a list in its policy, or a grant.
    fn allow<'a, P: Iterator<Item = (&'a str, &'a str)>>(
        &'a self,
        caller: &'a Caller,
        action: Action,
        direction: Direction,
        name: &KeyName,
        grants: Backing<'_>,
        pairs: impl Fn(&'a Key) -> P,
    ) -> Result<(Arc<Key>, Rule), Refused> {
        let Some(key) = self.directory.key(name) else {
            // Where it can't be said of a key that exists, it is not said of one that does not.
            return Err(unknown(grants));
        };
        let mut denied = Denied::NoStatement;
        for role in roles(caller, key) {
            if action.direction() != direction || !allows(*role, direction) {
                continue;
            }
            for statement in key.policy().statements(*role) {
                if !statement.principal().matches(caller.principal()) {
                    continue;
                }
                let mut condition = statement.condition();
                if condition.all(|wanted| pairs(key).any(|pair| pair == wanted)) {
                    return Ok((key.clone(), Rule::Policy(*role)));
                }
                denied = Denied::Condition;
            }
        }
        if action.direction() != direction {
            return Err(denied.into());
        }
        let operation = action.into();
        let wanted = Use::new(key, caller.principal(), operation, pairs(key));
        if let Some(rule) = granted(&wanted, grants)? {
            return Ok((key.clone(), rule));
        }
        let somewhere = Use::somewhere(key, caller.principal(), operation);
        if granted(&somewhere, grants)?.is_some() {
            denied = Denied::Condition;
        }
        Err(denied.into())
    }

    /// Whether a caller may set the pairs `own` itself. Case does not count: a name that looks
    /// like another's is as bad as that name.
    fn check_own(&self, key: &Key, own: &[(String, String)]) -> Result<(), InvalidContext> {
        for (name, _) in own {
            let alike = |other: &str| other.eq_ignore_ascii_case(name);
            if context::is_reserved(name) {
                return Err(InvalidContext::Reserved { name: name.clone() });
            }
            if key.tenant().context().any(|(fixed, _)| alike(fixed)) {
                return Err(InvalidContext::Fixed { name: name.clone() });
            }
            if self.rules.captured_names().any(alike) {
                return Err(InvalidContext::Captured { name: name.clone() });
            }
        }
        Ok(())
    }

    /// Whether `header`, which names `key`, is what `caller` says with `own`; message format,
    /// section 4.2.
    fn check_header(
        &self,
        key: &Key,
        caller: &Caller,
        header: &EncryptionContext,
        own: &[(String, String)],
    ) -> Result<(), Mismatch> {
        let fixed = || key.tenant().context();
        if fixed().any(|(name, value)| header.value(name) != Some(value)) {
            return Err(Mismatch::Fixed);
        }
        let differs = |name: &str| header.value(name) != captured(caller, name);
        let mut captures = self.rules.captured_names();
        if captures.any(|name| !key.shares(name) && differs(name)) {
            return Err(Mismatch::Captured);
        }
        let mut left = own.len();
        for (name, value) in header.pairs() {
            let ours = [context::TENANT, context::KEY].contains(&name)
                || fixed().any(|(fixed, _)| fixed == name)
                || self.rules.captured_names().any(|captured| captured == name);
            if ours {
                continue;
            }
            if !own.iter().any(|(n, v)| n == name && v == value) {
                return Err(Mismatch::Own);
            }
            left = left.saturating_sub(1);
        }
        match left {
            0 => Ok(()),
            _ => Err(Mismatch::Own),
        }
    }
}

/// Leave for one action with one key and one encryption context. Made here alone and good for one
/// call: it cannot be copied, so it is not kept.
pub struct Permit {
    key: Arc<Key>,
    action: Action,
    context: EncryptionContext,
    rule: Rule,
}

/// Whether somebody manages a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manages {
    /// Not by the key's policy.
    No,
    /// As one of its administrators.
    Yes,
}

/// What allows something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A grant.
    Grant(Basis),
    /// The list of the key policy that gives this role.
    Policy(Role),
}

impl Rule {
    /// A stable name, for audit records: the list's own, or `grant`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Grant(_) => "grant",
            Self::Policy(role) => role.label(),
        }
    }
}

impl Permit {
    /// Whose key it is: the tenant in all that follows, whoever calls.
    pub fn tenant(&self) -> &TenantId {
        self.key.tenant().id()
    }

    /// The key.
    pub fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// The action.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The full encryption context: what KMS gets and what stands in the message header.
    pub fn context(&self) -> &EncryptionContext {
        &self.context
    }

    /// What allowed it.
    pub fn rule(&self) -> Rule {
        self.rule
    }
}

/// The key that a message names in its header, unproven: good for a look-up and for the audit
/// record.
pub fn key_named(header: &EncryptionContext) -> Option<KeyName> {
    let tenant: TenantId = header.value(context::TENANT)?.parse().ok()?;
    let key: KeyId = header.value(context::KEY)?.parse().ok()?;
    Some(KeyName { tenant, key })
}

/// The context that `caller` seals under `key`, adding the pairs `own`. Whether it may is not looked
/// at.
///
/// # Errors
/// [`InvalidContext::Limits`].
pub fn seal_context(
    key: &Key,
    caller: &Caller,
    own: &[(String, String)],
) -> Result<EncryptionContext, InvalidContext> {
    let pairs = sealing_context(key, caller, own);
    EncryptionContext::new(pairs).map_err(|error| unfit(own, error))
}

/// The pairs of a context to seal under, before anybody has looked at `own`.
fn sealing_context<'a>(
    key: &'a Key,
    caller: &'a Caller,
    own: &'a [(String, String)],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    key.context()
        .chain(caller.captures().iter().map(text))
        .chain(own.iter().map(text))
}

fn check_standing(key: &Key) -> Result<(), Refused> {
    match key.tenant().standing() {
        Standing::Active => Ok(()),
        Standing::Suspended => Err(Refused::Suspended),
    }
}

/// The grant that allows what the key's policy does not, if there is one.
fn granted(wanted: &Use<'_>, grants: Backing<'_>) -> Result<Option<Rule>, Refused> {
    match grants.find(wanted) {
        Found::Allow(basis) => Ok(Some(Rule::Grant(basis))),
        Found::Nothing => Ok(None),
        Found::OutOfTouch => Err(Refused::OutOfTouch),
    }
}

/// Why nobody may use a key that is not there.
fn unknown(grants: Backing<'_>) -> Refused {
    match grants.is_blind() {
        true => Refused::OutOfTouch,
        false => Denied::UnknownKey.into(),
    }
}

fn text((name, value): &(String, String)) -> (&str, &str) {
    (name, value)
}

/// The roles that `caller` can have on `key` at all: its tenant decides.
fn roles(caller: &Caller, key: &Key) -> &'static [Role] {
    match caller.tenant() == key.tenant().id() {
        true => &[
            Role::User,
            Role::EncryptOnly,
            Role::DecryptOnly,
            Role::Administrator,
        ],
        false => &[Role::External],
    }
}

/// Whether `role` may use a key in `direction`.
fn allows(role: Role, direction: Direction) -> bool {
    match role {
        Role::Administrator => false,
        Role::DecryptOnly => direction == Direction::Open,
        Role::EncryptOnly => direction == Direction::Seal,
        Role::External | Role::User => true,
    }
}

/// The first role that `caller` has on `key`, whatever the conditions.
fn role_of(caller: &Caller, key: &Key) -> Option<Role> {
    let named = |role: &&Role| {
        let mut statements = key.policy().statements(**role).iter();
        statements.any(|statement| statement.principal().matches(caller.principal()))
    };
    roles(caller, key).iter().find(named).copied()
}

fn captured<'a>(caller: &'a Caller, name: &str) -> Option<&'a str> {
    let mut captures = caller.captures().iter();
    captures
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

/// Finds the pair of `own` that `error` is about, if it is about one alone.
fn unfit(own: &[(String, String)], error: context::Error) -> InvalidContext {
    let alone = |pair: &&(String, String)| EncryptionContext::new([(*pair).clone()]).is_err();
    let name = match &error {
        context::Error::Duplicate(name) => Some(name.clone()),
        context::Error::Empty | context::Error::Long { .. } => {
            own.iter().find(alone).map(|(name, _)| name.clone())
        }
        context::Error::Large(_) | context::Error::Many(_) => None,
    };
    InvalidContext::Limits { name, error }
}

#[cfg(test)]
mod tests;
