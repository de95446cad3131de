//! A keyring on disk: one holder at a time, replaced whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::fs::TryLockError;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use uuid::Uuid;

use crate::crypto::Secret;
use crate::crypto::random;
use crate::kms::local::contents::Contents;
use crate::kms::local::contents::Key;
use crate::kms::local::contents::MAX_KEYS;
use crate::kms::local::contents::MAX_VERSIONS;
use crate::kms::local::contents::Purpose;
use crate::kms::local::contents::State;
use crate::kms::local::contents::Version;
use crate::kms::local::disk;
use crate::kms::local::error::Error;
use crate::kms::local::file;
use crate::kms::local::file::Sealed;
use crate::kms::local::sealing::SealingKey;
use crate::name::KeyId;

/// A keyring file and its contents, held exclusively until dropped.
///
/// Reading takes no lock. A change is written to a new file, which replaces the old one once it is
/// on disk; only then does the change count in memory. A change that fails leaves both as they
/// were, or, when the disk fails in the very last step, a file that holds the change unused.
/// Changes block on the disk: in async code they belong on a blocking thread.
pub struct Keyring {
    path: PathBuf,
    contents: ArcSwap<Contents>,
    writer: Mutex<Writer>,
    /// Locked as long as it is open.
    _lock: disk::Lock,
}

/// What a write needs; its mutex admits one write at a time.
struct Writer {
    sealing: SealingKey,
    /// The header that the file must still have.
    header: Vec<u8>,
}

/// What a keyring tells about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Which key.
    pub id: KeyId,
    /// Whether it may be used.
    pub state: State,
    /// Its versions with the time each was made, in ascending order; the last one wraps.
    pub versions: Vec<(u32, Timestamp)>,
}

