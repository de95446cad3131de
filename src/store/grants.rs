//! Grants: made, renewed and ended each in a transaction of its own, read by key, by who may retire
//! them, and by what has changed. Every statement names the tenant.

mod held;
mod news;
mod row;

use std::time::Duration;

use jiff::Timestamp;

use crate::grants::Ancestor;
use crate::grants::Ending;
use crate::grants::Excess;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Unfit;
use crate::grants::Wanted;
use crate::identity::Principal;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Connection;
use crate::store::engine::Value;
use crate::store::pool::Lease;
use crate::store::within;

pub use news::Head;
pub use news::Told;

use row::ending;
use row::moment;
use row::select;

/// By what right somebody makes a grant.
pub enum Right {
    /// As an administrator of the key.
    Administrator,
    /// By one of these grants, the first that covers it.
    Grants(Vec<Id>),
}

/// A grant as a change has left it.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The grant.
    pub grant: Grant,
    /// The number of the change, the latest of this grant.
    pub change: u64,
}

/// Why a grant was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmade {
    /// None of the grants that the right would come from lives.
    Denied,
    /// A living grant of this creator and key has the name, and is another one.
    NameTaken,
    /// It cannot be as it is wanted.
    Unfit(Unfit),
}

/// Why a grant was not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrenewed {
    /// It does not live, or not for whom.
    Denied,
    /// It says that it is not to be.
    NotRenewable,
}

/// Which grants to list.
pub struct Filter<'a> {
    /// Those after this id.
    pub after: Option<Id>,
    /// Only this one.
    pub id: Option<Id>,
    /// Only those with this grantee, as a pattern is written; empty for all.
    pub grantee: &'a str,
    /// Most of them.
    pub most: usize,
}

impl Store {
    /// Makes the grant `id` that `creator` wants under a key whose grants live for `ceiling` at
    /// most, or finds the one of that name.
    ///
    /// # Errors
    /// [`Error`], and [`Unmade`].
    pub async fn create_grant(
        &self,
        wanted: &Wanted,
        id: Id,
        creator: &Principal,
        right: &Right,
        ceiling: Duration,
    ) -> Result<Result<Changed, Unmade>, Error> {
        within(async {
            let (mut lease, change) = self.writer().await?;
            let now = lease.now().await?;
            let made = make(&mut lease, wanted, id, creator, right, ceiling, now).await?;
            let grant = match made {
                Ok(Making::New(grant)) => Grant { change, ..grant },
                Ok(Making::Known(changed)) => {
                    undo(lease).await?;
                    return Ok(Ok(changed));
                }
                Err(unmade) => {
                    undo(lease).await?;
                    return Ok(Err(unmade));
                }
            };
            row::insert(&mut lease, &grant).await?;
            self.commit(lease, change).await?;
            Ok(Ok(Changed { grant, change }))
        })
        .await
    }

    /// Has the grant `id` of `key` live longer, for `principal`.
    ///
    /// # Errors
    /// [`Error`], and [`Unrenewed`].
    pub async fn renew_grant(
        &self,
        key: &KeyName,
        id: &Id,
        principal: &Principal,
        lifetime: Option<Duration>,
    ) -> Result<Result<Changed, Unrenewed>, Error> {
        within(async {
            let (mut lease, change) = self.writer().await?;
            let now = lease.now().await?;
            let known = find(&mut lease, key, id).await?;
            let Some(mut grant) = known.filter(|grant| may_renew(grant, principal)) else {
                undo(lease).await?;
                return Ok(Err(Unrenewed::Denied));
            };
            let Some(most) = rests_until(&mut lease, &grant, now).await? else {
                undo(lease).await?;
                return Ok(Err(Unrenewed::Denied));
            };
            let Some(expires) = grant.renewed(principal, lifetime, now) else {
                undo(lease).await?;
                return Ok(Err(Unrenewed::NotRenewable));
            };
            grant.expires = expires.min(most).max(grant.expires);
            let id = id.to_string();
            let values = [
                Value::Text(key.tenant.as_str()),
                Value::Text(key.key.as_str()),
                Value::Text(&id),
                moment(grant.expires),
                Value::Number(change),
            ];
            lease.run(RENEW, &values).await?;
            self.commit(lease, change).await?;
            Ok(Ok(Changed { grant, change }))
        })
        .await
    }

