//! The key that seals a keyring file, and where it comes from: a file of its own or a systemd
//! credential, never an argument or the environment.

use std::fmt;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::crypto::random;
use crate::kms::local::disk;

/// The length of a sealing key, in bytes.
pub const SEALING_KEY: usize = 32;

/// Seals one keyring file.
pub struct SealingKey(Secret<SEALING_KEY>);

impl SealingKey {
    /// The key with these bytes.
    pub fn new(key: Secret<SEALING_KEY>) -> Self {
        Self(key)
    }

    /// A new random key, written to a new file at `path` as 64 hex digits, readable by its owner
    /// alone and on disk when this returns.
    ///
    /// # Errors
    /// [`Error::Exists`] rather than overwriting, [`Error::Unwritable`], [`Error::Random`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let key = Secret::random()?;
        let unwritable = |source| Error::Unwritable {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists {
                    path: path.to_owned(),
                },
                _ => unwritable(source),
            })?;
        let written = file
            .write_all(&hex(&key)[..])
            .and_then(|()| file.sync_all())
            .and_then(|()| disk::sync_folder(path));
        if let Err(source) = written {
            // Half a key would only stand in the way of the next attempt.
            drop(fs::remove_file(path));
            return Err(unwritable(source));
        }
        Ok(Self(key))
    }

    /// Reads the key from `source`: 32 bytes, or 64 hex digits and at most one newline.
    ///
    /// `credentials` is the folder of systemd's credentials (`$CREDENTIALS_DIRECTORY`).
    ///
    /// # Errors
    /// [`Error`]; [`Error::Exposed`] for a file that everybody on the machine can read.
    pub fn load(source: &Source, credentials: Option<&Path>) -> Result<Self, Error> {
        let path = match source {
            Source::File(path) => path.clone(),
            Source::Credential(name) => match credentials {
                Some(folder) => folder.join(name),
                None => return Err(Error::NoCredentials { name: name.clone() }),
            },
        };
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { path: path.clone() },
            _ => Error::Unreadable {
                path: path.clone(),
                source,
            },
        };
        // Opening a pipe would wait for its writer.
        if !fs::metadata(&path).map_err(unreadable)?.is_file() {
            return Err(Error::Malformed { path });
        }
        let file = File::open(&path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(Error::Exposed { path, mode });
        }
        // One buffer of final size: a growing one would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
        file.take(u64::try_from(LONGEST + 1).unwrap_or_default())
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        parse(&bytes).map(Self).ok_or(Error::Malformed { path })
    }

    /// The key itself, for those who keep it for something else.
    pub fn into_secret(self) -> Secret<SEALING_KEY> {
        self.0
    }

    pub(super) fn secret(&self) -> &Secret<SEALING_KEY> {
        &self.0
    }
}

/// Where a sealing key comes from: `credential:<name>`, or the path of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A credential that systemd hands to the service (`LoadCredential=`).
    Credential(String),
    /// A file.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = MalformedSource;

    fn from_str(text: &str) -> Result<Self, MalformedSource> {
        let Some(name) = text.strip_prefix(CREDENTIAL) else {
            return match text {
                "" => Err(MalformedSource),
                path => Ok(Self::File(path.into())),
            };
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@');
        if name.starts_with('.') || name.is_empty() || !name.bytes().all(plain) {
            return Err(MalformedSource);
        }
        Ok(Self::Credential(name.to_owned()))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "{CREDENTIAL}{name}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The text names no source of a sealing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a path nor credential:<name>")]
pub struct MalformedSource;

/// Why there is no sealing key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is there already; it is never overwritten.
    #[error("{} exists already", path.display())]
    Exists {
        /// The sealing key's file.
        path: PathBuf,
    },
    /// Everybody on the machine can read the file.
    #[error("{} is open to every user (mode {mode:o}): take that away and make a new sealing key", path.display())]
    Exposed {
        /// The sealing key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is no key.
    #[error("{} is no sealing key: neither 32 bytes nor 64 hex digits", path.display())]
    Malformed {
        /// The sealing key's file.
        path: PathBuf,
    },
    /// There is no such file.
    #[error("no sealing key at {}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A credential was asked for, but the service manager handed over none.
    #[error("no credential {name}: $CREDENTIALS_DIRECTORY is not set")]
    NoCredentials {
        /// The credential's name.
        name: String,
    },
    /// No randomness for a new key.
    #[error(transparent)]
    Random(#[from] random::Error),
    /// The file can't be read.
    #[error("can't read the sealing key {}", path.display())]
    Unreadable {
        /// The sealing key's file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file can't be written.
    #[error("can't write the sealing key {}", path.display())]
    Unwritable {
        /// The sealing key's file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Raw bytes, or hex digits with or without the newline that an editor leaves.
fn parse(bytes: &[u8]) -> Option<Secret<SEALING_KEY>> {
    if let Some(raw) = Secret::copied(bytes) {
        return Some(raw);
    }
    let digits = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != SEALING_KEY || !rest.is_empty() || !digits.is_ascii() {
        return None;
    }
    let mut sound = true;
    let key = Secret::filled(|key: &mut [u8; SEALING_KEY]| {
        for (byte, [high, low]) in key.iter_mut().zip(pairs) {
            match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => sound = false,
            }
        }
    });
    sound.then_some(key)
}

fn digit(hex: u8) -> Option<u8> {
    match hex {
        b'0'..=b'9' => Some(hex - b'0'),
        b'a'..=b'f' => Some(hex - b'a' + 10),
        b'A'..=b'F' => Some(hex - b'A' + 10),
        _ => None,
    }
}

/// 64 hex digits and a newline.
fn hex(key: &Secret<SEALING_KEY>) -> Zeroizing<[u8; LONGEST]> {
    let digit = |nibble: u8| match nibble {
        0..=9 => b'0' + nibble,
        _ => b'a' + (nibble - 10),
    };
    let mut text = Zeroizing::new([b'\n'; LONGEST]);
    let (pairs, _) = text.as_chunks_mut::<2>();
    for ([high, low], byte) in pairs.iter_mut().zip(key.expose()) {
        *high = digit(byte >> 4);
        *low = digit(byte & 0x0f);
    }
    text
}

/// The longest text of a key, in bytes: hex digits and a newline.
const LONGEST: usize = 2 * SEALING_KEY + 1;
/// What marks a source as a credential.
const CREDENTIAL: &str = "credential:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_and_hex_digits_are_keys() {
        let raw: Vec<u8> = (0..32).map(|n| n * 7).collect();
        let lower: String = raw.iter().map(|b| format!("{b:02x}")).collect();
        let upper = lower.to_uppercase();
        let newline = format!("{lower}\n");
        for text in [
            &raw[..],
            lower.as_bytes(),
            upper.as_bytes(),
            newline.as_bytes(),
        ] {
            let key = parse(text).expect("a key");
            assert_eq!(key.expose()[..], raw[..]);
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        let hex = "0".repeat(64);
        for bad in [
            String::new(),
            "x".repeat(31),
            "x".repeat(33),
            "g".repeat(64),
            "0".repeat(63),
            format!("{hex}\n\n"),
            format!("{hex}\r\n"),
            format!("{hex}0"),
        ] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn sources_are_paths_or_plain_credential_names() {
        let credential = Source::Credential("keyring.key".into());
        assert_eq!("credential:keyring.key".parse(), Ok(credential));
        assert_eq!("/etc/k".parse(), Ok(Source::File("/etc/k".into())));
        for bad in ["", "credential:", "credential:..", "credential:a/b"] {
            assert_eq!(bad.parse::<Source>(), Err(MalformedSource), "{bad}");
        }
    }
}
