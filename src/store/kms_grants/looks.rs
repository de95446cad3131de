//! What the store says of grants of AWS KMS.

use std::time::Duration;

use jiff::Timestamp;

use crate::grants::Id;
use crate::name::KeyName;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Value;
use crate::store::kms_grants::ORIGIN;
use crate::store::kms_grants::SETTLED;
use crate::store::kms_grants::TURN;
use crate::store::kms_grants::earlier;
use crate::store::kms_grants::limit;
use crate::store::kms_grants::moment;
use crate::store::kms_grants::prefix;
use crate::store::kms_grants::row::DAMAGED;
use crate::store::kms_grants::row::KmsGrant;
use crate::store::kms_grants::row::key;
use crate::store::kms_grants::row::read;
use crate::store::kms_grants::row::select;
use crate::store::within;

/// What is to be done about grants that are due.
#[derive(Debug, Default)]
pub struct Due {
    /// Those whose turn it is: first those that have waited for it longest.
    pub grants: Vec<KmsGrant>,
    /// The ids of rows among them that say nothing of use.
    pub damaged: Vec<String>,
    /// How many should have ended a minute ago and have not. One that KMS may not know yet is none of
    /// them.
    pub overdue: u64,
    /// How many beside these KMS refuses to end.
    pub refused: u64,
    /// What time it is.
    pub now: Timestamp,
}

impl Store {
    /// Whether there is any grant that is not over.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn has_kms_grants(&self) -> Result<bool, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let row = lease.row(ANY, &[]).await?;
            let any = row.ok_or(DAMAGED)?.number(0)? > 0;
            lease.give_back();
            Ok(any)
        })
        .await
    }

    /// The grants that are due, at most `most`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn due_kms_grants(&self, most: usize) -> Result<Due, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let now = lease.now().await?;
            let mut due = Due {
                now,
                ..Due::default()
            };
            let late = earlier(now, LATE);
            let known = late.saturating_sub(SETTLED).unwrap_or(Timestamp::MIN);
            let row = lease.row(OVERDUE, &[moment(late), moment(known)]).await?;
            let row = row.ok_or(DAMAGED)?;
            (due.overdue, due.refused) = (row.number(0)?, row.number(1)?);
            let values = [moment(now), limit(most)];
            lease
                .each(DUE, &values, |row| {
                    match read(&row) {
                        Ok(grant) => due.grants.push(grant),
                        Err(_) => due.damaged.extend(row.text(0).ok().flatten()),
                    }
                    Ok(())
                })
                .await?;
            lease.give_back();
            Ok(due)
        })
        .await
    }

    /// The keys that have grants which are not due yet.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn keys_with_kms_grants(&self) -> Result<Vec<KeyName>, Error> {
        self.keys(KEYS).await
    }

    /// Those of them whose tenants were removed. To a broker such a tenant looks like one that it has
    /// not heard of yet; the store knows.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn removed_keys_with_kms_grants(&self) -> Result<Vec<KeyName>, Error> {
        self.keys(REMOVED_KEYS).await
    }

    async fn keys(&self, statement: &'static str) -> Result<Vec<KeyName>, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let now = lease.now().await?;
            let mut keys = Vec::new();
            lease
                .each(statement, &[moment(now)], |row| {
                    keys.extend(key(&row, 0).ok());
                    Ok(())
                })
                .await?;
            lease.give_back();
            Ok(keys)
        })
        .await
    }

    /// The grants of `key` that are not over and that KMS has made, after the id `after`, at most
    /// `most`, in the order of their ids.
    ///
    /// # Errors
    /// [`Error`]. Damaged rows are left out.
    pub async fn kms_grants_of_key(
        &self,
        key: &KeyName,
        after: Option<Id>,
        most: usize,
    ) -> Result<Vec<KmsGrant>, Error> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        within(async {
            let mut lease = self.reader().await?;
            let mut grants = Vec::new();
            let values = [
                Value::Text(key.tenant.as_str()),
                Value::Text(key.key.as_str()),
                Value::Text(&after),
                limit(most),
            ];
            lease
                .each(LIST, &values, |row| {
                    grants.extend(read(&row).ok());
                    Ok(())
                })
                .await?;
            lease.give_back();
            Ok(grants)
        })
        .await
    }

    /// The grant `id` of `key`, also one that was over less than a day ago.
    ///
    /// # Errors
    /// [`Error`]. A damaged row is none.
    pub async fn kms_grant(&self, key: &KeyName, id: &Id) -> Result<Option<KmsGrant>, Error> {
        let id = id.to_string();
        within(async {
            let mut lease = self.reader().await?;
            let values = [
                Value::Text(key.tenant.as_str()),
                Value::Text(key.key.as_str()),
                Value::Text(&id),
            ];
            let row = lease.row(FIND, &values).await?;
            lease.give_back();
            Ok(row.and_then(|row| read(&row).ok()))
        })
        .await
    }

    /// What the names in KMS of this store's grants begin with, and of its copies'; none before the
    /// first grant.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn kms_grants_prefix(&self) -> Result<Option<String>, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let row = lease.row(ORIGIN, &[]).await?;
            lease.give_back();
            let origin = row.map(|row| row.text(0)?.ok_or(DAMAGED)).transpose()?;
            Ok(origin.map(|origin| prefix(&origin)))
        })
        .await
    }

    /// Whether there is a grant of this `name` in KMS, or was less than a day ago.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn knows_kms_grant(&self, name: &str) -> Result<bool, Error> {
        // By the id, which has an index.
        let id = name.rsplit('-').next().unwrap_or_default();
        within(async {
            let mut lease = self.reader().await?;
            let values = [Value::Text(id), Value::Text(name)];
            let row = lease.row(KNOWN, &values).await?;
            let count = row.ok_or(DAMAGED)?.number(0)?;
            lease.give_back();
            Ok(count > 0)
        })
        .await
    }

    /// Whether `holder` has the turn to end grants for a while yet, or another has it; none if it is
    /// to be taken.
    pub(super) async fn has_kms_grants_turn(&self, holder: &str) -> Result<Option<bool>, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let now = lease.now().await?;
            let values = [
                Value::Text(holder),
                moment(now),
                moment(now.saturating_add(TURN / 2).unwrap_or(Timestamp::MAX)),
            ];
            let row = lease.row(TURNS, &values).await?.ok_or(DAMAGED)?;
            let (mine, anothers) = (row.number(0)? > 0, row.number(1)? > 0);
            lease.give_back();
            Ok((mine || anothers).then_some(mine))
        })
        .await
    }
}

