//! Grants of AWS KMS that the broker has made: written down before KMS is asked, and kept until KMS
//! has them no more. Whoever dies between the two leaves a row by which the grant is found.
//!
//! | A grant is | when | then |
//! |---|---|---|
//! | intended | KMS's answer is awaited | it is completed within [`PATIENCE`], or due |
//! | living | KMS has made it | it is due when it expires, or earlier if somebody has it end |
//! | due | nobody may use it from then on | KMS is asked to end it until it has |
//! | over | KMS has it no more | it is forgotten after a day |

mod looks;
mod row;

use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use uuid::Uuid;

use crate::crypto::random::jittered;
use crate::grants::Id;
use crate::kms::Arn;
use crate::name::KeyName;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Value;
use crate::store::within;

use row::DAMAGED;

pub use looks::Due;
pub use row::Ending;
pub use row::KmsGrant;
pub use row::Obstacle;

impl Store {
    /// Writes down that a grant is about to be made; `id`, key and all else are `grant`'s, its name
    /// and its times the store's: it lives for `lifetime`. None if the key has [`MOST_OF_A_KEY`]
    /// already; brokers that write at the same time may pass that by one each.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn intend_kms_grant(
        &self,
        grant: KmsGrant,
        lifetime: Duration,
    ) -> Result<Option<KmsGrant>, Error> {
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
                limit(MOST_OF_A_KEY),
            ];
            let inserted = lease.run(INSERT, &values).await?;
            lease.give_back();
            Ok((inserted == 1).then_some(grant))
        })
        .await
    }

    /// Writes down that KMS has made the grant `id`. False if it is due or over by now: then it is to
    /// be ended at once.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn complete_kms_grant(&self, id: &Id, kms_id: &str) -> Result<bool, Error> {
        let id = id.to_string();
        within(async {
            self.prepare().await?;
            let mut lease = self.writing.take().await?;
            let now = lease.now().await?;
            let values = [Value::Text(&id), Value::Text(kms_id), moment(now)];
            lease.run(COMPLETE, &values).await?;
            let row = lease.row(LIVES, &[Value::Text(&id), moment(now)]).await?;
            let lives = row.ok_or(DAMAGED)?.number(0)? > 0;
            lease.give_back();
            Ok(lives)
        })
        .await
    }

    /// Has the grant `id` of `key` be due now, because it is revoked; whoever has it so ends it
    /// himself within `head_start`, before others see to it. False if there is none that is not over.
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

    /// Has the grants of `key` that were made at least `age` ago be due now, because of `ending`.
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
                moment(earlier(now, age)),
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

    /// Puts off the end of the grant of the row `id` for `pause` or up to half as much more, because of
    /// `obstacle`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn postpone_kms_grant(
        &self,
        id: &str,
        pause: Duration,
        obstacle: Obstacle,
    ) -> Result<(), Error> {
        let done = self.kms_grants(POSTPONE, |now| {
            let retry = moment(later(now, jittered(pause)));
            vec![Value::Text(id), retry, Value::Text(obstacle.label())]
        });
        done.await.map(drop)
    }

    /// Puts off the ends of all grants that are due in the Region and the account of `key`, because of
    /// an outage there, as [`Store::postpone_kms_grant`] does one.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn postpone_kms_grants_beside(
        &self,
        key: &Arn,
        pause: Duration,
    ) -> Result<(), Error> {
        let done = self.kms_grants(POSTPONE_BESIDE, |now| {
            let retry = moment(later(now, jittered(pause)));
            let obstacle = Value::Text(Obstacle::Outage.label());
            vec![Value::Text(key.scope()), retry, moment(now), obstacle]
        });
        done.await.map(drop)
    }

    /// Takes or keeps the turn to end grants for `holder`, for half of [`TURN`] at least. False while
    /// it is another's.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn take_kms_grants_turn(&self, holder: &str) -> Result<bool, Error> {
        // Most of the time there is nothing to write.
        if let Some(mine) = self.has_kms_grants_turn(holder).await? {
            return Ok(mine);
        }
        let done = self.kms_grants(TAKE, |now| {
            vec![Value::Text(holder), moment(later(now, TURN)), moment(now)]
        });
        Ok(done.await? == 1)
    }

    /// Forgets grants that were over a day ago.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn forget_kms_grants(&self) -> Result<(), Error> {
        let done = self.kms_grants(FORGET, |now| vec![moment(earlier(now, KEPT))]);
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

