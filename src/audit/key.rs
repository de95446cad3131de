//! The key that signs records, and where it comes from: a file, made at the first start, or this
//! process alone.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::crypto::signature::PublicKey;
use crate::crypto::signature::SigningKey;
use crate::crypto::signature::Unrandom;

/// Signs the records of one process.
pub(super) struct Key {
    key: SigningKey,
    origin: Origin,
}

#[derive(Clone, Copy)]
enum Origin {
    File,
    Process,
}

/// Why there is no key to sign records with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Others can read the file.
    #[error("others can read the signing key {} (mode {mode:o}): take that away and make a new one", path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is no key.
    #[error("{} is no Ed25519 key in PKCS#8, as PEM", path.display())]
    Malformed {
        /// The key's file.
        path: PathBuf,
    },
    /// No randomness for a new key.
    #[error(transparent)]
    Random(#[from] Unrandom),
    /// The file cannot be read.
    #[error("cannot read the signing key {}", path.display())]
    Unreadable {
        /// The key's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be made.
    #[error("cannot make the signing key {}: name a place for it as audit.signing_key", path.display())]
    Unwritable {
        /// The key's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Key {
    /// One that nobody else has.
    pub(super) fn of_process() -> Result<Self, KeyError> {
        Ok(Self {
            key: SigningKey::random()?,
            origin: Origin::Process,
        })
    }

    /// The one in the file at `path`, which is made when there is none.
    pub(super) fn of_file(path: &Path) -> Result<Self, KeyError> {
        let key = match create(path) {
            Err(KeyError::Unwritable { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists || path.exists() =>
            {
                load(path)
            }
            made => made,
        };
        Ok(Self {
            key: key?,
            origin: Origin::File,
        })
    }

    pub(super) fn signing(&self) -> &SigningKey {
        &self.key
    }

    pub(super) fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// `file` or `process`.
    pub(super) fn origin(&self) -> &'static str {
        match self.origin {
            Origin::File => "file",
            Origin::Process => "process",
        }
    }
}

fn create(path: &Path) -> Result<SigningKey, KeyError> {
    let unwritable = |source| KeyError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(unwritable)?;
    let written = make().and_then(|(key, pem)| {
        let written = file.write_all(pem.as_bytes());
        written.and_then(|()| file.sync_all()).map_err(unwritable)?;
        Ok(key)
    });
    if written.is_err() {
        // Half a key would only stand in the way of the next attempt.
        drop(fs::remove_file(path));
    }
    written
}

fn make() -> Result<(SigningKey, Zeroizing<String>), KeyError> {
    let key = SigningKey::random()?;
    let pem = key.to_pem().map_err(|_| Unrandom)?;
    Ok((key, pem))
}

fn load(path: &Path) -> Result<SigningKey, KeyError> {
    let malformed = || KeyError::Malformed {
        path: path.to_owned(),
    };
    let unreadable = |source| KeyError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(malformed());
    }
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    // A group may read it: Kubernetes mounts secrets so.
    if mode & 0o007 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut pem = Zeroizing::new(Vec::with_capacity(LONGEST));
    file.take(u64::try_from(LONGEST).unwrap_or_default())
        .read_to_end(&mut pem)
        .map_err(unreadable)?;
    SigningKey::from_pem(&pem).map_err(|_| malformed())
}

/// Far more than any key takes, in bytes.
const LONGEST: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.key");
        let made = Key::of_file(&path).unwrap();
        let again = Key::of_file(&path).unwrap();
        assert_eq!(made.public(), again.public());
        assert_eq!(again.origin(), "file");
        let mode = |bits| fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        mode(0o604);
        let refused = Key::of_file(&path).err();
        assert!(matches!(
            refused,
            Some(KeyError::Exposed { mode: 0o604, .. })
        ));
        mode(0o600);
        fs::write(&path, "no key").unwrap();
        let refused = Key::of_file(&path).err();
        assert!(matches!(refused, Some(KeyError::Malformed { .. })));
    }
}
