//! The living grants with how fresh they are: what a decision may rest on.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use crate::clock::Clock;
use crate::clock::Instant;
use crate::grants::Claims;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Living;
use crate::grants::MAX_TOKENS;
use crate::grants::TokenKeys;
use crate::grants::Use;
use crate::identity::Principal;
use crate::name::KeyName;
use crate::sync::Mutex;
use crate::sync::lock;

/// What a replica knows of grants: those that live, up to which change of the store, and since
/// when.
pub struct Book {
    living: ArcSwap<Living>,
    /// Grants that ended here while all is read anew: what is read may not know that.
    ended: Mutex<Option<Vec<Id>>>,
    contact: ArcSwapOption<Contact>,
    keys: ArcSwap<TokenKeys>,
    clock: Arc<dyn Clock>,
}

/// The latest answer of the store, all of it applied.
#[derive(Clone, Copy, Debug)]
pub struct Contact {
    /// When the store was asked.
    pub asked: Instant,
    /// What its clock said in the answer.
    pub store: Timestamp,
    /// The number of the latest change.
    pub applied: u64,
}

impl Contact {
    /// The time by the store's clock, or up to as much later as its answer was on the way.
    fn now(&self, clock: &dyn Clock) -> Timestamp {
        let later = self.store.saturating_add(clock.now().since(self.asked));
        later.unwrap_or(Timestamp::MAX)
    }

    fn is_lost(&self, clock: &dyn Clock) -> bool {
        clock.now().since(self.asked) >= PATIENCE
    }
}

/// What grants have to say to a use.
pub enum Found {
    /// A grant allows it.
    Allow(Basis),
    /// No grant is known that does.
    Nothing,
    /// The store has not been heard of for [`PATIENCE`], or never: a grant may allow it, and may
    /// be revoked.
    OutOfTouch,
}

/// The grant that something rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    id: Id,
    counted: bool,
    /// The change that made it and its expiry, where a token alone told of it.
    told: Option<(u64, Timestamp)>,
}

impl Basis {
    /// Which grant.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Whether its uses are counted: the store counts, before it serves.
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    /// Whether a token alone told of it.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }
}

impl Book {
    /// An empty book, never in touch, that believes tokens under `keys`.
    pub fn new(keys: TokenKeys, clock: Arc<dyn Clock>) -> Self {
        Self {
            living: ArcSwap::default(),
            ended: Mutex::default(),
            contact: ArcSwapOption::empty(),
            keys: ArcSwap::from_pointee(keys),
            clock,
        }
    }

