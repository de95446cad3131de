//! Grants of AWS KMS for callers who talk to KMS themselves: made, listed and ended on behalf of a
//! key's administrators. What they lack in KMS, an end, is [`Broker::end_due_kms_grants`]'s.

use std::time::Duration;

use jiff::Timestamp;

use crate::audit;
use crate::broker::Broker;
use crate::broker::Call;
use crate::broker::binding::invalid;
use crate::broker::grants::Listing;
use crate::broker::grants::MOST_OF_A_KEY;
use crate::broker::grants::listing::filter;
use crate::broker::grants::words::constraint_label;
use crate::broker::grants::words::grant_id;
use crate::broker::grants::words::name_ended;
use crate::broker::grants::words::name_kms_grant;
use crate::broker::no_randomness;
use crate::directory::Directory;
use crate::directory::Key;
use crate::directory::Standing;
use crate::error::Error;
use crate::grants::Constraint;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Kind;
use crate::grants::Operations;
use crate::kms::Arn;
use crate::kms::Delegated;
use crate::kms::Delegation;
use crate::kms::IamPrincipal;
use crate::kms::Matching;
use crate::kms::Undelegated;
use crate::message::EncryptionContext;
use crate::name::KeyName;
use crate::policy::Denied;
use crate::quota;
use crate::store::kms_grants;
use crate::store::kms_grants::Ending;
use crate::store::kms_grants::KmsGrant;
use crate::store::kms_grants::Obstacle;

/// What somebody wants a grant of KMS to be.
pub struct KmsCreation {
    /// The key's name.
    pub key: String,
    /// Whom it is for.
    pub grantee: IamPrincipal,
    /// What it allows: uses of the key alone.
    pub operations: Operations,
    /// In which contexts, beside the pairs that the key itself sets.
    pub constraint: Option<Constraint>,
    /// How long it lives.
    pub lifetime: Option<Duration>,
}

/// A grant of KMS, and KMS's token of it.
pub struct KmsGranted {
    /// The grant.
    pub grant: KmsGrant,
    /// The token's text.
    pub token: String,
}

/// A page of grants of KMS.
pub struct KmsGrantPage {
    /// The grants, in the order of their ids.
    pub grants: Vec<KmsGrant>,
    /// The last one's id, if more may follow.
    pub next: Option<Id>,
}