const ANY: &str = "
    SELECT count(*) FROM (SELECT 1 FROM kms_grants WHERE over = 0 LIMIT 1) AS one";
const OVERDUE: &str = "
    SELECT count(CASE WHEN obstacle <> 'refused' THEN 1 END),
        count(CASE WHEN obstacle = 'refused' THEN 1 END)
    FROM kms_grants
    WHERE over = 0 AND due <= $1 AND (created <= $2 OR (kms_id <> '' AND obstacle <> 'unknown'))";
// What was postponed does not keep from its turn what was not.
const DUE: &str =
    select!("over = 0 AND due <= $1 AND retry <= $1 ORDER BY retry, due, id LIMIT $2");
const KEYS: &str = "SELECT DISTINCT tenant, key_id FROM kms_grants WHERE over = 0 AND due > $1";
const REMOVED_KEYS: &str = "
    SELECT DISTINCT tenant, key_id FROM kms_grants
    WHERE over = 0 AND due > $1 AND EXISTS
        (SELECT 1 FROM tenants WHERE tenants.id = kms_grants.tenant AND document IS NULL)";
const LIST: &str = select!(
    "tenant = $1 AND key_id = $2 AND id > $3 AND over = 0 AND kms_id <> '' ORDER BY id LIMIT $4"
);
const FIND: &str = select!("tenant = $1 AND key_id = $2 AND id = $3");
const KNOWN: &str = "SELECT count(*) FROM kms_grants WHERE id = $1 AND name = $2";
const TURNS: &str = "
    SELECT count(CASE WHEN holder = $1 AND until > $3 THEN 1 END),
        count(CASE WHEN holder <> $1 AND until > $2 THEN 1 END)
    FROM kms_grants_turn";

/// A grant that ends no later than this after it was due is in time.
const LATE: Duration = Duration::from_secs(60);
