//! The `grants` part of the configuration.

use std::path::Path;

use serde::Deserialize;

/// Under which keys grant tokens are made and believed: the same on all replicas.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the key is under which tokens are made: a file of 32 bytes or 64 hex digits, or
    /// `credential:<name>`. Without one, and with SQLite, it is made beside the store.
    pub token_key: Option<String>,
    /// Another key whose tokens are believed as well, while the key is changed.
    pub other_token_key: Option<String>,
}

impl Config {
    /// Makes paths relative to `folder`, the configuration's.
    pub fn anchor(&mut self, folder: &Path) {
        for source in [&mut self.token_key, &mut self.other_token_key]
            .into_iter()
            .flatten()
            .filter(|source| !source.starts_with("credential:"))
        {
            *source = folder.join(&*source).to_string_lossy().into_owned();
        }
    }
}
