//! The brokers that share the store, and how much of it each of them knows.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Row;
use crate::store::engine::Value;
use crate::store::within;

/// A broker on the store, by its own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its process, as audit records name it.
    pub id: Uuid,
    /// Its host.
    pub name: String,
    /// The change up to which it goes by all that the store says of tenants.
    pub applied: u64,
    /// How long it goes by that without word of the store.
    pub staleness: Duration,
}

/// The brokers on the store at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// When that was, by the store's clock.
    pub now: Timestamp,
    /// The brokers, in the order of their names.
    pub all: Vec<Replica>,
}

impl Store {
    /// Has others know of `replica`, and forgets those that were silent for so long that they go by
    /// nothing any more. A broker says so at once when it knows more, and at least every
    /// [`SILENCE`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn report(&self, replica: &Replica) -> Result<(), Error> {
        self.prepare().await?;
        within(async {
            let mut lease = self.writing.take().await?;
            let now = millis(lease.now().await?);
            let id = replica.id.to_string();
            let values = [
                Value::Text(&id),
                Value::Text(&replica.name),
                Value::Number(replica.applied),
                Value::Number(u64::try_from(replica.staleness.as_millis()).unwrap_or(u64::MAX)),
                Value::Number(now),
            ];
            lease.run(REPORT, &values).await?;
            let silence = u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX);
            let before = now.saturating_sub(silence.saturating_mul(2));
            lease.run(FORGET, &[Value::Number(before)]).await?;
            lease.give_back();
            Ok(())
        })
        .await
    }

    /// Takes the broker `id`, which ends, from those that others know of.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn withdraw(&self, id: Uuid) -> Result<(), Error> {
        self.prepare().await?;
        within(async {
            let mut lease = self.writing.take().await?;
            lease.run(WITHDRAW, &[Value::Text(&id.to_string())]).await?;
            lease.give_back();
            Ok(())
        })
        .await
    }

    /// The brokers that there are. One that is not among them yet reads the store after this.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn replicas(&self) -> Result<Replicas, Error> {
        let mut lease = within(self.reader()).await?;
        let now = within(lease.now()).await?;
        let mut all = Vec::new();
        let taking = lease.each(ALL, &[], |row| {
            all.push(replica(&row)?);
            Ok(())
        });
        taking.await?;
        lease.give_back();
        Ok(Replicas { now, all })
    }
}

fn replica(row: &Row) -> Result<Replica, Error> {
    let text = |column| row.text(column)?.ok_or(Error::Damaged("replicas"));
    let id = text(0)?.parse().map_err(|_| Error::Damaged("replicas"))?;
    Ok(Replica {
        id,
        name: text(1)?,
        applied: row.number(2)?,
        staleness: Duration::from_millis(row.number(3)?),
    })
}

fn millis(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or_default()
}

/// A broker says at least so often that it is there.
pub const SILENCE: Duration = Duration::from_secs(30);
const ALL: &str = "SELECT id, name, applied, staleness FROM replicas ORDER BY name, id";
const REPORT: &str = "
    INSERT INTO replicas (id, name, applied, staleness, seen) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (id) DO UPDATE SET applied = excluded.applied, seen = excluded.seen";
const FORGET: &str = "DELETE FROM replicas WHERE seen + staleness < $1";
const WITHDRAW: &str = "DELETE FROM replicas WHERE id = $1";

#[cfg(test)]
mod tests;
