//! What outlives the process and is shared by replicas: SQLite for one machine, PostgreSQL for
//! several, behind one set of statements. The only room that knows SQL.
//!
//! Every change takes its number in its own transaction from the one row of `change`, so that
//! numbers come in the order of commits: whoever has read up to a number has missed nothing before
//! it.
//!
//! | file | what it holds |
//! |---|---|
//! | `config` | which engine, where, and how its server is known |
//! | `engine`, `sqlite`, `postgres` | a connection to either, with what makes it safe |
//! | `grants` | grants, and what has changed of them |
//! | `kms_grants` | grants of AWS KMS, and when they are to end |
//! | `pool` | connections, few and made slowly |
//! | `replicas` | the brokers that share it, and how much of it each knows |
//! | `schema` | the tables, and how older ones become them |
//! | `tenants` | what there is to read and to change |
//! | `wake` | news of changes |
//! | `freshness` | how long ago the store was heard of |

mod config;
mod engine;
mod error;
mod freshness;
pub mod grants;
pub mod kms_grants;
mod pool;
mod postgres;
mod replicas;
mod schema;
mod sqlite;
mod tenants;
mod wake;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::OnceCell;
use tokio::time::timeout;

pub use config::Config;
pub use config::Tls;
pub use error::Error;
pub use freshness::Freshness;
pub use replicas::Replica;
pub use replicas::Replicas;
pub use replicas::SILENCE;
pub use tenants::Absent;
pub use tenants::Applied;
pub use tenants::Marked;
pub use tenants::News;

use engine::Engine;
use engine::Value;
use pool::Lease;
use pool::Pool;

/// The store, as one process uses it. Connects when it is first used.
pub struct Store {
    reading: Arc<Pool>,
    writing: Arc<Pool>,
    /// Whether the tables are what this version knows.
    prepared: OnceCell<()>,
    /// Something has changed.
    news: Notify,
}

impl Store {
    /// The store that `config` names. `password` is for PostgreSQL's server.
    ///
    /// # Errors
    /// [`Error`] for a file or folder that is not fit for SQLite, and for an address or certificate
    /// that is not fit for PostgreSQL. Neither's content is looked at.
    pub fn new(config: &Config, password: Option<&str>) -> Result<Self, Error> {
        let (reading, writing) = match &config.url {
            None => {
                let options = sqlite::options(&config.file)?;
                // SQLite has one writer; who waits for it waits here, in order.
                let writing = Pool::new(Engine::Sqlite(options.clone().into()), 1);
                (
                    Pool::new(Engine::Sqlite(options.into()), SQLITE_READERS),
                    writing,
                )
            }
            Some(url) => {
                let options = postgres::options(url, config, password)?;
                let pool = Pool::new(Engine::Postgres(Box::new(options)), config.connections);
                (Arc::clone(&pool), pool)
            }
        };
        Ok(Self {
            reading,
            writing,
            prepared: OnceCell::new(),
            news: Notify::new(),
        })
    }

    /// Brings the tables to what this version knows, unless that is done. Every other method does
    /// so first.
    ///
    /// # Errors
    /// [`Error::Newer`] when a newer version has been here, [`Error::Old`] for an SQLite that can
    /// lose what was committed, and what the engine says.
    pub async fn prepare(&self) -> Result<(), Error> {
        let preparing = || {
            within(async {
                let mut lease = self.writing.take().await?;
                lease.check_version().await?;
                schema::prepare(&mut lease).await?;
                lease.give_back();
                Ok(())
            })
        };
        self.prepared.get_or_try_init(preparing).await.copied()
    }

    /// A connection that reads.
    async fn reader(&self) -> Result<Lease, Error> {
        self.prepare().await?;
        self.reading.take().await
    }

    /// A connection in a transaction that writes, and the change's number.
    async fn writer(&self) -> Result<(Lease, u64), Error> {
        self.prepare().await?;
        let mut lease = self.writing.take().await?;
        lease.begin_writing().await?;
        let row = lease
            .row("UPDATE change SET n = n + 1 RETURNING n", &[])
            .await?
            .ok_or(Error::Damaged("change"))?;
        let number = row.number(0)?;
        Ok((lease, number))
    }

    /// Makes what `lease` did last, and has all who wait for news look.
    async fn commit(&self, mut lease: Lease, number: u64) -> Result<(), Error> {
        if lease.notifies() {
            let text = number.to_string();
            lease
                .run("SELECT pg_notify('keybroker', $1)", &[Value::Text(&text)])
                .await?;
        }
        lease.run("COMMIT", &[]).await?;
        lease.give_back();
        self.news.notify_one();
        Ok(())
    }
}

/// Bounds what one use of the store may take, waiting included.
async fn within<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match timeout(LONGEST, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::Slow),
    }
}

/// For one use of the store, of the size of what changes usually.
const LONGEST: Duration = Duration::from_secs(5);
/// Connections that read from SQLite, beside the one that writes.
const SQLITE_READERS: usize = 4;

#[cfg(test)]
mod tests;
