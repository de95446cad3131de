//! SQLite's file: private to one user of one machine, and synced before anything is acknowledged.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::sqlite::SqliteJournalMode;
use sqlx::sqlite::SqliteSynchronous;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::crypto::random::jittered;
use crate::store::Error;

/// How to open the file at `path`, which is made if it is not there, as is its folder. Whoever could
/// change it could let anybody in: nobody else may.
pub(super) fn options(path: &Path) -> Result<SqliteConnectOptions, Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    if !folder.exists() {
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o700)
            .create(folder)
            .map_err(unusable(folder))?;
    }
    let mode = fs::metadata(folder).map_err(unusable(folder))?.mode() & 0o7777;
    // In a folder with the sticky bit everybody keeps to their own files.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Err(Error::ExposedFolder {
            path: folder.to_owned(),
            mode,
        });
    }
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(unusable(path)(error));
        }
        Ok(_) | Err(_) => {}
    }
    let metadata = fs::metadata(path).map_err(unusable(path))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::ExposedFile {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // In WAL nothing less syncs at commit: a revocation could be lost with the power.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY)
        .foreign_keys(true)
        // A file that somebody else prepared runs nothing.
        .pragma("trusted_schema", "OFF")
        .row_buffer_size(ROWS)
        .disable_statement_logging())
}

/// A connection. Of two that first set up the write-ahead log, SQLite tells one at once that the file
/// is busy, however long it is to wait: that one asks again.
pub(super) async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, Error> {
    let end = Instant::now() + BUSY;
    loop {
        match options.connect().await {
            Err(error) if is_busy(&error) && Instant::now() < end => sleep(jittered(AGAIN)).await,
            connected => return Ok(connected?),
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    // Of an extended code the last byte is the code.
    let code = code.and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == SQLITE_BUSY)
}

/// Refuses an SQLite before 3.51.3: of what was committed, they can lose some when a log is reset
/// while another connection writes.
pub(super) fn check_version(found: &str) -> Result<(), Error> {
    let mut parts = found.split('.').map(|part| part.parse::<u32>().ok());
    let mut part = || parts.next().flatten();
    match (part(), part(), part()) {
        (Some(major), Some(minor), Some(patch)) if (major, minor, patch) >= OLDEST => Ok(()),
        _ => Err(Error::Old {
            found: found.to_owned(),
        }),
    }
}

const OLDEST: (u32, u32, u32) = (3, 51, 3);
/// How long to wait for another process that writes.
const BUSY: Duration = Duration::from_secs(3);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(10);
const SQLITE_BUSY: u32 = 5;
/// Rows on their way from SQLite's thread.
const ROWS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqlite_that_loses_commits_is_refused() {
        for good in ["3.51.3", "3.52.0", "4.0.0"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["3.51.2", "3.50.9", "2.99.99", "", "3.51", "x"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }
}
