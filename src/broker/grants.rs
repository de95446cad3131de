//! Grants: what is known of them, kept in step with the store, and the operations on them.
//!
//! A change is answered when the store has it. This replica takes it up before that, others when
//! they hear of it.

mod asked;
mod due;
mod kms;
mod known;
mod listing;
mod strays;
mod words;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::audit;
use crate::broker::Call;
use crate::broker::binding::invalid;
use crate::broker::binding::out_of_touch;
use crate::broker::binding::refusal;
use crate::broker::binding::tokens_bound;
use crate::broker::no_randomness;
use crate::directory::Key;
use crate::directory::Revocation;
use crate::error::Error;
use crate::grants::Backing;
use crate::grants::Book;
use crate::grants::Claims;
use crate::grants::Ending;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::MAX_TOKEN;
use crate::grants::MOST_SKEW;
use crate::grants::Name;
use crate::grants::Terms;
use crate::grants::Wanted;
use crate::identity::Caller;
use crate::identity::Principal;
use crate::name::KeyName;
use crate::policy::Action;
use crate::policy::Denied;
use crate::policy::Manages;
use crate::policy::Permit;
use crate::policy::Policy;
use crate::policy::Rule;
use crate::store::grants::Changed;
use crate::store::grants::Right;
use crate::store::grants::Unmade;
use crate::store::grants::Unrenewed;

use words::field_of;
use words::said;

pub use kms::KmsCreation;
pub use kms::KmsGrantPage;
pub use kms::KmsGranted;
pub use known::Grants;
pub use listing::GrantPage;
pub use listing::Listing;

pub(super) use asked::Asked;
pub(super) use words::grant_id;

/// Whether the store has confirmed a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    /// The grant does not allow it any more, and is known for that now.
    No,
    Yes,
}

/// What somebody wants a grant to be, as [`Wanted`], the key by its name as the caller wrote it.
pub struct Creation {
    /// The key's name.
    pub key: String,
    /// What it allows, and to whom.
    pub terms: Terms,
    /// Who may retire it.
    pub retiring: Option<Principal>,
    /// Its name.
    pub name: Option<Name>,
    /// How long it lives.
    pub lifetime: Option<Duration>,
    /// For how long it may be renewed.
    pub renewable: Option<Duration>,
    /// How often it may be used.
    pub max_uses: Option<NonZeroU32>,
    /// Tokens of grants that may allow it.
    pub tokens: Vec<String>,
}

/// A grant, and a token of it.
pub struct Granted {
    /// The grant.
    pub grant: Grant,
    /// The token's text.
    pub token: String,
}

/// Which grant to give back.
pub enum Retirement {
    /// That of this token.
    Token(String),
    /// That of this key and id.
    Named {
        /// The key's name.
        key: String,
        /// The grant's id.
        id: String,
    },
}