impl Call<'_> {
    /// Makes a grant of KMS.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn create_kms_grant(&self, creation: KmsCreation) -> Result<KmsGranted, Error> {
        let name = self.key_name("key", &creation.key)?;
        self.notes.add(|record| {
            record.category = audit::Category::Manage;
            record.key = Some(name.clone());
            record.grant = Some(Box::new(said(&creation)));
        });
        let key = self.administers(&name)?;
        let (arn, lifetime) = (kms_key(key)?.clone(), lifetime(&creation, key)?);
        if let Some(operation) = creation.operations.iter().find(|one| !one.is_use()) {
            let why = format!(
                "{}: a grant of KMS is for uses of the key",
                operation.label()
            );
            return Err(invalid("operations", why));
        }
        let (matching, context) = bound(key, creation.constraint.as_ref())?;
        let kms = self.broker.delegation()?;
        let store = &self.broker.grants.store;
        let wanted = KmsGrant {
            id: Id::random().map_err(|error| no_randomness(&error))?,
            name: String::new(),
            key: name,
            arn,
            grantee: creation.grantee,
            operations: creation.operations,
            creator: self.caller.principal().clone(),
            created: Timestamp::MIN,
            expires: Timestamp::MIN,
            kms_id: None,
            ending: None,
        };
        // First of all: from now on somebody sees to its end, whatever becomes of this call.
        let Some(grant) = store.intend_kms_grant(wanted, lifetime).await? else {
            return Err(Error::GrantsExhausted {
                limit: kms_grants::MOST_OF_A_KEY,
            });
        };
        self.notes.add(|record| record.grant_id = Some(grant.id));
        let operations: Vec<&'static str> =
            grant.operations.iter().map(|one| one.label()).collect();
        let delegated = Delegated {
            name: &grant.name,
            grantee: &grant.grantee,
            operations: &operations,
            matching,
            context: &context,
        };
        self.pay(quota::KMS_GRANT);
        let made = match kms.create_grant(&grant.arn, &delegated).await {
            Ok(made) => made,
            Err(undelegated) => {
                // Of what is unheard of others see to the end.
                if !matches!(undelegated, Undelegated::Unheard(_)) {
                    store.kms_grant_is_over(&grant.id).await?;
                }
                return Err(refused(undelegated, key));
            }
        };
        self.notes.add(|record| {
            name_kms_grant(record, &grant, &made.id);
            record.kms_request_ids.extend(made.request_id);
        });
        if !store.complete_kms_grant(&grant.id, &made.id).await? {
            self.end_in_kms(&grant, &made.id, Ending::Orphaned, key)
                .await?;
            return Err(Error::KmsUnavailable(
                "the grant was to end before KMS had made it".to_owned(),
            ));
        }
        Ok(KmsGranted {
            grant: KmsGrant {
                kms_id: Some(made.id),
                ..grant
            },
            token: made.token,
        })
    }

    /// Lists the living grants of KMS of a key.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn list_kms_grants(&self, listing: Listing) -> Result<KmsGrantPage, Error> {
        self.look();
        let name = self.key_name("key", &listing.of)?;
        self.notes.add(|record| record.key = Some(name.clone()));
        let filter = filter(&listing, "")?;
        self.administers(&name)?;
        let most = filter.most;
        let store = &self.broker.grants.store;
        let grants = store.kms_grants_of_key(&name, filter.after, most).await?;
        let last = grants.last().filter(|_| grants.len() == most);
        let next = last.map(|last| last.id);
        Ok(KmsGrantPage { grants, next })
    }

    /// Ends a grant of KMS, now.
    ///
    /// # Errors
    /// Those of the RPC. From then on it is ended as soon as KMS lets it be.
    pub async fn revoke_kms_grant(&self, key: &str, id: &str) -> Result<(), Error> {
        self.manage();
        let (name, id) = (self.key_name("key", key)?, grant_id(id)?);
        self.note_named(&name, id);
        let key = self.administers(&name)?;
        let store = &self.broker.grants.store;
        let Some(grant) = store.kms_grant(&name, &id).await? else {
            return Err(Denied::NoStatement.into());
        };
        if !store.end_kms_grant(&name, &id, HEAD_START).await? {
            return Ok(());
        }
        match &grant.kms_id {
            Some(kms_id) => self.end_in_kms(&grant, kms_id, Ending::Revoked, key).await,
            None => Err(Error::KmsUnavailable(
                "it is not known yet whether KMS has made this grant; if so, it is ended"
                    .to_owned(),
            )),
        }
    }

    /// Ends `grant`, which is due, in KMS, which calls it `kms_id`. What this leaves undone others do.
    async fn end_in_kms(
        &self,
        grant: &KmsGrant,
        kms_id: &str,
        ending: Ending,
        key: &Key,
    ) -> Result<(), Error> {
        let store = &self.broker.grants.store;
        self.pay(quota::KMS_GRANT);
        let kms = self.broker.delegation()?;
        match kms.revoke_grant(&grant.arn, kms_id).await {
            Ok(revoked) => {
                // Or not there yet.
                let gone = revoked.already_gone;
                self.notes
                    .add(|record| name_ended(record, grant, kms_id, ending, revoked));
                if !gone {
                    store.kms_grant_is_over(&grant.id).await?;
                }
                Ok(())
            }
            Err(error) => {
                self.notes
                    .add(|record| name_kms_grant(record, grant, kms_id));
                let id = grant.id.to_string();
                let obstacle = match error.is_refusal() {
                    true => Obstacle::Refused,
                    false => Obstacle::Outage,
                };
                let postponed = store.postpone_kms_grant(&id, Duration::ZERO, obstacle);
                postponed.await?;
                Err(Error::of_kms(error, key.owner()))
            }
        }
    }
}

impl Broker {
    pub(super) fn delegation(&self) -> Result<&dyn Delegation, Error> {
        self.delegation
            .as_deref()
            .ok_or(Error::KmsGrantsUnsupported)
    }
}

