//! Grants of AWS KMS that the broker has made: written down before KMS is asked, and kept until KMS
//! has them no more. Whoever dies between the two leaves a row by which the grant is found.

mod row;

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::crypto::random::jittered;
use crate::grants::Id;
use crate::name::KeyName;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Value;
use crate::store::within;

use row::DAMAGED;
use row::key;
use row::read;
use row::select;

pub use row::Ending;
pub use row::KmsGrant;

/// What is to be done about grants that are to end.
#[derive(Debug, Default)]
pub struct Due {
    /// Those whose turn it is, the longest overdue first.
    pub grants: Vec<KmsGrant>,
    /// How many should have ended [`LATE`] ago and have not.
    pub overdue: u64,
    /// What time it is.
    pub now: Timestamp,
}

impl Store {
    /// Writes down that a grant is about to be made; `id`, key and all else are `grant`'s, its name
    /// and its times the store's: it lives for `lifetime`. Unless [`Store::complete_kms_grant`] follows within
    /// [`PATIENCE`], it is due.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn intend_kms_grant(
        &self,
        grant: KmsGrant,
        lifetime: Duration,
    ) -> Result<KmsGrant, Error> {
        within(async {
            self.prepare().await?;
            let mut lease = self.writing.take().await?;
            let now = lease.now().await?;
            let origin = Uuid::new_v4().simple().to_string();
            lease.run(ORIGINATE, &[Value::Text(&origin)]).await?;
            let row = lease.row(ORIGIN, &[]).await?.ok_or(DAMAGED)?;
            let prefix = prefix(&row.text(0)?.ok_or(DAMAGED)?);
            let grant = KmsGrant {
                name: format!("{prefix}{}", grant.id),
                created: now,
                expires: later(now, lifetime),
                ..grant
            };
            let id = grant.id.to_string();
            let values = [
                Value::Text(&id),
                Value::Text(grant.key.tenant.as_str()),
                Value::Text(grant.key.key.as_str()),
                Value::Text(grant.arn.as_str()),
                Value::Text(grant.grantee.as_str()),
                Value::Number(grant.operations.bits().into()),
                Value::Text(grant.creator.as_str()),
                moment(now),
                moment(grant.expires),
                moment(later(now, PATIENCE)),
                Value::Text(&grant.name),
            ];
            lease.run(INSERT, &values).await?;
            lease.give_back();
            Ok(grant)
        })
        .await
    }

    /// Writes down that KMS has made the grant `id`. False if it was given up meanwhile: then it is
    /// to be ended at once.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn complete_kms_grant(&self, id: &Id, kms_id: &str) -> Result<bool, Error> {
        let id = id.to_string();
        let done = self.kms_grants(COMPLETE, |now| {
            vec![Value::Text(&id), Value::Text(kms_id), moment(now)]
        });
        Ok(done.await? == 1)
    }

    /// Has the grant `id` of `key` be due now, because it is revoked; whoever has it so ends it
    /// himself within `head_start`, before others see to it. False if there is none that lives.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn end_kms_grant(
        &self,
        key: &KeyName,
        id: &Id,
        head_start: Duration,
    ) -> Result<bool, Error> {
        let id = id.to_string();
        let done = self.kms_grants(END, |now| {
            vec![
                Value::Text(key.tenant.as_str()),
                Value::Text(key.key.as_str()),
                Value::Text(&id),
                moment(now),
                Value::Text(Ending::Revoked.label()),
                moment(later(now, head_start)),
            ]
        });
        Ok(done.await? == 1)
    }

    /// Has the living grants of `key` that were made at least `age` ago be due now, because of
    /// `ending`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn end_kms_grants(
        &self,
        key: &KeyName,
        ending: Ending,
        age: Duration,
    ) -> Result<(), Error> {
        let done = self.kms_grants(END_ALL, |now| {
            vec![
                Value::Text(key.tenant.as_str()),
                Value::Text(key.key.as_str()),
                moment(now),
                Value::Text(ending.label()),
                moment(now.saturating_sub(age).unwrap_or(Timestamp::MIN)),
            ]
        });
        done.await.map(drop)
    }

    /// Writes down that KMS has the grant `id` no more.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn kms_grant_is_over(&self, id: &Id) -> Result<(), Error> {
        let id = id.to_string();
        let done = self.kms_grants(OVER, |_| vec![Value::Text(&id)]);
        done.await.map(drop)
    }

    /// Puts off the end of the grant `id`, which has failed, for `pause` or up to half as much more.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn postpone_kms_grant(&self, id: &Id, pause: Duration) -> Result<(), Error> {
        let id = id.to_string();
        let done = self.kms_grants(POSTPONE, |now| {
            vec![Value::Text(&id), moment(later(now, jittered(pause)))]
        });
        done.await.map(drop)
    }

    /// Takes or keeps the turn to end grants for `holder`, for [`TURN`]. False while it is another's.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn take_kms_grants_turn(&self, holder: &str) -> Result<bool, Error> {
        let done = self.kms_grants(TAKE, |now| {
            vec![Value::Text(holder), moment(later(now, TURN)), moment(now)]
        });
        Ok(done.await? == 1)
    }

    /// The living grants that are due, at most `most`.
    ///
    /// # Errors
    /// [`Error`]. Damaged rows are left out, and logged.
    pub async fn due_kms_grants(&self, most: usize) -> Result<Due, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let now = lease.now().await?;
            let mut due = Due {
                now,
                ..Due::default()
            };
            let late = now.saturating_sub(LATE).unwrap_or(Timestamp::MIN);
            let row = lease.row(OVERDUE, &[moment(late)]).await?;
            due.overdue = row.ok_or(DAMAGED)?.number(0)?;
            let values = [moment(now), limit(most)];
            lease
                .each(DUE, &values, |row| {
                    match read(&row) {
                        Ok(grant) => due.grants.push(grant),
                        Err(_) => tracing::error!(
                            id = row.text(0).ok().flatten(),
                            "a row of kms_grants is damaged: end that grant by hand"
                        ),
                    }
                    Ok(())
                })
                .await?;
            lease.give_back();
            Ok(due)
        })
        .await
    }

    /// The keys that have living grants.
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
            let mut keys = Vec::new();
            lease
                .each(statement, &[], |row| {
                    keys.extend(key(&row, 0).ok());
                    Ok(())
                })
                .await?;
            lease.give_back();
            Ok(keys)
        })
        .await
    }

    /// The living grants of `key` after the id `after`, at most `most`, in the order of their ids.
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

    /// Forgets grants that were over a day ago.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn forget_kms_grants(&self) -> Result<(), Error> {
        let done = self.kms_grants(FORGET, |now| {
            let day = now.saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
            vec![moment(day)]
        });
        done.await.map(drop)
    }

    /// Runs one `statement` that changes rows; how many it did.
    async fn kms_grants<'a>(
        &self,
        statement: &'static str,
        values: impl FnOnce(Timestamp) -> Vec<Value<'a>>,
    ) -> Result<u64, Error> {
        within(async {
            self.prepare().await?;
            let mut lease = self.writing.take().await?;
            let now = lease.now().await?;
            let changed = lease.run(statement, &values(now)).await?;
            lease.give_back();
            Ok(changed)
        })
        .await
    }
}

