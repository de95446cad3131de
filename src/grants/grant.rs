//! A grant over its life: made, renewed, ended.

use std::fmt;
use std::hash::Hash;
use std::hash::Hasher;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use subtle::ConstantTimeEq;

use crate::crypto::digest;
use crate::crypto::random;
use crate::directory::Key;
use crate::grants::Excess;
use crate::grants::Operation;
use crate::grants::Terms;
use crate::identity::Principal;
use crate::name::KeyName;

/// What somebody wants a grant to be. Two wishes that are equal ask for the same grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For which key.
    pub key: KeyName,
    /// What it allows, and to whom.
    pub terms: Terms,
    /// Who may retire it beside a grantee that may.
    pub retiring: Option<Principal>,
    /// What makes the wish repeatable.
    pub name: Option<Name>,
    /// How long it lives; [`Grant::USUAL_LIFETIME`] where that is left open, or less where the
    /// ceiling or its parent's life is shorter.
    pub lifetime: Option<Duration>,
    /// For how long after its creation it may be renewed; not at all where there is none.
    pub renewable: Option<Duration>,
    /// How often it may be used.
    pub max_uses: Option<NonZeroU32>,
}

/// A delegation of the use of one key, as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which.
    pub id: Id,
    /// What was wanted.
    pub wanted: Wanted,
    /// Who made it.
    pub creator: Principal,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is over.
    pub expires: Timestamp,
    /// The number of the change that made it.
    pub change: u64,
    /// The grants that it rests on, its parent last: it is over when one of them is.
    pub ancestors: Arc<[Ancestor]>,
    /// How it was ended before its time.
    pub ending: Option<Ending>,
}

impl Grant {
    /// How long a grant lives unless its creator says otherwise.
    pub const USUAL_LIFETIME: Duration = Duration::from_secs(15 * 60);
    /// The shortest life.
    pub const SHORTEST_LIFETIME: Duration = Duration::from_secs(1);
    /// How long any grant may live, from its creation and renewals included.
    pub const LONGEST_LIFETIME: Duration = Key::LONGEST_GRANT;
    /// Most grants that one rests on.
    pub const MAX_ANCESTORS: usize = 4;

    /// The grant `id` that `creator` wants, at `now`, under a key whose grants live for `ceiling`
    /// at most. It rests on `parent` where the creator has no other right to make it. Its change is
    /// numbered by whoever stores it.
    ///
    /// # Errors
    /// [`Unfit`]: nothing is clamped.
    pub fn make(
        wanted: Wanted,
        id: Id,
        creator: &Principal,
        parent: Option<&Self>,
        ceiling: Duration,
        now: Timestamp,
    ) -> Result<Self, Unfit> {
        let ceiling = ceiling.min(Self::LONGEST_LIFETIME);
        let within = |span: Duration| match (Self::SHORTEST_LIFETIME..=ceiling).contains(&span) {
            true => Ok(span),
            false => Err(Unfit::Lifetime { span, ceiling }),
        };
        let renewable = wanted.renewable.map(within).transpose()?;
        let lifetime = match wanted.lifetime {
            Some(lifetime) => within(lifetime)?,
            None => {
                let left = parent.map(|parent| until(now, parent.expires));
                let shorter = [renewable, left].into_iter().flatten();
                shorter.fold(Self::USUAL_LIFETIME.min(ceiling), Duration::min)
            }
        };
        if let Some(renewable) = renewable
            && renewable < lifetime
        {
            return Err(Unfit::Renewable {
                renewable,
                lifetime,
            });
        }
        let hands_on = wanted.terms.operations.contain(Operation::CreateGrant);
        if hands_on && wanted.max_uses.is_some() {
            return Err(Unfit::Counted);
        }
        let expires = after(now, lifetime);
        let mut ancestors = Vec::new();
        if let Some(parent) = parent {
            wanted.terms.check_within(&parent.wanted.terms)?;
            let last = renewable.map_or(expires, |span| after(now, span));
            if expires > parent.expires || last > parent.last_expiry() {
                return Err(Excess::Lifetime.into());
            }
            ancestors.extend_from_slice(&parent.ancestors);
            ancestors.push(Ancestor {
                id: parent.id,
                change: parent.change,
            });
            if ancestors.len() > Self::MAX_ANCESTORS {
                return Err(Unfit::Depth);
            }
        }
        Ok(Self {
            id,
            wanted,
            creator: creator.clone(),
            created: now,
            expires,
            change: 0,
            ancestors: ancestors.into(),
            ending: None,
        })
    }

    /// Until when it can be renewed at most; its expiry where it cannot be.
    pub fn last_expiry(&self) -> Timestamp {
        match self.wanted.renewable {
            Some(span) => after(self.created, span).max(self.expires),
            None => self.expires,
        }
    }

