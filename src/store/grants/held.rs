//! What one principal has of one key: read at the moment of use, by who knows nothing of it yet.

use std::collections::HashMap;

use crate::grants::Grant;
use crate::identity::Principal;
use crate::identity::Shape;
use crate::name::KeyName;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Value;
use crate::store::grants::Head;
use crate::store::grants::find;
use crate::store::grants::row;
use crate::store::grants::row::moment;
use crate::store::grants::row::select;
use crate::store::pool::Lease;
use crate::store::tenants::latest;
use crate::store::within;

impl Store {
    /// Has `take` hear of the living grants of `key` that are for `principal`, and before each of
    /// those that it rests on: all as they are at one moment.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Slow`] where there are more than a use can wait for.
    pub async fn grants_held(
        &self,
        key: &KeyName,
        principal: &Principal,
        take: impl FnMut(&Grant) + Send,
    ) -> Result<Head, Error> {
        within(async {
            let mut lease = self.reader().await?;
            lease.begin_reading().await?;
            let number = latest(&mut lease).await?;
            let now = lease.now().await?;
            let (tenant, id) = (key.tenant.as_str(), key.key.as_str());
            let of_key = [
                Value::Text(tenant),
                Value::Text(id),
                moment(now),
                Value::Number(MOST),
            ];
            let texts = [Shape::Exact, Shape::Uid, Shape::Gid].map(|shape| text(shape, principal));
            let named = texts.each_ref().map(|text| Value::Text(text));
            let mut grants = Vec::new();
            living(
                &mut lease,
                NAMED,
                &[&of_key[..], &named].concat(),
                &mut grants,
            )
            .await?;
            living(&mut lease, PATTERNED, &of_key, &mut grants).await?;
            grants.retain(|grant| grant.wanted.terms.grantee.matches(principal));
            tell(&mut lease, grants, take).await?;
            lease.run("COMMIT", &[]).await?;
            lease.give_back();
            Ok(Head { number, now })
        })
        .await
    }

    /// How many grants of `key` live.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn count_grants(&self, key: &KeyName) -> Result<usize, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let now = lease.now().await?;
            let (tenant, id) = (key.tenant.as_str(), key.key.as_str());
            let values = [Value::Text(tenant), Value::Text(id), moment(now)];
            let row = lease.row(COUNT, &values).await?;
            let count = row.ok_or(Error::Damaged("grants"))?.number(0)?;
            lease.give_back();
            Ok(usize::try_from(count).unwrap_or(usize::MAX))
        })
        .await
    }
}

/// Adds the grants that `statement` yields; damaged rows are none.
async fn living(
    lease: &mut Lease,
    statement: &'static str,
    values: &[Value<'_>],
    grants: &mut Vec<Grant>,
) -> Result<(), Error> {
    let mut rows = 0;
    lease
        .each(statement, values, |row| {
            rows += 1;
            grants.extend(row::read(&row).ok());
            Ok(())
        })
        .await?;
    // Among those that are left out may be the one that counts.
    if rows < MOST {
        Ok(())
    } else {
        Err(Error::Slow)
    }
}

/// Has `take` hear of `grants`, and first of what they rest on, living or not.
async fn tell(
    lease: &mut Lease,
    grants: Vec<Grant>,
    mut take: impl FnMut(&Grant),
) -> Result<(), Error> {
    let mut known: HashMap<_, _> = grants.into_iter().map(|grant| (grant.id, grant)).collect();
    let ancestors = known.values().flat_map(|grant| &*grant.ancestors);
    let ancestors: Vec<_> = ancestors
        .map(|one| one.id)
        .filter(|id| !known.contains_key(id))
        .collect();
    let key = known.values().next().map(|grant| grant.wanted.key.clone());
    for id in ancestors {
        if let Some(key) = &key
            && let Some(grant) = find(lease, key, &id).await?
        {
            known.insert(id, grant);
        }
    }
    let mut ordered: Vec<&Grant> = known.values().collect();
    ordered.sort_by_key(|grant| grant.ancestors.len());
    ordered.into_iter().for_each(&mut take);
    Ok(())
}

/// The pattern of `shape` that means `principal`; one that means nobody if there is none.
fn text(shape: Shape, principal: &Principal) -> String {
    let mut text = Vec::new();
    shape.write(principal, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

const NAMED: &str = select!(
    "tenant = $1 AND key_id = $2 AND ending = 0 AND expires > $3 AND grantee IN ($5, $6, $7)
        LIMIT $4"
);
const PATTERNED: &str = select!(
    "tenant = $1 AND key_id = $2 AND ending = 0 AND expires > $3
        AND grantee <> replace(grantee, '*', '') LIMIT $4"
);
const COUNT: &str = "
    SELECT COUNT(*) FROM grants WHERE tenant = $1 AND key_id = $2 AND ending = 0 AND expires > $3";
/// Of one statement: more take longer than a use should.
const MOST: u64 = 4_096;
