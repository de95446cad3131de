//! Which engine, where, and how its server is known.

use std::path::Path;
use std::path::PathBuf;

use jiff::SignedDuration;
use serde::Deserialize;

use crate::directory::staleness;
use crate::strict::OutOfBounds;

/// Where tenants and all else that outlives the process is kept: in a file of SQLite's, unless an
/// address of PostgreSQL is named.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// SQLite's file, made if it is not there; empty for the usual place, see
    /// [`Config::anchor`].
    pub file: PathBuf,
    /// PostgreSQL's address, `postgres://user@host/database`.
    pub url: Option<String>,
    /// Where the password for PostgreSQL is: a file, or `credential:<name>`.
    pub password: Option<String>,
    /// Who vouches for PostgreSQL's server: certificates in PEM.
    pub ca: Option<PathBuf>,
    /// How PostgreSQL's server is known.
    pub tls: Tls,
    /// Most connections to PostgreSQL.
    pub connections: usize,
    /// How long what is known of tenants counts without word of the store: 5 s to 24 h. A tenant may
    /// have a shorter time.
    pub max_staleness: SignedDuration,
}

/// How PostgreSQL's server is known.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Not at all, and all is in plain text: on the loopback interface alone.
    Off,
    /// By a certificate for its host name.
    #[default]
    VerifyFull,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            file: PathBuf::new(),
            url: None,
            password: None,
            ca: None,
            tls: Tls::default(),
            connections: 8,
            max_staleness: SignedDuration::from_mins(15),
        }
    }
}

impl Config {
    /// Makes paths relative to `folder`, the configuration's. SQLite's usual place is `store.db`
    /// there; of a configuration in `/etc/<folder>` it is `/var/lib/<folder>`, since programs don't
    /// write to `/etc`.
    pub fn anchor(&mut self, folder: &Path) {
        let anchor = |path: &mut PathBuf| *path = folder.join(&*path);
        if self.file.as_os_str().is_empty() {
            let state = match folder.strip_prefix("/etc") {
                Ok(rest) => Path::new("/var/lib").join(rest),
                Err(_) => folder.to_owned(),
            };
            self.file = state.join("store.db");
        } else {
            anchor(&mut self.file);
        }
        self.ca.as_mut().map(anchor);
    }

    /// # Errors
    /// [`OutOfBounds`].
    pub fn check(&self) -> Result<(), OutOfBounds> {
        if !(2..=64).contains(&self.connections) {
            return Err(OutOfBounds {
                name: "store.connections",
                value: self.connections.to_string(),
                least: "2",
                most: "64",
            });
        }
        match staleness(self.max_staleness) {
            Some(_) => Ok(()),
            None => Err(OutOfBounds {
                name: "store.max_staleness",
                value: format!("{:#}", self.max_staleness),
                least: "5s",
                most: "24h",
            }),
        }
    }
}