    /// Whether it lives at `now`, as far as that is up to itself: those it rests on must, too.
    ///
    /// # Errors
    /// [`Ended`] from the moment of its expiry on, and when somebody has ended it.
    pub fn check(&self, now: Timestamp) -> Result<(), Ended> {
        match self.ending {
            Some(ending) => Err(Ended::Early(ending)),
            None if now >= self.expires => Err(Ended::Expired),
            None => Ok(()),
        }
    }

    /// When it expires once `principal` has renewed it at `now`, for `lifetime` or for as long as it
    /// was made for; never earlier than without, and never later than it may.
    ///
    /// None where it is not renewable, or `principal` neither its grantee nor its creator.
    pub fn renewed(
        &self,
        principal: &Principal,
        lifetime: Option<Duration>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let may = self.creator == *principal || self.wanted.terms.grantee.matches(principal);
        if !may || self.wanted.renewable.is_none() {
            return None;
        }
        let lifetime = lifetime
            .or(self.wanted.lifetime)
            .unwrap_or(Self::USUAL_LIFETIME);
        let wanted = after(now, lifetime).min(self.last_expiry());
        Some(wanted.max(self.expires))
    }

    /// Whether `principal` may retire it: its retiring principal, or a grantee that has the
    /// operation.
    pub fn is_retirable_by(&self, principal: &Principal) -> bool {
        let terms = &self.wanted.terms;
        let grantee =
            || terms.operations.contain(Operation::RetireGrant) && terms.grantee.matches(principal);
        self.wanted.retiring.as_ref() == Some(principal) || grantee()
    }
}

/// A grant that another one rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Which.
    pub id: Id,
    /// The number of the change that made it.
    pub change: u64,
}

/// Which grant: SHA-256 of 128 random bits that are then forgotten, as text 64 hexadecimal digits
/// like those of AWS KMS. Compared in constant time, though knowing one gives no right to anything.
#[derive(Clone, Copy)]
pub struct Id([u8; 32]);

impl Id {
    /// A new one.
    ///
    /// # Errors
    /// The random generator's own failure.
    pub fn random() -> Result<Self, random::Error> {
        let mut bits = [0; 16];
        random::fill(&mut bits)?;
        Ok(Self(digest::sha256(&bits)))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Id {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl FromStr for Id {
    type Err = MalformedId;

    fn from_str(text: &str) -> Result<Self, MalformedId> {
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        if digits.len() != 32 || !rest.is_empty() {
            return Err(MalformedId);
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(MalformedId),
        };
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(digits) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the id of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 64 lower-case hexadecimal digits")]
pub struct MalformedId;

/// A grant's name: 1 to 256 of `a-z`, `A-Z`, `0-9`, `:`, `/`, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The longest, in bytes.
    pub const MAX: usize = 256;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = MalformedName;

    fn from_str(text: &str) -> Result<Self, MalformedName> {
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'/' | b'_' | b'-');
        match (1..=Self::MAX).contains(&text.len()) && text.bytes().all(sound) {
            true => Ok(Self(text.into())),
            false => Err(MalformedName),
        }
    }
}

/// The text is no name for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 1 to {} of a-z, A-Z, 0-9, :, /, _ and -", Name::MAX)]
pub struct MalformedName;

/// How somebody ended a grant before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// One for whom it was gave it back.
    Retire,
    /// An administrator of the key took it back.
    Revoke,
    /// It was used as often as it may be.
    Spend,
}

/// Why a grant allows nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ended {
    /// Somebody ended it, or its last use did.
    #[error("the grant was ended")]
    Early(Ending),
    /// Its time is over.
    #[error("the grant has expired")]
    Expired,
}

/// Why a grant cannot be made as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It allows CreateGrant and may be used a number of times only: what rests on it would be used
    /// uncounted.
    #[error("a grant whose uses are counted cannot allow CreateGrant")]
    Counted,
    /// It would rest on more than [`Grant::MAX_ANCESTORS`] others.
    #[error("it would rest on more than {} other grants", Grant::MAX_ANCESTORS)]
    Depth,
    /// It would allow more than the grant that it rests on.
    #[error(transparent)]
    Excess(#[from] Excess),
    /// A life that is too short, or longer than grants of the key may have.
    #[error("{}s is not 1s to {}s", span.as_secs_f64(), ceiling.as_secs())]
    Lifetime {
        /// What was asked for.
        span: Duration,
        /// The longest that is possible.
        ceiling: Duration,
    },
    /// It could not be renewed once, its first life being longer.
    #[error("{}s of renewal are less than the lifetime of {}s", renewable.as_secs(), lifetime.as_secs())]
    Renewable {
        /// For how long it should be renewable.
        renewable: Duration,
        /// How long it would live without.
        lifetime: Duration,
    },
}

fn after(time: Timestamp, span: Duration) -> Timestamp {
    time.saturating_add(span).unwrap_or(Timestamp::MAX)
}

fn until(now: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