impl Keyring {
    /// Makes an empty keyring in a new file at `path`, readable by its owner alone, and holds it.
    ///
    /// # Errors
    /// [`Error::Exists`] rather than overwriting anything, [`Error::Held`], [`Error::Unwritable`],
    /// [`Error::Random`].
    pub fn create(path: &Path, purpose: Purpose, sealing: SealingKey) -> Result<Self, Error> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: path.into() });
        }
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: path.into() },
            _ => Error::Unwritable {
                path: path.into(),
                source,
            },
        };
        // The working folder may change while we hold the keyring.
        let path = &std::path::absolute(path).map_err(failed)?;
        let lock = lock(path)?;
        let mut id = [0; 16];
        random::fill(&mut id)?;
        let contents = Contents {
            id: uuid::Builder::from_random_bytes(id).into_uuid(),
            purpose,
            keys: BTreeMap::new(),
        };
        let bytes = contents.seal(&sealing)?;
        disk::written(path, &bytes)
            .and_then(|new| Ok(new.persist_noclobber(path)?))
            .and_then(|_| disk::sync_folder(path))
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            contents: ArcSwap::from_pointee(contents),
            writer: Mutex::new(Writer {
                sealing,
                header: header(&bytes),
            }),
            _lock: lock,
        })
    }

    /// Opens the keyring at `path` and holds it.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Held`], [`Error::Unreadable`], [`Error::Unwritable`] when
    /// there is no lock to be had, [`Error::Purpose`], [`Error::File`]. None changes the file.
    pub fn open(path: &Path, expected: Purpose, sealing: SealingKey) -> Result<Self, Error> {
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { path: path.into() },
            _ => Error::Unreadable {
                path: path.into(),
                source,
            },
        };
        let wrong = |why| Error::File {
            path: path.into(),
            why,
        };
        // One file has one lock, whatever links lead to it; and a replacement replaces the file,
        // not a link to it.
        let real = fs::canonicalize(path).map_err(unreadable)?;
        // Opening a pipe would wait for its writer.
        if !fs::metadata(&real).map_err(unreadable)?.is_file() {
            return Err(wrong(file::Error::NotKeyring));
        }
        let lock = lock(&real)?;
        let bytes = disk::read(&real, file::MAX_FILE + 1).map_err(unreadable)?;
        let sealed = Sealed::parse(&bytes).map_err(wrong)?;
        if sealed.purpose != expected {
            return Err(Error::Purpose {
                path: path.into(),
                found: sealed.purpose,
                expected,
            });
        }
        let contents = sealed.open(&sealing).map_err(wrong)?;
        Ok(Self {
            path: real,
            contents: ArcSwap::from_pointee(contents),
            writer: Mutex::new(Writer {
                sealing,
                header: header(&bytes),
            }),
            _lock: lock,
        })
    }

    /// The keyring's name for itself.
    pub fn id(&self) -> Uuid {
        self.contents.load().id
    }

    /// All keys, in the order of their ids.
    pub fn keys(&self) -> Vec<Listing> {
        let listing = |(id, key): (&KeyId, &Key)| Listing {
            id: id.clone(),
            state: key.state,
            versions: key.versions().map(|v| (v.number, v.created)).collect(),
        };
        self.contents.load().keys.iter().map(listing).collect()
    }

    /// Adds an enabled key with one version, made `now`.
    ///
    /// # Errors
    /// [`Error::KeyExists`], [`Error::ManyKeys`], and what a write can meet.
    pub fn add(&self, id: &KeyId, now: Timestamp) -> Result<(), Error> {
        self.change(|contents| {
            if contents.keys.contains_key(id) {
                return Err(Error::KeyExists { key: id.clone() });
            }
            if contents.keys.len() >= MAX_KEYS {
                return Err(Error::ManyKeys);
            }
            let key = Key {
                state: State::Enabled,
                primary: version(1, now)?,
                earlier: Vec::new(),
            };
            contents.keys.insert(id.clone(), key);
            Ok(())
        })
    }

    /// Gives an enabled key a new version, made `now`, which wraps from here on; earlier versions
    /// go on unwrapping. Returns the new version's number.
    ///
    /// # Errors
    /// [`Error::KeyUnknown`], [`Error::KeyState`], [`Error::ManyVersions`], and what a write can
    /// meet.
    pub fn rotate(&self, id: &KeyId, now: Timestamp) -> Result<u32, Error> {
        self.change(|contents| {
            let key = contents.key(id)?;
            match key.state {
                State::Enabled => advance(id, key, now),
                state @ (State::Disabled | State::PendingDeletion { .. }) => Err(Error::KeyState {
                    key: id.clone(),
                    state,
                }),
            }
        })
    }

    /// Rotates each enabled key whose newest version is at least `period` old, all in one write or
    /// none; a key that has all the versions it can have is passed over. Returns the rotated keys.
    ///
    /// # Errors
    /// What a write can meet.
    pub fn rotate_due(&self, period: Duration, now: Timestamp) -> Result<Vec<KeyId>, Error> {
        let due = |key: &Key| {
            let age = now.duration_since(key.primary.created);
            key.state == State::Enabled && Duration::try_from(age).is_ok_and(|age| age >= period)
        };
        // The usual answer, without a write.
        if !self.contents.load().keys.values().any(due) {
            return Ok(Vec::new());
        }
        self.change(|contents| {
            let mut rotated = Vec::new();
            for (id, key) in contents.keys.iter_mut().filter(|(_, key)| due(key)) {
                match advance(id, key, now) {
                    Ok(_) => rotated.push(id.clone()),
                    // It serves on in its last version; the others shall not wait for it.
                    Err(Error::ManyVersions { .. }) => {
                        tracing::error!(key = %id, "a local key has all the versions it can have");
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(rotated)
        })
    }

    /// Lets a disabled key be used again.
    ///
    /// # Errors
    /// [`Error::KeyUnknown`], [`Error::KeyState`] when its deletion is pending, and what a write
    /// can meet.
    pub fn enable(&self, id: &KeyId) -> Result<(), Error> {
        self.switch(id, State::Enabled)
    }

    /// Bars a key from all use, until it is enabled.
    ///
    /// # Errors
    /// As [`Keyring::enable`].
    pub fn disable(&self, id: &KeyId) -> Result<(), Error> {
        self.switch(id, State::Disabled)
    }

    /// Bars a key from all use and lets [`Keyring::delete_due`] destroy it from `due` on.
    ///
    /// # Errors
    /// [`Error::KeyUnknown`], [`Error::KeyState`] when its deletion is pending already, and what a
    /// write can meet.
    pub fn schedule_deletion(&self, id: &KeyId, due: Timestamp) -> Result<(), Error> {
        let due = whole_second(due);
        self.switch(id, State::PendingDeletion { due })
    }

    /// Takes back a pending deletion. The key is then disabled.
    ///
    /// # Errors
    /// [`Error::KeyUnknown`], [`Error::KeyState`] when no deletion is pending, and what a write
    /// can meet.
    pub fn cancel_deletion(&self, id: &KeyId) -> Result<(), Error> {
        self.change(|contents| {
            let key = contents.key(id)?;
            match key.state {
                State::PendingDeletion { .. } => key.state = State::Disabled,
                state @ (State::Disabled | State::Enabled) => {
                    return Err(Error::KeyState {
                        key: id.clone(),
                        state,
                    });
                }
            }
            Ok(())
        })
    }

    /// Destroys the keys whose deletion is due, with all that they wrapped. Returns them. Copies
    /// of the file (backups, the disk's own) still hold them.
    ///
    /// # Errors
    /// What a write can meet.
    pub fn delete_due(&self, now: Timestamp) -> Result<Vec<KeyId>, Error> {
        let due = |key: &Key| match key.state {
            State::PendingDeletion { due } => due <= now,
            State::Disabled | State::Enabled => false,
        };
        if !self.contents.load().keys.values().any(due) {
            return Ok(Vec::new());
        }
        self.change(|contents| {
            let deleted = contents.keys.extract_if(.., |_, key| due(key));
            Ok(deleted.map(|(id, _)| id).collect())
        })
    }

    /// The contents as they are now. A later change makes new ones.
    pub(super) fn contents(&self) -> arc_swap::Guard<Arc<Contents>> {
        self.contents.load()
    }

    /// Puts a key whose deletion is not pending into `state`.
    fn switch(&self, id: &KeyId, state: State) -> Result<(), Error> {
        self.change(|contents| {
            let key = contents.key(id)?;
            match key.state {
                State::Disabled | State::Enabled => key.state = state,
                pending @ State::PendingDeletion { .. } => {
                    return Err(Error::KeyState {
                        key: id.clone(),
                        state: pending,
                    });
                }
            }
            Ok(())
        })
    }

    /// Edits a copy of the contents, writes it, and lets it count.
    fn change<T>(&self, edit: impl FnOnce(&mut Contents) -> Result<T, Error>) -> Result<T, Error> {
        // A panic can't leave the writer torn: contents are swapped last.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Contents::clone(&self.contents.load());
        let outcome = edit(&mut next)?;
        self.replace(&mut writer, &next)?;
        self.contents.store(Arc::new(next));
        Ok(outcome)
    }

    fn replace(&self, writer: &mut Writer, next: &Contents) -> Result<(), Error> {
        let unwritable = |source| Error::Unwritable {
            path: self.path.clone(),
            source,
        };
        // Somebody may have put a backup in its place, lock or no lock: that one may hold keys
        // that we don't know. A file that is gone is written anew.
        match disk::read(&self.path, file::HEADER) {
            Ok(header) if header != writer.header => {
                return Err(Error::Changed {
                    path: self.path.clone(),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Unreadable {
                    path: self.path.clone(),
                    source,
                });
            }
        }
        let bytes = next.seal(&writer.sealing)?;
        disk::written(&self.path, &bytes)
            .and_then(|new| Ok(new.persist(&self.path)?))
            .map_err(unwritable)?;
        writer.header = header(&bytes);
        disk::sync_folder(&self.path).map_err(unwritable)
    }
}

impl Contents {
    fn key(&mut self, id: &KeyId) -> Result<&mut Key, Error> {
        self.keys
            .get_mut(id)
            .ok_or_else(|| Error::KeyUnknown { key: id.clone() })
    }
}

/// Adds a version to `key`.
fn advance(id: &KeyId, key: &mut Key, now: Timestamp) -> Result<u32, Error> {
    let full = || Error::ManyVersions { key: id.clone() };
    if key.versions().count() >= MAX_VERSIONS {
        return Err(full());
    }
    let number = key.primary.number.checked_add(1).ok_or_else(full)?;
    let former = std::mem::replace(&mut key.primary, version(number, now)?);
    key.earlier.push(former);
    Ok(number)
}

fn version(number: u32, now: Timestamp) -> Result<Version, random::Error> {
    Ok(Version {
        number,
        created: whole_second(now),
        material: Arc::new(Secret::random()?),
    })
}

/// What the file can hold of a time, so that memory and file agree.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).expect("a timestamp's own seconds are in range")
}

fn lock(path: &Path) -> Result<disk::Lock, Error> {
    disk::lock(path).map_err(|error| match error {
        TryLockError::WouldBlock => Error::Held { path: path.into() },
        TryLockError::Error(source) => Error::Unwritable {
            path: path.into(),
            source,
        },
    })
}

/// The header of a file, whose salt differs in each write.
fn header(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take(file::HEADER).collect()
}
