//! Why the store did not do what it was asked for.

use std::io;
use std::path::PathBuf;

use crate::name::TenantId;

/// Why the store did not do what it was asked for. A change that fails has not happened, unless it
/// failed in its last step, where nobody can know.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is none of PostgreSQL's.
    #[error("store.url: {0}")]
    Address(String),
    /// A row that must be there is not, or holds what is never written.
    #[error("the store's table {0} is damaged")]
    Damaged(&'static str),
    /// The engine said no, or could not be reached.
    #[error(transparent)]
    Engine(#[from] sqlx::Error),
    /// Others than its owner could read or change the file.
    #[error("{} is open to others (mode {mode:o}): take that away with chmod 600", path.display())]
    ExposedFile {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others than its owner could replace files in the folder.
    #[error(
        "{} is open to others (mode {mode:o}): take that away with chmod go-w, or name another \
         place with store.file",
        path.display()
    )]
    ExposedFolder {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file cannot be had.
    #[error("cannot use {}: {source}: name another place with store.file", path.display())]
    File {
        /// The file or its folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A newer version of keybroker has changed the tables.
    #[error("the store is of a newer keybroker (tables {found}, this one knows {known})")]
    Newer {
        /// The version of the tables.
        found: u64,
        /// What this version knows.
        known: u64,
    },
    /// An SQLite that can lose what was committed.
    #[error("SQLite {found} can lose what was committed: 3.51.3 is the oldest that does not")]
    Old {
        /// Its version.
        found: String,
    },
    /// It took too long, and was given up.
    #[error("the store did not answer in time")]
    Slow,
    /// There is no such tenant.
    #[error("the store has no tenant {0}")]
    UnknownTenant(TenantId),
}

impl Error {
    /// Whether the store is out of reach, or has no room: it may be well later, by itself.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Engine(_) | Self::Slow => true,
            Self::Address(_)
            | Self::Damaged(_)
            | Self::ExposedFile { .. }
            | Self::ExposedFolder { .. }
            | Self::File { .. }
            | Self::Newer { .. }
            | Self::Old { .. }
            | Self::UnknownTenant(_) => false,
        }
    }
}
