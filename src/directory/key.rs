//! What the directory knows of a tenant and of a key.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::directory::binding::Binding;
use crate::identity::PrincipalPattern;
use crate::kms::KeyRef;
use crate::kms::Reach;
use crate::message::context;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::quota::Rate;

/// The isolation boundary: an id, the pairs that stand in each of its encryption contexts, and its
/// weight beside others.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub(super) id: TenantId,
    pub(super) standing: Standing,
    pub(super) purged: u64,
    pub(super) max_staleness: Option<Duration>,
    pub(super) weight: u32,
    pub(super) context: Pairs,
    pub(super) audit_context: Box<[String]>,
    pub(super) rate: Option<Rate>,
    pub(super) revocation: Revocation,
}

/// How soon a grant that was ended allows nothing any more, on any replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Revocation {
    /// Within a second as a rule, and within five at most.
    #[default]
    Bounded,
    /// At once: each use asks the store.
    Strict,
}

impl Revocation {
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Tenant {
    /// The largest weight.
    pub const MAX_WEIGHT: u32 = 1000;

    /// The id.
    pub fn id(&self) -> &TenantId {
        &self.id
    }

    /// Its share of KMS calls where there are too few for all, as against other tenants: 1 to
    /// [`Tenant::MAX_WEIGHT`].
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The fixed pairs, ordered by name. No name is reserved or the name of an identity rule's
    /// pair, whatever its case.
    pub fn context(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.context.iter()
    }

    /// Whether it may do anything.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The number of the change that last dropped its data keys; 0 before the first.
    pub fn purged(&self) -> u64 {
        self.purged
    }

    /// How long what is known of it counts without word of the store, if that is not as long as for
    /// every tenant.
    pub fn max_staleness(&self) -> Option<Duration> {
        self.max_staleness
    }

    /// The names of context pairs whose values may stand in audit records.
    pub fn audit_context(&self) -> impl ExactSizeIterator<Item = &str> {
        self.audit_context.iter().map(String::as_str)
    }

    /// What it may spend on requests, if that is not what every tenant may.
    pub fn rate(&self) -> Option<Rate> {
        self.rate
    }

    /// How soon the end of a grant for one of its keys counts everywhere.
    pub fn revocation(&self) -> Revocation {
        self.revocation
    }
}

/// Whether a tenant may do anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// What key policies say.
    #[default]
    Active,
    /// Nothing: its callers are refused, and nobody may use its keys.
    Suspended,
}

/// A key of a tenant.
#[derive(Clone, Debug)]
pub struct Key {
    pub(super) name: KeyName,
    pub(super) digests: [[u8; 32]; 2],
    pub(super) tenant: Arc<Tenant>,
    pub(super) kms: Binding,
    pub(super) owner: Owner,
    pub(super) generation: u64,
    pub(super) limits: Limits,
    pub(super) grant_ceiling: Duration,
    pub(super) policy: KeyPolicy,
    pub(super) shared_captures: Box<[Arc<str>]>,
}

impl Key {
    /// How long any grant may live, renewals included.
    pub const LONGEST_GRANT: Duration = Duration::from_secs(12 * 3600);

    /// The full name.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// SHA-256 of the tenant's id and of the key's own, for identities of fixed-length parts.
    pub fn digests(&self) -> &[[u8; 32]; 2] {
        &self.digests
    }

    /// Whose key it is.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// The KMS keys that wrap for it.
    pub fn kms(&self) -> &Binding {
        &self.kms
    }

    /// The first of them that is out of `reach`.
    pub fn out_of(&self, reach: Reach) -> Option<&KeyRef> {
        self.kms.iter().find(|kms| !reach.includes(kms))
    }

    /// In whose AWS account those KMS keys are.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Whether data keys of `other`, the same key at another time, may serve for this one.
    pub(super) fn caches_as(&self, other: &Self) -> bool {
        let tenant = |key: &Self| (key.tenant.standing, key.tenant.purged);
        self.kms == other.kms && self.limits == other.limits && tenant(self) == tenant(other)
    }

    /// Changes whenever the binding, the limits or the tenant's standing do, and when its data keys
    /// are dropped, and never comes back to an older number: what was cached under another
    /// generation is not for this key.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How long and for how much one data key may serve.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The pairs that stand in each of its encryption contexts, whoever calls: tenant, key and
    /// the tenant's fixed pairs.
    pub fn context(&self) -> impl Iterator<Item = (&str, &str)> {
        [
            (context::TENANT, self.name.tenant.as_str()),
            (context::KEY, self.name.key.as_str()),
        ]
        .into_iter()
        .chain(self.tenant.context())
    }

