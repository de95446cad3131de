//! A connection to either engine: the same statements, with `$1` for values, and rows that are
//! trusted no more than what comes from outside.

use futures_util::Stream;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use sqlx::ConnectOptions as _;
use sqlx::Executor as _;
use sqlx::PgConnection;
use sqlx::Row as _;
use sqlx::SqliteConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::sqlite::SqliteRow;

use crate::store::Error;
use crate::store::sqlite;
use crate::store::within;

/// What connections are made to.
pub(super) enum Engine {
    Postgres(Box<PgConnectOptions>),
    Sqlite(Box<SqliteConnectOptions>),
}

impl Engine {
    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        let link = match self {
            Self::Postgres(options) => Link::Postgres(options.connect().await?),
            Self::Sqlite(options) => Link::Sqlite(sqlite::connect(options).await?),
        };
        Ok(Connection {
            link,
            failed: false,
        })
    }
}

/// A connection. One whose use failed is to be dropped; what a use that was given up half-way has
/// begun is to be undone.
pub(super) struct Connection {
    link: Link,
    failed: bool,
}

enum Link {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

/// A value in a statement.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Flag(bool),
    Number(u64),
    Text(&'a str),
}

/// Gives `query` the values.
macro_rules! bind {
    ($query:expr, $values:expr) => {{
        let mut query = $query;
        for value in $values {
            query = match *value {
                Value::Flag(flag) => query.bind(flag),
                // Numbers of changes stay far below.
                Value::Number(number) => query.bind(i64::try_from(number).unwrap_or(i64::MAX)),
                Value::Text(text) => query.bind(text),
            };
        }
        query
    }};
}

impl Connection {
    /// Whether a statement has failed on it.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Runs `statement`; how many rows it concerned.
    pub(super) async fn run(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> Result<u64, Error> {
        let done = match &mut self.link {
            Link::Postgres(one) => {
                let done = bind!(sqlx::query(statement), values).execute(one);
                done.await.map(|done| done.rows_affected())
            }
            Link::Sqlite(one) => {
                let done = bind!(sqlx::query(statement), values).execute(one);
                done.await.map(|done| done.rows_affected())
            }
        };
        self.noted(done)
    }

    /// Runs several statements without values.
    pub(super) async fn run_all(&mut self, statements: &'static str) -> Result<(), Error> {
        let done = match &mut self.link {
            Link::Postgres(one) => one.execute(sqlx::raw_sql(statements)).await.map(|_| ()),
            Link::Sqlite(one) => one.execute(sqlx::raw_sql(statements)).await.map(|_| ()),
        };
        self.noted(done)
    }

    /// Has `take` look at each row that `statement` yields. Bounded row by row: how many there are
    /// is up to the table.
    pub(super) async fn each(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
        mut take: impl FnMut(Row) -> Result<(), Error> + Send,
    ) -> Result<(), Error> {
        let done = match &mut self.link {
            Link::Postgres(one) => {
                let rows = bind!(sqlx::query(statement), values).fetch(one);
                each(rows, |row| take(Row::Postgres(row))).await
            }
            Link::Sqlite(one) => {
                let rows = bind!(sqlx::query(statement), values).fetch(one);
                each(rows, |row| take(Row::Sqlite(row))).await
            }
        };
        self.noted(done)
    }

    /// The first row that `statement` yields.
    pub(super) async fn row(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> Result<Option<Row>, Error> {
        let row = match &mut self.link {
            Link::Postgres(one) => {
                let row = bind!(sqlx::query(statement), values).fetch_optional(one);
                row.await.map(|row| row.map(Row::Postgres))
            }
            Link::Sqlite(one) => {
                let row = bind!(sqlx::query(statement), values).fetch_optional(one);
                row.await.map(|row| row.map(Row::Sqlite))
            }
        };
        self.noted(row)
    }

    fn noted<T>(&mut self, done: Result<T, impl Into<Error>>) -> Result<T, Error> {
        self.failed |= done.is_err();
        done.map_err(Into::into)
    }

    /// Begins a transaction that will write. It ends with `COMMIT`, or with the connection.
    pub(super) async fn begin_writing(&mut self) -> Result<u64, Error> {
        let statement = match self.link {
            Link::Postgres(_) => "BEGIN",
            // The lock at once: one who has read cannot have it after another has written.
            Link::Sqlite(_) => "BEGIN IMMEDIATE",
        };
        self.run(statement, &[]).await
    }

    /// Undoes what may have been begun.
    pub(super) async fn undo(&mut self) -> Result<(), Error> {
        // SQLite takes it for an error that there is no transaction.
        let _ = self.run("ROLLBACK", &[]).await;
        self.failed = false;
        self.run("BEGIN", &[]).await?;
        self.run("ROLLBACK", &[]).await.map(|_| ())
    }

    /// Begins a transaction in which all statements see the same moment.
    pub(super) async fn begin_reading(&mut self) -> Result<u64, Error> {
        let statement = match self.link {
            Link::Postgres(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Link::Sqlite(_) => "BEGIN",
        };
        self.run(statement, &[]).await
    }

    /// Has what this transaction reads in an index's order come by that index: PostgreSQL, which may
    /// know nothing of a table's size yet, would sort all of it for each page.
    pub(super) async fn keep_to_indexes(&mut self) -> Result<u64, Error> {
        match self.link {
            Link::Postgres(_) => self.run("SET LOCAL enable_sort = off", &[]).await,
            Link::Sqlite(_) => Ok(0),
        }
    }

    /// Keeps others from changing the tables themselves until the transaction ends.
    pub(super) async fn lock_schema(&mut self) -> Result<u64, Error> {
        match self.link {
            Link::Postgres(_) => self.run("SELECT pg_advisory_xact_lock($1)", &[LOCK]).await,
            // Whoever writes is alone.
            Link::Sqlite(_) => Ok(0),
        }
    }

    /// What the clock says that all times in the store are by.
    pub(super) async fn now(&mut self) -> Result<Timestamp, Error> {
        let statement = match self.link {
            Link::Postgres(_) => "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT",
            Link::Sqlite(_) => "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        };
        let row = self.row(statement, &[]).await?;
        let now = row.ok_or(Error::Damaged("clock"))?.number(0)?;
        let now = i64::try_from(now).map_err(|_| Error::Damaged("clock"))?;
        Timestamp::from_millisecond(now).map_err(|_| Error::Damaged("clock"))
    }

    /// Whether it tells others when it is told to.
    pub(super) fn notifies(&self) -> bool {
        matches!(self.link, Link::Postgres(_))
    }

    /// Refuses an engine that can lose what was committed.
    pub(super) async fn check_version(&mut self) -> Result<(), Error> {
        match self.link {
            Link::Postgres(_) => Ok(()),
            Link::Sqlite(_) => {
                let row = self.row("SELECT sqlite_version()", &[]).await?;
                let found = row.ok_or(Error::Damaged("sqlite"))?.text(0)?;
                sqlite::check_version(&found.unwrap_or_default())
            }
        }
    }
}

/// A row.
pub(super) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

impl Row {
    /// Whether `column` is true.
    pub(super) fn flag(&self, column: usize) -> Result<bool, Error> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    /// The number in `column`.
    pub(super) fn number(&self, column: usize) -> Result<u64, Error> {
        let number: i64 = match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        };
        u64::try_from(number).map_err(|_| Error::Damaged("numbers"))
    }

    /// The text in `column`; none for NULL.
    pub(super) fn text(&self, column: usize) -> Result<Option<String>, Error> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }
}

/// Has `take` look at each of `rows`.
async fn each<R>(
    mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
    mut take: impl FnMut(R) -> Result<(), Error>,
) -> Result<(), Error> {
    while let Some(row) = within(async { Ok(rows.try_next().await?) }).await? {
        take(row)?;
    }
    Ok(())
}

/// Any number that nobody else in the database locks.
const LOCK: Value<'_> = Value::Number(0x6b65_7962_726f_6b65);