impl Call<'_> {
    /// Has the store confirm `uses` of what `permit` rests on, where the tenant or the grant wants
    /// that. A grant that is not confirmed is forgotten, so that to authorize again finds another or
    /// none.
    pub(super) async fn confirm(&self, permit: &Permit, uses: u64) -> Result<Confirmed, Error> {
        let Rule::Grant(basis) = permit.rule() else {
            return Ok(Confirmed::Yes);
        };
        let strict = permit.key().tenant().revocation() == Revocation::Strict;
        if !strict && !basis.is_counted() {
            return Ok(Confirmed::Yes);
        }
        let grants = &self.broker.grants;
        let (name, id) = (permit.key().name(), basis.id());
        // In a box: what every call would carry along for it has 16 KiB.
        let confirmed = Box::pin(grants.store.confirm_grant(name, &id, uses)).await;
        match confirmed.inspect_err(|_| self.broker.metrics().undecided())? {
            true => Ok(Confirmed::Yes),
            // A token alone would tell of it again.
            false if basis.is_told() => Err(Denied::NoStatement.into()),
            false => {
                if uses == 1 {
                    self.book(name).end(&id);
                }
                Ok(Confirmed::No)
            }
        }
    }

    /// Whether what `permit` rests on still allows it: looked at before an answer leaves, since the
    /// process may have stood still.
    pub(super) fn stands(&self, permit: &Permit) -> Result<(), Error> {
        match permit.rule() {
            Rule::Policy(_) => Ok(()),
            Rule::Grant(basis) => match self.book(permit.key().name()).stands(&basis) {
                Some(true) => Ok(()),
                Some(false) => Err(Denied::NoStatement.into()),
                None => Err(out_of_touch()),
            },
        }
    }

    /// Makes a grant, or finds the one of its name.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn create_grant(&self, creation: Creation) -> Result<Granted, Error> {
        let Creation {
            key,
            terms,
            retiring,
            name,
            lifetime,
            renewable,
            max_uses,
            tokens,
        } = creation;
        tokens_bound(&tokens)?;
        let wanted = Wanted {
            key: self.key_name("key", &key)?,
            terms,
            retiring,
            name,
            lifetime,
            renewable,
            max_uses,
        };
        let name = &wanted.key;
        self.notes.add(|record| {
            record.category = audit::Category::Manage;
            record.key = Some(name.clone());
            record.grant = Some(Box::new(said(&wanted)));
        });
        let principal = self.caller.principal();
        let grants = &self.broker.grants;
        // The store makes it: without it there is no use in going on.
        Box::pin(self.learn(name)).await?;
        let (key, right) = self.right(name, &tokens)?;
        if let Some(constraint) = &wanted.terms.constraint {
            let unfit = constraint.check(key);
            unfit.map_err(|unfit| invalid("constraints", unfit.to_string()))?;
        }
        self.check_clock(name)?;
        let held = match grants.is_whole() {
            true => grants.book.living().of_key(name),
            false => grants.store.count_grants(name).await?,
        };
        if held >= MOST_OF_A_KEY {
            return Err(Error::GrantsExhausted {
                limit: MOST_OF_A_KEY,
            });
        }
        let id = Id::random().map_err(|error| no_randomness(&error))?;
        let ceiling = key.grant_ceiling();
        let made = grants
            .store
            .create_grant(&wanted, id, principal, &right, ceiling);
        let changed = made.await?.map_err(|unmade| match unmade {
            Unmade::Denied => denied_by_grants(self.book(name)),
            Unmade::NameTaken => Error::GrantNameTaken,
            Unmade::Unfit(unfit) => invalid(field_of(unfit), unfit.to_string()),
        })?;
        self.note_grant(&changed.grant);
        self.note_manager(&right, &changed.grant);
        grants.take_up().await;
        Ok(self.granted(changed))
    }

    /// Gives a grant back.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn retire_grant(&self, which: Retirement) -> Result<(), Error> {
        self.manage();
        let grants = &self.broker.grants;
        let (name, id) = match which {
            Retirement::Named { key, id } => (self.key_name("key", &key)?, grant_id(&id)?),
            Retirement::Token(token) => {
                if token.len() > MAX_TOKEN {
                    let why = format!("it has more than {MAX_TOKEN} characters");
                    return Err(invalid("grant_token", why));
                }
                let claims = grants.book.keys().open(&token);
                let claims = claims.ok_or(Denied::NoStatement)?;
                (claims.key, claims.id)
            }
        };
        self.note_named(&name, id);
        let principal = self.caller.principal();
        grants.check_retirable(&name, &id, principal).await?;
        self.end(&name, &id, Ending::Retire).await
    }

    /// Takes a grant back.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn revoke_grant(&self, key: &str, id: &str) -> Result<(), Error> {
        self.manage();
        let (name, id) = (self.key_name("key", key)?, grant_id(id)?);
        self.note_named(&name, id);
        self.administers(&name)?;
        let grants = &self.broker.grants;
        if grants.store.grant(&name, &id).await?.is_none() {
            return Err(Denied::NoStatement.into());
        }
        self.end(&name, &id, Ending::Revoke).await
    }

    /// Has a grant live longer.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn renew_grant(
        &self,
        key: &str,
        id: &str,
        lifetime: Option<Duration>,
    ) -> Result<Granted, Error> {
        self.manage();
        let (name, id) = (self.key_name("key", key)?, grant_id(id)?);
        self.note_named(&name, id);
        let grants = &self.broker.grants;
        Box::pin(self.learn(&name)).await?;
        self.check_clock(&name)?;
        let principal = self.caller.principal();
        let renewed = grants.store.renew_grant(&name, &id, principal, lifetime);
        let changed = renewed.await?.map_err(|unrenewed| match unrenewed {
            Unrenewed::Denied => Error::Denied(Denied::NoStatement),
            Unrenewed::NotRenewable => Error::GrantNotRenewable,
        })?;
        grants.take_up().await;
        Ok(self.granted(changed))
    }

    async fn end(&self, name: &KeyName, id: &Id, how: Ending) -> Result<(), Error> {
        let grants = &self.broker.grants;
        grants.store.end_grant(name, id, how).await?;
        // Here it is over at once, whatever becomes of the news.
        grants.book.end(id);
        grants.take_up().await;
        Ok(())
    }

    /// The key `name`, and by what right the caller may make grants for it.
    fn right(&self, name: &KeyName, tokens: &[String]) -> Result<(&Arc<Key>, Right), Error> {
        right(&self.policy, &self.caller, name, self.book(name), tokens)
    }

    fn administers(&self, name: &KeyName) -> Result<&Arc<Key>, Error> {
        let managed = self.policy.manages(&self.caller, name, Backing::NONE);
        match managed.map_err(|refused| refusal(refused, Action::Decrypt))? {
            (key, Manages::Yes) => {
                self.notes
                    .add(|record| record.rule = Some("administrators"));
                Ok(key)
            }
            (_, Manages::No) => Err(Denied::NoStatement.into()),
        }
    }

    /// Refuses to give anybody time while it is uncertain what time it is.
    fn check_clock(&self, name: &KeyName) -> Result<(), Error> {
        match self.book(name).skew() {
            Some(skew) if skew > MOST_SKEW => {
                let why = format!(
                    "its clock and the broker's are {}s apart: no grant is made or renewed",
                    skew.as_secs()
                );
                Err(Error::StoreUnavailable(why.into()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn granted(&self, changed: Changed) -> Granted {
        let Changed { grant, change } = changed;
        let claims = Claims::new(&grant, change);
        let token = self.broker.grants.book.keys().seal(&claims);
        Granted {
            grant,
            token: token.into_text(),
        }
    }

    fn manage(&self) {
        self.notes
            .add(|record| record.category = audit::Category::Manage);
    }

    fn note_named(&self, name: &KeyName, id: Id) {
        self.notes.add(|record| {
            record.key = Some(name.clone());
            record.grant_id = Some(id);
        });
    }

    fn note_grant(&self, grant: &Grant) {
        self.notes.add(|record| record.grant_id = Some(grant.id));
    }

    fn note_manager(&self, right: &Right, grant: &Grant) {
        self.notes.add(|record| {
            record.tenant = Some(grant.wanted.key.tenant.clone());
            record.rule = Some(match right {
                Right::Grants(_) => "grant",
                Right::Administrator => "administrators",
            });
        });
    }
}

impl Grants {
    /// Refuses a `principal` who may not give the grant `id` of `name` back.
    pub(super) async fn check_retirable(
        &self,
        name: &KeyName,
        id: &Id,
        principal: &Principal,
    ) -> Result<(), Error> {
        match self.store.grant(name, id).await? {
            Some(grant) if grant.is_retirable_by(principal) => Ok(()),
            Some(_) | None => Err(Denied::NoStatement.into()),
        }
    }
}

/// The key `name`, and by what right `caller` may make grants for it as far as `book` knows.
pub(super) fn right<'p>(
    policy: &'p Policy,
    caller: &Caller,
    name: &KeyName,
    book: &Book,
    tokens: &[String],
) -> Result<(&'p Arc<Key>, Right), Error> {
    let managed = policy.manages(caller, name, Backing::new(book, tokens));
    let (key, manages) = managed.map_err(|refused| refusal(refused, Action::Decrypt))?;
    if manages == Manages::Yes {
        return Ok((key, Right::Administrator));
    }
    let candidates = book.delegable(name, caller.principal(), tokens, CANDIDATES);
    match candidates.is_empty() {
        true => Err(denied_by_grants(book)),
        false => Ok((key, Right::Grants(candidates))),
    }
}

/// Why somebody may not do what only a grant of `book` would allow.
fn denied_by_grants(book: &Book) -> Error {
    match book.contact() {
        Some(_) => Denied::NoStatement.into(),
        None => out_of_touch(),
    }
}

/// Most living grants of a key: as many as AWS KMS allows.
const MOST_OF_A_KEY: usize = 50_000;
/// Most grants that are looked at for the right to make another.
const CANDIDATES: usize = 16;
