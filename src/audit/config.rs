//! The settings of the audit trail.

use std::path::PathBuf;

use serde::Deserialize;

use crate::audit::file::Rotation;
use crate::kms::Arn;
use crate::strict::OutOfBounds;

/// Where records go, and what becomes of calls when they go nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The file to append to, made with mode 0600 if absent.
    pub file: Option<PathBuf>,
    /// Whether they go to standard output beside the others; without any other they do so anyway.
    pub stdout: bool,
    /// The collector that they go to as logs, over OTLP.
    pub otlp: Option<Address>,
    /// What becomes of a call whose record nobody takes.
    pub mode: Mode,
    /// The key that signs records, made if absent; beside the file when not set, and without a
    /// regular file none but the process's own.
    pub signing_key: Option<PathBuf>,
    /// The key of AWS KMS that countersigns what that one has signed.
    pub kms_key: Option<Arn>,
    /// The length of a file that makes room for the next, in bytes; none for never.
    pub rotate_size: Option<u64>,
    /// Most files that are kept beside the one that is written.
    pub keep: usize,
}

/// What becomes of a call whose record nobody takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It goes on, and what is lost is counted.
    BestEffort,
    /// It fails.
    #[default]
    Required,
}

/// Where a collector listens: `http://` or `https://`, a host, and as a rule a port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(String);

/// A text is no [`Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the address of a collector: write https://HOST:4317, with no path and no user")]
pub struct NoAddress;

impl Address {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Address {
    type Error = NoAddress;

    fn try_from(text: String) -> Result<Self, NoAddress> {
        let host = ["http://", "https://"]
            .into_iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let host = host.map(|host| host.strip_suffix('/').unwrap_or(host));
        let plain = |host: &str| !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        match host.is_some_and(plain) {
            true => Ok(Self(text)),
            false => Err(NoAddress),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            file: None,
            stdout: false,
            otlp: None,
            mode: Mode::Required,
            signing_key: None,
            kms_key: None,
            rotate_size: None,
            keep: 10,
        }
    }
}

impl Config {
    /// Checks every setting against its bounds.
    ///
    /// # Errors
    /// [`OutOfBounds`] for the first outside.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        if let Some(size) = self.rotate_size
            && !(LEAST_SIZE..=MOST_SIZE).contains(&size)
        {
            return Err(OutOfBounds {
                name: "audit.rotate_size",
                value: size.to_string(),
                least: "65536",
                most: "1099511627776",
            });
        }
        if !(1..=MOST_KEPT).contains(&self.keep) {
            return Err(OutOfBounds {
                name: "audit.keep",
                value: self.keep.to_string(),
                least: "1",
                most: "1000",
            });
        }
        Ok(())
    }

    /// Where the signing key is, if the file is a regular one.
    pub fn key_file(&self) -> Option<PathBuf> {
        let beside = || Some(self.file.as_ref()?.with_extension("key"));
        self.signing_key.clone().or_else(beside)
    }

    pub(super) fn rotation(&self) -> Option<Rotation> {
        self.rotate_size.map(|size| Rotation {
            size,
            keep: self.keep,
        })
    }
}

/// A file holds some records at least.
const LEAST_SIZE: u64 = 64 << 10;
const MOST_SIZE: u64 = 1 << 40;
/// All of them are renamed when one is full.
const MOST_KEPT: usize = 1000;
