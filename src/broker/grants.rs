//! Grants: what is known of them, kept in step with the store, and the operations on them.
//!
//! A change is answered when the store has it. This replica takes it up before that, others when
//! they hear of it.

mod known;

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
use crate::grants::Claims;
use crate::grants::Ending;
use crate::grants::Excess;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Kind;
use crate::grants::MAX_TOKEN;
use crate::grants::Name;
use crate::grants::Terms;
use crate::grants::Unfit;
use crate::grants::Wanted;
use crate::identity::Principal;
use crate::name::KeyName;
use crate::policy::Action;
use crate::policy::Denied;
use crate::policy::Manages;
use crate::policy::Permit;
use crate::policy::Rule;
use crate::store::grants::Changed;
use crate::store::grants::Filter;
use crate::store::grants::Right;
use crate::store::grants::Unmade;
use crate::store::grants::Unrenewed;

pub use known::Grants;

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

/// Which grants to list, as the caller wrote it.
pub struct Listing {
    /// The key's name, or the tenant's for those that may be retired.
    pub of: String,
    /// Only this one; empty for all.
    pub id: String,
    /// Only those with this grantee, or whose retiring principal this is; empty for all.
    pub principal: String,
    /// Most on the page.
    pub size: i32,
    /// The last of the page before; empty for the first page.
    pub after: String,
}