    /// Ends the grant `id` of `key`; nothing if it is over already.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn end_grant(&self, key: &KeyName, id: &Id, how: Ending) -> Result<(), Error> {
        within(async {
            let (mut lease, change) = self.writer().await?;
            let id = id.to_string();
            let values = [
                Value::Text(key.tenant.as_str()),
                Value::Text(key.key.as_str()),
                Value::Text(&id),
                Value::Number(ending(Some(how))),
                Value::Number(change),
            ];
            match lease.row(END, &values).await? {
                Some(_) => self.commit(lease, change).await,
                None => undo(lease).await,
            }
        })
        .await
    }

    /// The grant `id` of `key`, living or not.
    ///
    /// # Errors
    /// [`Error`]. A damaged row is none.
    pub async fn grant(&self, key: &KeyName, id: &Id) -> Result<Option<Grant>, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let grant = find(&mut lease, key, id).await?;
            lease.give_back();
            Ok(grant)
        })
        .await
    }

    /// Whether the grant `id` of `key` lives now, and all that it rests on: what a use needs that
    /// must not be late. Takes `uses` of those that it may have, all or none.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn confirm_grant(&self, key: &KeyName, id: &Id, uses: u64) -> Result<bool, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let now = lease.now().await?;
            let grant = find(&mut lease, key, id).await?;
            let lives = match &grant {
                Some(grant) => rests_until(&mut lease, grant, now).await?.is_some(),
                None => false,
            };
            lease.give_back();
            let Some(grant) = grant.filter(|_| lives) else {
                return Ok(false);
            };
            if grant.wanted.max_uses.is_none() {
                return Ok(true);
            }
            self.prepare().await?;
            let mut lease = self.writing.take().await?;
            let id = id.to_string();
            let values = [
                Value::Text(key.tenant.as_str()),
                Value::Text(key.key.as_str()),
                Value::Text(&id),
                moment(now),
                Value::Number(uses),
            ];
            let taken = lease.row(USE, &values).await?;
            lease.give_back();
            Ok(taken.is_some())
        })
        .await
    }

    /// The living grants of `key`, in the order of their ids.
    ///
    /// # Errors
    /// [`Error`]. Damaged rows are left out.
    pub async fn grants_of_key(
        &self,
        key: &KeyName,
        filter: &Filter<'_>,
    ) -> Result<Vec<Grant>, Error> {
        let only = filter.id.map(|id| id.to_string()).unwrap_or_default();
        let values = [
            Value::Text(key.tenant.as_str()),
            Value::Text(key.key.as_str()),
            Value::Text(filter.grantee),
            Value::Text(&only),
        ];
        self.list(LIST, values, filter).await
    }

    /// The living grants of keys of `tenant` whose retiring principal is `principal`, in the order of
    /// their ids.
    ///
    /// # Errors
    /// [`Error`]. Damaged rows are left out.
    pub async fn retirable_grants(
        &self,
        tenant: &TenantId,
        principal: &Principal,
        filter: &Filter<'_>,
    ) -> Result<Vec<Grant>, Error> {
        let only = filter.id.map(|id| id.to_string()).unwrap_or_default();
        let values = [
            Value::Text(tenant.as_str()),
            Value::Text(principal.as_str()),
            Value::Text(filter.grantee),
            Value::Text(&only),
        ];
        self.list(RETIRABLE, values, filter).await
    }

    /// Forgets grants that were over a day ago: no replica can know of them any more.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn forget_grants(&self) -> Result<(), Error> {
        within(async {
            self.prepare().await?;
            let mut lease = self.writing.take().await?;
            let now = lease.now().await?;
            let day = now.saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
            lease.run(FORGET, &[moment(day)]).await?;
            lease.give_back();
            Ok(())
        })
        .await
    }

    async fn list(
        &self,
        statement: &'static str,
        [a, b, c, d]: [Value<'_>; 4],
        filter: &Filter<'_>,
    ) -> Result<Vec<Grant>, Error> {
        let after = filter.after.map(|id| id.to_string()).unwrap_or_default();
        let most = u64::try_from(filter.most).unwrap_or(u64::MAX);
        within(async {
            let mut lease = self.reader().await?;
            let now = lease.now().await?;
            let mut grants = Vec::new();
            let values = [
                a,
                b,
                c,
                d,
                Value::Text(&after),
                moment(now),
                Value::Number(most),
            ];
            lease
                .each(statement, &values, |row| {
                    grants.extend(row::read(&row).ok());
                    Ok(())
                })
                .await?;
            lease.give_back();
            Ok(grants)
        })
        .await
    }
}

enum Making {
    Known(Changed),
    New(Grant),
}

