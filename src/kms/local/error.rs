//! What a keyring can fail with.

use std::io;
use std::path::PathBuf;

use crate::crypto::random;
use crate::kms::local::contents::MAX_KEYS;
use crate::kms::local::contents::MAX_VERSIONS;
use crate::kms::local::contents::Purpose;
use crate::kms::local::contents::State;
use crate::kms::local::file;
use crate::name::KeyId;

/// Why there is no keyring, or no change to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody replaced the file while we held it; it stays as it is.
    #[error("the keyring {} was replaced while in use: restart to take it up", path.display())]
    Changed {
        /// The keyring file.
        path: PathBuf,
    },
    /// A file is there already; it is never overwritten.
    #[error("{} exists already", path.display())]
    Exists {
        /// The keyring file.
        path: PathBuf,
    },
    /// The file's bytes are not a keyring that we can open.
    #[error("the keyring {}: {why}", path.display())]
    File {
        /// The keyring file.
        path: PathBuf,
        /// What is wrong with the bytes.
        why: file::Error,
    },
    /// Another process, or this one, has it open.
    #[error("the keyring {} is held by another process", path.display())]
    Held {
        /// The keyring file.
        path: PathBuf,
    },
    /// The key is there already.
    #[error("key {key} exists already")]
    KeyExists {
        /// Which key.
        key: KeyId,
    },
    /// The key's state does not allow this change.
    #[error("key {key} is {state}")]
    KeyState {
        /// Which key.
        key: KeyId,
        /// Its state.
        state: State,
    },
    /// There is no such key.
    #[error("no key {key} in the keyring")]
    KeyUnknown {
        /// Which key.
        key: KeyId,
    },
    /// The keyring is full.
    #[error("a keyring holds at most {limit} keys", limit = MAX_KEYS)]
    ManyKeys,
    /// The key is full.
    #[error("key {key} has {limit} versions, the most there can be", limit = MAX_VERSIONS)]
    ManyVersions {
        /// Which key.
        key: KeyId,
    },
    /// There is no keyring.
    #[error("no keyring at {}: make one with `keybroker keyring init`", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A dev keyring in production, or the reverse.
    #[error("the keyring {} is for {found}, not for {expected}", path.display())]
    Purpose {
        /// The keyring file.
        path: PathBuf,
        /// What it is for.
        found: Purpose,
        /// What it was opened for.
        expected: Purpose,
    },
    /// No randomness for keys or salt.
    #[error(transparent)]
    Random(#[from] random::Error),
    /// The file can't be read.
    #[error("can't read the keyring {}", path.display())]
    Unreadable {
        /// The keyring file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file, or its lock file beside it, can't be written: a full disk, a read-only folder.
    #[error("can't write the keyring {}", path.display())]
    Unwritable {
        /// The keyring file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}