/// A page of grants.
pub struct GrantPage {
    /// The grants, in the order of their ids.
    pub grants: Vec<Grant>,
    /// The last one's id, if more may follow.
    pub next: Option<Id>,
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
    /// What the call may rest on beside key policies.
    pub(super) fn backing<'a>(&'a self, tokens: &'a [String]) -> Backing<'a> {
        Backing::new(self.broker.grants.book(), tokens)
    }

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
                    grants.book.end(&id);
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
            Rule::Grant(basis) => match self.broker.grants.book.stands(&basis) {
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
        let (key, manages) = self.managed(name, &tokens)?;
        let principal = self.caller.principal();
        let grants = &self.broker.grants;
        let right = match manages {
            Manages::Yes => Right::Administrator,
            Manages::No => {
                let candidates = grants.book.delegable(name, principal, &tokens, CANDIDATES);
                if candidates.is_empty() {
                    return Err(self.denied_by_grants());
                }
                Right::Grants(candidates)
            }
        };
        if let Some(constraint) = &wanted.terms.constraint {
            let unfit = constraint.check(key);
            unfit.map_err(|unfit| invalid("constraints", unfit.to_string()))?;
        }
        grants.check_clock()?;
        if grants.book.living().of_key(name) >= MOST_OF_A_KEY {
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
            Unmade::Denied => self.denied_by_grants(),
            Unmade::NameTaken => Error::GrantNameTaken,
            Unmade::Unfit(unfit) => invalid(field_of(unfit), unfit.to_string()),
        })?;
        self.note_grant(&changed.grant);
        self.note_manager(manages, &changed.grant);
        grants.take_up().await;
        Ok(self.granted(changed))
    }

    /// Lists the living grants of a key.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn list_grants(&self, listing: Listing) -> Result<GrantPage, Error> {
        self.look();
        let name = self.key_name("key", &listing.of)?;
        self.notes.add(|record| record.key = Some(name.clone()));
        let filter = filter(&listing, &listing.principal)?;
        self.administers(&name)?;
        let grants = &self.broker.grants;
        let found = grants.store.grants_of_key(&name, &filter).await?;
        Ok(self.page(found, &filter))
    }

    /// Lists the living grants that the caller may retire as their retiring principal.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn list_retirable_grants(&self, listing: Listing) -> Result<GrantPage, Error> {
        self.look();
        let tenant = self.parent(&listing.of)?;
        let filter = filter(&listing, "")?;
        let principal = self.caller.principal();
        if !listing.principal.is_empty() && listing.principal != principal.as_str() {
            return Err(Denied::NoStatement.into());
        }
        let grants = &self.broker.grants;
        let found = grants.store.retirable_grants(&tenant, principal, &filter);
        Ok(self.page(found.await?, &filter))
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
        let grant = grants.store.grant(&name, &id).await?;
        let principal = self.caller.principal();
        let may = |grant: &Grant| grant.is_retirable_by(principal);
        if !grant.as_ref().is_some_and(may) {
            return Err(Denied::NoStatement.into());
        }
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
        grants.check_clock()?;
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

    fn managed(&self, name: &KeyName, tokens: &[String]) -> Result<(&Arc<Key>, Manages), Error> {
        let managed = self
            .policy
            .manages(&self.caller, name, self.backing(tokens));
        managed.map_err(|refused| refusal(refused, Action::Decrypt))
    }

    fn administers(&self, name: &KeyName) -> Result<(), Error> {
        let managed = self.policy.manages(&self.caller, name, Backing::NONE);
        match managed.map_err(|refused| refusal(refused, Action::Decrypt))? {
            (_, Manages::Yes) => {
                self.notes
                    .add(|record| record.rule = Some("administrators"));
                Ok(())
            }
            (_, Manages::No) => Err(Denied::NoStatement.into()),
        }
    }

    /// Why somebody may not do what only a grant would allow.
    fn denied_by_grants(&self) -> Error {
        match self.broker.grants.book.contact() {
            Some(_) => Denied::NoStatement.into(),
            None => out_of_touch(),
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

    /// Leaves out what is over because what it rests on is.
    fn page(&self, mut grants: Vec<Grant>, filter: &Filter<'_>) -> GrantPage {
        let next = grants
            .last()
            .filter(|_| grants.len() == filter.most)
            .map(|last| last.id);
        let book = &self.broker.grants.book;
        grants.retain(|grant| book.may_live(grant));
        GrantPage { grants, next }
    }

    fn look(&self) {
        self.notes
            .add(|record| record.category = audit::Category::Look);
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

    fn note_manager(&self, manages: Manages, grant: &Grant) {
        self.notes.add(|record| {
            record.tenant = Some(grant.wanted.key.tenant.clone());
            record.rule = Some(match manages {
                Manages::No => "grant",
                Manages::Yes => "administrators",
            });
        });
    }
}

/// What a grant is to be, for the record: names, and never the values of pairs.
fn said(wanted: &Wanted) -> audit::Terms {
    let terms = &wanted.terms;
    let constraint = terms.constraint.as_ref();
    let names = constraint.into_iter().flat_map(|one| one.pairs().pairs());
    audit::Terms {
        grantee_principal: terms.grantee.to_string(),
        retiring_principal: wanted.retiring.as_ref().map(Principal::to_string),
        operations: terms.operations.iter().map(|one| one.label()).collect(),
        constraint: constraint.map(|one| match one.kind() {
            Kind::Equals => "EncryptionContextEquals",
            Kind::Subset => "EncryptionContextSubset",
        }),
        encryption_context_keys: names.map(|(name, _)| name.to_owned()).collect(),
        name: wanted.name.as_ref().map(|name| name.as_str().to_owned()),
        max_uses: wanted.max_uses.map(|uses| uses.get()),
    }
}

/// The request's field that is to blame.
fn field_of(unfit: Unfit) -> &'static str {
    match unfit {
        Unfit::Counted => "max_uses",
        Unfit::Depth | Unfit::Excess(Excess::Delegation | Excess::Operations) => "operations",
        Unfit::Excess(Excess::Constraint) => "constraints",
        Unfit::Excess(Excess::Lifetime) | Unfit::Lifetime { .. } => "lifetime_seconds",
        Unfit::Renewable { .. } => "renewable_for_seconds",
    }
}

fn grant_id(text: &str) -> Result<Id, Error> {
    text.parse()
        .map_err(|error: crate::grants::MalformedId| invalid("grant_id", error.to_string()))
}

fn filter<'a>(listing: &Listing, grantee: &'a str) -> Result<Filter<'a>, Error> {
    let most = match usize::try_from(listing.size) {
        Err(_) => {
            return Err(invalid(
                "page_size",
                format!("{} is negative", listing.size),
            ));
        }
        Ok(0) => USUAL_PAGE,
        Ok(size) => size.min(LARGEST_PAGE),
    };
    let after = match listing.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            let why = "it is not the next_page_token of a page".to_owned();
            invalid("page_token", why)
        })?),
    };
    let id = match listing.id.as_str() {
        "" => None,
        text => Some(grant_id(text)?),
    };
    Ok(Filter {
        after,
        id,
        grantee,
        most,
    })
}

/// Most living grants of a key: as many as AWS KMS allows.
const MOST_OF_A_KEY: usize = 50_000;
/// Most grants that are looked at for the right to make another.
const CANDIDATES: usize = 16;
/// Grants on a page unless the caller says how many.
const USUAL_PAGE: usize = 50;
/// Most grants on a page.
const LARGEST_PAGE: usize = 100;