/// The KMS key that grants of `key` are made of: the one that wraps its new data keys.
fn kms_key(key: &Key) -> Result<&Arn, Error> {
    let kms = key.kms().primary().generator();
    kms.arn().ok_or(Error::KmsGrantsUnsupported)
}

fn lifetime(creation: &KmsCreation, key: &Key) -> Result<Duration, Error> {
    let ceiling = key.grant_ceiling().min(Grant::LONGEST_LIFETIME);
    let usual = Grant::USUAL_LIFETIME.min(ceiling);
    let lifetime = creation.lifetime.unwrap_or(usual);
    if lifetime > ceiling {
        let why = format!(
            "{}s is over the limit of {}s",
            lifetime.as_secs(),
            ceiling.as_secs()
        );
        return Err(invalid("lifetime_seconds", why));
    }
    Ok(lifetime)
}

/// The pairs that bind a grant of `key`: always those that the key itself sets, so that it is good
/// for no other tenant's contexts.
fn bound(
    key: &Key,
    constraint: Option<&Constraint>,
) -> Result<(Matching, EncryptionContext), Error> {
    let refused = |why: String| invalid("constraints", why);
    if let Some(constraint) = constraint {
        constraint
            .check(key)
            .map_err(|unfit| refused(unfit.to_string()))?;
    }
    let matching = match constraint.map(Constraint::kind) {
        Some(Kind::Equals) => Matching::Equals,
        Some(Kind::Subset) | None => Matching::Subset,
    };
    let own = constraint.into_iter().flat_map(|one| one.pairs().pairs());
    let pairs: Vec<(&str, &str)> = key.context().chain(own).collect();
    if pairs.len() > Constraint::MAX_PAIRS {
        let (count, most) = (pairs.len(), Constraint::MAX_PAIRS);
        return Err(refused(format!(
            "{count} pairs with the key's own are more than {most}"
        )));
    }
    let long = |(_, value): &&(&str, &str)| value.chars().count() > Constraint::MAX_VALUE;
    if let Some((name, _)) = pairs.iter().find(long) {
        return Err(refused(format!(
            "the value of {name} is too long for a grant of KMS"
        )));
    }
    let context = EncryptionContext::new(pairs).map_err(|error| refused(error.to_string()))?;
    Ok((matching, context))
}

fn refused(undelegated: Undelegated, key: &Key) -> Error {
    match undelegated {
        Undelegated::Full => Error::GrantsExhausted {
            limit: MOST_OF_A_KEY,
        },
        Undelegated::Principal => {
            let why = "KMS knows no such principal".to_owned();
            invalid("grantee_principal", why)
        }
        Undelegated::Refused(error) | Undelegated::Unheard(error) => {
            Error::of_kms(error, key.owner())
        }
    }
}

/// What a grant is to be, for the record.
fn said(creation: &KmsCreation) -> audit::Terms {
    let constraint = creation.constraint.as_ref();
    let names = constraint.into_iter().flat_map(|one| one.pairs().pairs());
    audit::Terms {
        grantee_principal: creation.grantee.to_string(),
        retiring_principal: None,
        operations: creation.operations.iter().map(|one| one.label()).collect(),
        constraint: constraint.map(constraint_label),
        encryption_context_keys: names.map(|(name, _)| name.to_owned()).collect(),
        name: None,
        max_uses: None,
    }
}

/// Why the grants of KMS of the key `name` are to end, if they are to end with it, and how old they
/// are at least.
pub(super) fn withdrawal(directory: &Directory, name: &KeyName) -> Option<(Ending, Duration)> {
    // A tenant that is not known may not be known yet.
    match directory.tenant(&name.tenant)?.standing() {
        Standing::Suspended => Some((Ending::Suspended, Duration::ZERO)),
        Standing::Active if directory.key(name).is_none() => Some((Ending::Removed, HEARSAY)),
        Standing::Active => None,
    }
}

/// How long a key may be known to the broker that makes a grant of it, and not here yet: more than
/// ten times as long as word of it takes.
const HEARSAY: Duration = Duration::from_secs(10);
/// How long a revocation has before others see to what it has begun: longer than KMS takes.
const HEAD_START: Duration = Duration::from_secs(5);