    /// How long its grants may live, renewals included.
    pub fn grant_ceiling(&self) -> Duration {
        self.grant_ceiling
    }

    /// Who may do what with it.
    pub fn policy(&self) -> &KeyPolicy {
        &self.policy
    }

    /// Whether callers may open messages whatever they hold under `name`, a pair that identity
    /// rules set.
    pub fn shares(&self, name: &str) -> bool {
        self.shared_captures.iter().any(|shared| **shared == *name)
    }

    pub(super) fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }
}

/// In whose AWS account a KMS key is: decides whether its refusal is our fault or the tenant's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The operator's of this service.
    #[default]
    Operator,
    /// The tenant's own.
    Tenant,
}

/// The hard limits of one data key that seals; what opens is bound by age alone. None is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long it may serve.
    pub max_age: Duration,
    /// How many messages it may seal.
    pub max_messages: u64,
    /// How many bytes of plaintext it may seal.
    pub max_bytes: u64,
}

impl Limits {
    /// What a key may be configured to at most: an hour without asking KMS again is the longest
    /// revocation may take, 2^32 messages are the format's own bound, and bytes are counted in
    /// 63 bits everywhere.
    pub const CEILING: Self = Self {
        max_age: Duration::from_secs(3600),
        max_messages: 1 << 32,
        max_bytes: (1 << 63) - 1,
    };
}

impl Default for Limits {
    /// Five minutes, a million messages and 64 GiB: revocation shows soon, while a busy key
    /// still asks KMS only a few times an hour.
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(300),
            max_messages: 1 << 20,
            max_bytes: 1 << 36,
        }
    }
}

/// Who may do what with a key; nobody else may do anything. [`Role::External`] alone is for
/// callers of other tenants, all other roles are for the key's own tenant.
#[derive(Clone, Debug, Default)]
pub struct KeyPolicy {
    pub(super) administrators: Box<[Statement]>,
    pub(super) users: Box<[Statement]>,
    pub(super) encrypt_only: Box<[Statement]>,
    pub(super) decrypt_only: Box<[Statement]>,
    pub(super) external_users: Box<[Statement]>,
}

impl KeyPolicy {
    /// The statements that give `role`.
    pub fn statements(&self, role: Role) -> &[Statement] {
        match role {
            Role::Administrator => &self.administrators,
            Role::DecryptOnly => &self.decrypt_only,
            Role::EncryptOnly => &self.encrypt_only,
            Role::External => &self.external_users,
            Role::User => &self.users,
        }
    }
}

/// What a caller is to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Manages and may not use.
    Administrator,
    /// Opens.
    DecryptOnly,
    /// Seals.
    EncryptOnly,
    /// Of another tenant; seals and opens.
    External,
    /// Seals and opens.
    User,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Administrator,
        Self::DecryptOnly,
        Self::EncryptOnly,
        Self::External,
        Self::User,
    ];

    /// The name of the list in the tenants file.
    pub fn label(self) -> &'static str {
        match self {
            Self::Administrator => "administrators",
            Self::DecryptOnly => "decrypt_only",
            Self::EncryptOnly => "encrypt_only",
            Self::External => "external_users",
            Self::User => "users",
        }
    }
}

/// One line of a key policy: principals, and the pairs that must stand in the encryption context
/// when they use the key.
#[derive(Clone, Debug)]
pub struct Statement {
    pub(super) principal: PrincipalPattern,
    pub(super) condition: Pairs,
}

impl Statement {
    /// Who is meant.
    pub fn principal(&self) -> &PrincipalPattern {
        &self.principal
    }

    /// The pairs that must stand in the encryption context with these very values.
    pub fn condition(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.condition.iter()
    }
}

/// Names and values, ordered by name. Equal texts of a file are one allocation.
#[derive(Clone)]
pub(super) struct Pairs(Box<[(Arc<str>, Arc<str>)]>);

impl Pairs {
    fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl FromIterator<(Arc<str>, Arc<str>)> for Pairs {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, Arc<str>)>>(pairs: T) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// Names alone: a value can be personal data, which belongs in no log.
impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}