fn prefix(origin: &str) -> String {
    format!("keybroker-{origin}-")
}

fn moment(time: Timestamp) -> Value<'static> {
    Value::Number(u64::try_from(time.as_millisecond()).unwrap_or_default())
}

fn later(time: Timestamp, span: Duration) -> Timestamp {
    time.saturating_add(span).unwrap_or(Timestamp::MAX)
}

fn limit(most: usize) -> Value<'static> {
    Value::Number(u64::try_from(most).unwrap_or(u64::MAX))
}

const INSERT: &str = "
    INSERT INTO kms_grants (id, tenant, key_id, arn, grantee, operations, creator, created,
        expires, kms_id, due, retry, over, ending, name)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '', $10, 0, 0, '', $11)";
const ORIGINATE: &str = "INSERT INTO kms_grants_origin VALUES (1, $1) ON CONFLICT DO NOTHING";
const ORIGIN: &str = "SELECT origin FROM kms_grants_origin";
const KNOWN: &str = "SELECT count(*) FROM kms_grants WHERE id = $1 AND name = $2";
// What is to end already still is.
const COMPLETE: &str = "
    UPDATE kms_grants SET kms_id = $2, due = CASE WHEN due <= $3 THEN due ELSE expires END
    WHERE id = $1 AND kms_id = '' AND over = 0";
const END: &str = "
    UPDATE kms_grants
    SET due = CASE WHEN due <= $4 THEN due ELSE $4 END,
        ending = CASE WHEN due <= $4 THEN ending ELSE $5 END,
        retry = $6
    WHERE tenant = $1 AND key_id = $2 AND id = $3 AND over = 0";
const END_ALL: &str = "
    UPDATE kms_grants SET due = $3, ending = $4
    WHERE tenant = $1 AND key_id = $2 AND over = 0 AND due > $3 AND created <= $5";
const OVER: &str = "UPDATE kms_grants SET over = 1 WHERE id = $1";
const POSTPONE: &str = "UPDATE kms_grants SET retry = $2 WHERE id = $1";
const TAKE: &str = "
    UPDATE kms_grants_turn SET holder = $1, until = $2 WHERE holder = $1 OR until <= $3";
const OVERDUE: &str = "SELECT count(*) FROM kms_grants WHERE over = 0 AND due <= $1";
const DUE: &str = select!("over = 0 AND due <= $1 AND retry <= $1 ORDER BY due, id LIMIT $2");
const KEYS: &str = "SELECT DISTINCT tenant, key_id FROM kms_grants WHERE over = 0";
const REMOVED_KEYS: &str = "
    SELECT DISTINCT tenant, key_id FROM kms_grants
    WHERE over = 0 AND EXISTS
        (SELECT 1 FROM tenants WHERE tenants.id = kms_grants.tenant AND document IS NULL)";
const LIST: &str = select!(
    "tenant = $1 AND key_id = $2 AND id > $3 AND over = 0 AND kms_id <> '' ORDER BY id LIMIT $4"
);
const FIND: &str = select!("tenant = $1 AND key_id = $2 AND id = $3");
const FORGET: &str = "DELETE FROM kms_grants WHERE over = 1 AND expires < $1";

/// For KMS's answer to the creation of a grant: longer than any call takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A grant that ends no later than this after it was due is in time.
pub const LATE: Duration = Duration::from_secs(60);
/// How long a turn lasts that is not kept.
pub const TURN: Duration = Duration::from_secs(30);
/// For how long a grant that is over stands there.
const KEPT: Duration = Duration::from_secs(24 * 3600);