    /// An empty book, never in touch, with the same keys and clock: for what the store says of a
    /// part of the grants.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            living: ArcSwap::default(),
            ended: Mutex::default(),
            contact: ArcSwapOption::empty(),
            keys: ArcSwap::from(self.keys()),
            clock: Arc::clone(&self.clock),
        }
    }

    /// The keys that tokens are made and believed under.
    pub fn keys(&self) -> Arc<TokenKeys> {
        self.keys.load_full()
    }

    /// Takes other keys.
    pub fn rotate(&self, keys: TokenKeys) {
        self.keys.store(Arc::new(keys));
    }

    /// All is read anew from now on: before the store is asked. What ends here meanwhile is over in
    /// what [`Book::replace`] brings, too.
    pub fn begin_anew(&self) {
        lock(&self.ended).get_or_insert_default();
    }

    /// Takes `living` for all that there is: before [`Book::heard`] of the change up to which it is
    /// whole.
    pub fn replace(&self, living: Living) {
        let mut ended = lock(&self.ended);
        for id in ended.take().iter().flatten() {
            living.end(id);
        }
        self.living.store(Arc::new(living));
    }

    /// Takes up what the store says of one grant. A grant comes after those that it rests on.
    pub fn apply(&self, grant: &Grant) {
        self.living.load().apply(grant);
    }

    /// Forgets the grant `id`, which is over or was removed.
    pub fn end(&self, id: &Id) {
        let mut ended = lock(&self.ended);
        if let Some(ended) = &mut *ended {
            ended.push(*id);
        }
        self.living.load().end(id);
    }

    /// All changes up to `contact` have been applied. Never goes back.
    pub fn heard(&self, contact: Contact) {
        self.contact.rcu(|known| match known {
            Some(known) if known.applied > contact.applied || known.asked > contact.asked => {
                Some(Arc::clone(known))
            }
            _ => Some(Arc::new(contact)),
        });
    }

    /// The latest contact; none if there never was one.
    pub fn contact(&self) -> Option<Contact> {
        self.contact.load().as_deref().copied()
    }

    /// Whether grants count: the store was heard of in the last [`PATIENCE`].
    pub fn is_in_touch(&self) -> bool {
        let contact = self.contact();
        contact.is_some_and(|contact| !contact.is_lost(&*self.clock))
    }

    /// Whether all that the book `other` may know has come here, too.
    pub fn is_level_with(&self, other: &Self) -> bool {
        match (self.contact(), other.contact()) {
            (Some(own), Some(other)) => own.applied >= other.applied,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// How far the store's clock and this machine's are apart; none before the first contact. That
    /// the answer was on the way counts as well.
    pub fn skew(&self) -> Option<Duration> {
        let apart = self
            .contact()?
            .now(&*self.clock)
            .duration_since(self.clock.wall());
        Some(apart.unsigned_abs())
    }

    /// Forgets a part of the grants that are over: once a second.
    pub fn sweep(&self) {
        if let Some(contact) = self.contact() {
            self.living.load().sweep(contact.now(&*self.clock));
        }
    }

    /// The living grants.
    pub fn living(&self) -> Arc<Living> {
        self.living.load_full()
    }

    /// What grants, those of `tokens` included, have to say to `wanted`.
    pub fn find(&self, wanted: &Use<'_>, tokens: &[String]) -> Found {
        // Before the grants: what they lack of a later change, a token may tell.
        let Some(contact) = self.contact() else {
            return Found::OutOfTouch;
        };
        let now = contact.now(&*self.clock);
        let basis = match self.living.load().find(wanted, now) {
            Some(live) => Some(Basis {
                id: live.id(),
                counted: live.is_counted(),
                told: None,
            }),
            None => self
                .believed(contact, now, tokens)
                .find(|claims| claims.key == *wanted.key.name() && claims.terms.allow(wanted))
                .map(|claims| Basis {
                    id: claims.id,
                    counted: claims.counted,
                    told: Some((claims.change, claims.expires)),
                }),
        };
        match basis {
            None => Found::Nothing,
            Some(_) if contact.is_lost(&*self.clock) => Found::OutOfTouch,
            Some(basis) => Found::Allow(basis),
        }
    }

    /// Whether what was found still stands; none if this replica cannot say. Asked again before an
    /// answer leaves, since the process may have stood still meanwhile.
    pub fn stands(&self, basis: &Basis) -> Option<bool> {
        let contact = self.contact()?;
        let now = contact.now(&*self.clock);
        let lives = match basis.told {
            Some((change, expires)) if change > contact.applied => now < expires,
            _ => self.living.load().lives(&basis.id, now),
        };
        (!contact.is_lost(&*self.clock)).then_some(lives)
    }

    /// Whether `grant` lives and all that it rests on, as far as is known here.
    pub fn may_live(&self, grant: &Grant) -> bool {
        let Some(contact) = self.contact() else {
            return true;
        };
        let now = contact.now(&*self.clock);
        let living = self.living.load();
        let mut ancestors = grant.ancestors.iter();
        grant.check(now).is_ok()
            && ancestors.all(|one| one.change > contact.applied || living.lives(&one.id, now))
    }

    /// The grants by which `principal` may perhaps make others for the key `name`: at most `most`
    /// that are known, and those of `tokens`, whether they have come to this replica or not.
    pub fn delegable(
        &self,
        name: &KeyName,
        principal: &Principal,
        tokens: &[String],
        most: usize,
    ) -> Vec<Id> {
        let Some(contact) = self.contact() else {
            return Vec::new();
        };
        let now = contact.now(&*self.clock);
        let living = self.living.load();
        let mut found = living.delegable(name, principal, now, most);
        let told = self.believed(contact, now, tokens);
        let told = told.filter(|claims| claims.key == *name);
        found.extend(told.map(|claims| claims.id));
        found
    }

    /// What those of `tokens` say that are ahead of this replica.
    fn believed<'a>(
        &'a self,
        contact: Contact,
        now: Timestamp,
        tokens: &'a [String],
    ) -> impl Iterator<Item = Claims> + 'a {
        let keys = self.keys.load();
        let ahead = move |change: u64| change > contact.applied;
        tokens
            .iter()
            .take(MAX_TOKENS)
            .filter_map(move |token| keys.open(token))
            .filter(move |claims| ahead(claims.change) && now < claims.expires)
            .filter(move |claims| {
                let living = self.living.load();
                let mut ancestors = claims.ancestors.iter();
                ancestors.all(|one| ahead(one.change) || living.lives(&one.id, now))
            })
    }
}

/// What a call brings along to rest on: the book, and the tokens that came with it.
#[derive(Clone, Copy)]
pub struct Backing<'a> {
    book: Option<&'a Book>,
    tokens: &'a [String],
}

impl<'a> Backing<'a> {
    /// No grants at all.
    pub const NONE: Self = Self {
        book: None,
        tokens: &[],
    };

    /// Those of `book`, and of `tokens`.
    pub fn new(book: &'a Book, tokens: &'a [String]) -> Self {
        Self {
            book: Some(book),
            tokens,
        }
    }

    /// Whether nothing can be said of grants, as [`Found::OutOfTouch`] without any use.
    pub fn is_blind(&self) -> bool {
        self.book.is_some_and(|book| book.contact().is_none())
    }

    /// As [`Book::find`].
    pub fn find(&self, wanted: &Use<'_>) -> Found {
        match self.book {
            Some(book) => book.find(wanted, self.tokens),
            None => Found::Nothing,
        }
    }
}

/// How long after the latest word of the store a grant still counts.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How far the clocks of the store and of a replica that makes grants may be apart: lifetimes are
/// by the store's alone, but one of both is wrong.
pub const MOST_SKEW: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