async fn make(
    lease: &mut Lease,
    wanted: &Wanted,
    id: Id,
    creator: &Principal,
    right: &Right,
    ceiling: Duration,
    now: Timestamp,
) -> Result<Result<Making, Unmade>, Error> {
    // A right comes first: who lost it learns nothing of names.
    let mut made = match right {
        Right::Administrator => {
            Grant::make(wanted.clone(), id, creator, None, ceiling, now).map_err(Unmade::Unfit)
        }
        Right::Grants(_) => Err(Unmade::Denied),
    };
    if let Right::Grants(candidates) = right {
        for candidate in candidates {
            let Some(parent) = find(lease, &wanted.key, candidate).await? else {
                continue;
            };
            let hers = parent.wanted.terms.grantee.matches(creator);
            if !hers || rests_until(lease, &parent, now).await?.is_none() {
                continue;
            }
            let making = Grant::make(wanted.clone(), id, creator, Some(&parent), ceiling, now);
            match making {
                Ok(grant) => {
                    made = Ok(grant);
                    break;
                }
                // A grant that does not allow it says nothing: it is none of those in question.
                Err(Unfit::Excess(Excess::Delegation)) => {}
                Err(unfit) => made = Err(Unmade::Unfit(unfit)),
            }
        }
    }
    if let (Some(name), Ok(_)) = (&wanted.name, &made) {
        let values = [
            Value::Text(wanted.key.tenant.as_str()),
            Value::Text(wanted.key.key.as_str()),
            Value::Text(creator.as_str()),
            Value::Text(name.as_str()),
            moment(now),
        ];
        let mut named = Vec::new();
        lease
            .each(NAMED, &values, |row| {
                named.push((row::read(&row)?, row::changed(&row)?));
                Ok(())
            })
            .await?;
        for (grant, change) in named {
            if rests_until(lease, &grant, now).await?.is_none() {
                continue;
            }
            return Ok(match grant.wanted == *wanted {
                true => Ok(Making::Known(Changed { grant, change })),
                false => Err(Unmade::NameTaken),
            });
        }
    }
    Ok(made.map(Making::New))
}

fn may_renew(grant: &Grant, principal: &Principal) -> bool {
    grant.creator == *principal || grant.wanted.terms.grantee.matches(principal)
}

async fn undo(mut lease: Lease) -> Result<(), Error> {
    lease.run("ROLLBACK", &[]).await?;
    lease.give_back();
    Ok(())
}

async fn find(connection: &mut Connection, key: &KeyName, id: &Id) -> Result<Option<Grant>, Error> {
    let id = id.to_string();
    let values = [
        Value::Text(key.tenant.as_str()),
        Value::Text(key.key.as_str()),
        Value::Text(&id),
    ];
    let row = connection.row(FIND, &values).await?;
    Ok(row.and_then(|row| row::read(&row).ok()))
}

/// Until when all live that `grant` rests on; none if it is over, or one of them.
async fn rests_until(
    connection: &mut Connection,
    grant: &Grant,
    now: Timestamp,
) -> Result<Option<Timestamp>, Error> {
    if grant.check(now).is_err() {
        return Ok(None);
    }
    let mut until = Timestamp::MAX;
    for Ancestor { id, .. } in &*grant.ancestors {
        match find(connection, &grant.wanted.key, id).await? {
            Some(one) if one.check(now).is_ok() => until = until.min(one.expires),
            Some(_) | None => return Ok(None),
        }
    }
    Ok(Some(until))
}

const FIND: &str = select!("tenant = $1 AND key_id = $2 AND id = $3");
const NAMED: &str = select!(
    "tenant = $1 AND key_id = $2 AND creator = $3 AND name = $4 AND ending = 0 AND expires > $5"
);
const LIST: &str = select!(
    "tenant = $1 AND key_id = $2 AND ($3 = '' OR grantee = $3) AND ($4 = '' OR id = $4)
        AND id > $5 AND ending = 0 AND expires > $6 ORDER BY id LIMIT $7"
);
const RETIRABLE: &str = select!(
    "tenant = $1 AND retiring = $2 AND ($3 = '' OR grantee = $3) AND ($4 = '' OR id = $4)
        AND id > $5 AND ending = 0 AND expires > $6 ORDER BY id LIMIT $7"
);
const RENEW: &str = "
    UPDATE grants SET expires = $4, changed = $5
    WHERE tenant = $1 AND key_id = $2 AND id = $3";
const END: &str = "
    UPDATE grants SET ending = $4, changed = $5
    WHERE tenant = $1 AND key_id = $2 AND id = $3 AND ending = 0 RETURNING id";
const USE: &str = "
    UPDATE grants SET uses = uses + $5
    WHERE tenant = $1 AND key_id = $2 AND id = $3 AND ending = 0 AND expires > $4
        AND uses + $5 <= max_uses
    RETURNING uses";
const FORGET: &str = "DELETE FROM grants WHERE expires < $1";
/// For how long a grant that is over stands there: longer than any lives.
const KEPT: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests;