/// What the names of grants begin with.
fn prefix(origin: &str) -> String {
    format!("keybroker-{origin}-")
}

fn moment(time: Timestamp) -> Value<'static> {
    Value::Number(u64::try_from(time.as_millisecond()).unwrap_or_default())
}

fn later(time: Timestamp, span: Duration) -> Timestamp {
    time.saturating_add(span).unwrap_or(Timestamp::MAX)
}

fn earlier(time: Timestamp, span: Duration) -> Timestamp {
    time.saturating_sub(span).unwrap_or(Timestamp::MIN)
}

fn limit(most: usize) -> Value<'static> {
    Value::Number(u64::try_from(most).unwrap_or(u64::MAX))
}

const INSERT: &str = "
    INSERT INTO kms_grants (id, tenant, key_id, arn, grantee, operations, creator, created,
        expires, kms_id, due, retry, obstacle, over, ending, name)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, '', $10, 0, '', 0, '', $11
    WHERE (SELECT count(*) FROM kms_grants WHERE tenant = $2 AND key_id = $3 AND over = 0) < $12";
const ORIGINATE: &str = "INSERT INTO kms_grants_origin VALUES (1, $1) ON CONFLICT DO NOTHING";
const ORIGIN: &str = "SELECT origin FROM kms_grants_origin";
// What is to end already still is, and no later for having been looked for.
const COMPLETE: &str = "
    UPDATE kms_grants
    SET kms_id = $2, due = CASE WHEN due <= $3 THEN due ELSE expires END, retry = 0
    WHERE id = $1 AND kms_id = '' AND over = 0";
const LIVES: &str = "SELECT count(*) FROM kms_grants WHERE id = $1 AND over = 0 AND due > $2";
const END: &str = "
    UPDATE kms_grants
    SET due = CASE WHEN due <= $4 THEN due ELSE $4 END,
        ending = CASE WHEN due <= $4 THEN ending ELSE $5 END,
        retry = $6
    WHERE tenant = $1 AND key_id = $2 AND id = $3 AND over = 0";
const END_ALL: &str = "
    UPDATE kms_grants SET due = $3, ending = $4, retry = 0
    WHERE tenant = $1 AND key_id = $2 AND over = 0 AND due > $3 AND created <= $5";
const OVER: &str = "UPDATE kms_grants SET over = 1 WHERE id = $1";
const POSTPONE: &str = "UPDATE kms_grants SET retry = $2, obstacle = $3 WHERE id = $1";
const POSTPONE_BESIDE: &str = "
    UPDATE kms_grants SET retry = $2, obstacle = $4
    WHERE over = 0 AND due <= $3 AND retry <= $3 AND substr(arn, 1, length($1)) = $1";
const TAKE: &str = "
    UPDATE kms_grants_turn SET holder = $1, until = $2 WHERE holder = $1 OR until <= $3";
const FORGET: &str = "DELETE FROM kms_grants WHERE over = 1 AND expires < $1";

/// Most grants of a key that are not over.
pub const MOST_OF_A_KEY: usize = 500;
/// For KMS's answer to the creation of a grant: longer than any call takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long after its creation KMS has a grant in its lists, and knows it by its id, at the latest.
pub const SETTLED: SignedDuration = SignedDuration::from_mins(15);
/// How long a turn lasts that is not kept.
pub const TURN: Duration = Duration::from_secs(30);
/// For how long a grant that is over stands there.
const KEPT: Duration = Duration::from_secs(24 * 3600);
