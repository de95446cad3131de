//! The tables, and how those of older versions become them: by steps that are only ever added, all
//! in one transaction, by one process at a time.

use crate::store::Error;
use crate::store::engine::Connection;
use crate::store::engine::Value;

/// Brings the tables to [`STEPS`].
pub(super) async fn prepare(connection: &mut Connection) -> Result<(), Error> {
    connection.begin_writing().await?;
    connection.lock_schema().await?;
    connection.run_all(VERSION).await?;
    let row = connection
        .row("SELECT version FROM schema_version", &[])
        .await?;
    let found = row.ok_or(Error::Damaged("schema_version"))?.number(0)?;
    let known = u64::try_from(STEPS.len()).unwrap_or(u64::MAX);
    if found > known {
        return Err(Error::Newer { found, known });
    }
    for step in STEPS
        .iter()
        .skip(usize::try_from(found).unwrap_or(usize::MAX))
    {
        connection.run_all(step).await?;
    }
    if found < known {
        let version = [Value::Number(known)];
        connection
            .run("UPDATE schema_version SET version = $1", &version)
            .await?;
    }
    connection.run("COMMIT", &[]).await?;
    Ok(())
}

const VERSION: &str = "
    CREATE TABLE IF NOT EXISTS schema_version (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        version BIGINT NOT NULL
    );
    INSERT INTO schema_version VALUES (1, 0) ON CONFLICT DO NOTHING;
";

/// What each version added, in SQL that both engines take. A step that has been released never
/// changes.
const STEPS: [&str; 7] = [
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
    include_str!("schema/5.sql"),
    include_str!("schema/6.sql"),
    include_str!("schema/7.sql"),
];
