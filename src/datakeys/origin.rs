//! What data keys have in common that one KMS key wrapped for one key: they can be cut off
//! together at once, and somebody can wait until the last of them is wiped.

use std::sync::Arc;
use std::sync::OnceLock;

use tokio::sync::Notify;

use crate::crypto::Secret;
use crate::directory::Key;
use crate::kms;
use crate::kms::KeyRef;
use crate::message::EncryptedDataKey;
use crate::metrics::Retirement;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering;
use crate::sync::atomic::fence;
use crate::sync::lock;

/// One version of a key, as the directory had it when its first data key was asked for.
pub(super) struct Origin {
    key: Arc<Key>,
    version: usize,
    kms_key: KeyRef,
    cut: OnceLock<Retirement>,
    /// Data keys in memory, those in use included.
    living: AtomicUsize,
    emptied: Notify,
    names: Mutex<Vec<Arc<Version>>>,
}

/// Which version of a key wrapped a data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `tenants/{tenant}/keys/{key}/versions/{version}`: the position in the key's list of KMS
    /// keys, or the local KMS's own number.
    pub name: Arc<str>,
    /// Whether that is the version that seals, as far as was known when the data key was fetched.
    pub primary: bool,
    /// The KMS key: what stands in the message as provider info.
    pub kms_key: Arc<str>,
}

impl Origin {
    /// The origin of data keys under `version` of `key`, counted from 1, which is `kms_key`.
    pub(super) fn new(key: Arc<Key>, version: usize, kms_key: KeyRef) -> Self {
        Self {
            key,
            version,
            kms_key,
            cut: OnceLock::new(),
            living: AtomicUsize::new(0),
            emptied: Notify::new(),
            names: Mutex::default(),
        }
    }

    pub(super) fn key(&self) -> &Arc<Key> {
        &self.key
    }

    pub(super) fn version(&self) -> usize {
        self.version
    }

    /// The KMS key that wraps here.
    pub(super) fn kms_key(&self) -> &KeyRef {
        &self.kms_key
    }

    /// Whether it is the version that seals.
    pub(super) fn is_primary(&self) -> bool {
        self.version == self.key.kms().primary_version()
    }

    /// Whether this is the very key that `key` is: the same name and state.
    pub(super) fn is_of(&self, key: &Key) -> bool {
        self.key.generation() == key.generation() && self.key.name() == key.name()
    }

    /// Why no data key of this origin may serve any more, if so.
    pub(super) fn cut(&self) -> Option<Retirement> {
        self.cut.get().copied()
    }

    /// Ends the service of all data keys of this origin, those that are on their way included.
    pub(super) fn cut_off(&self, why: Retirement) {
        // The first reason stands.
        let _ = self.cut.set(why);
        // Against whoever inserts a data key and then looks whether it was cut: at least one of
        // both sees the other.
        fence(Ordering::SeqCst);
    }

    /// As [`Origin::cut`], after something was made reachable.
    pub(super) fn cut_meanwhile(&self) -> Option<Retirement> {
        fence(Ordering::SeqCst);
        self.cut()
    }

    /// How many data keys are in memory.
    pub(super) fn living(&self) -> usize {
        self.living.load(Ordering::SeqCst)
    }

    /// Resolves when none is in memory. Only after [`Origin::cut_off`] is that for good.
    pub(super) async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            if self.living() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// The version by the names that `wrapped` gives it; `primary` when KMS would wrap with it.
    pub(super) fn named(&self, wrapped: &EncryptedDataKey, primary: bool) -> Arc<Version> {
        let mut names = lock(&self.names);
        let known = names
            .iter()
            .find(|one| *one.kms_key == *wrapped.provider_info && one.primary == primary);
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let position = self.version.to_string();
        let number = match wrapped.provider_id.as_str() {
            kms::LOCAL_PROVIDER => wrapped.provider_info.rsplit('/').next().unwrap_or("0"),
            _ => &position,
        };
        let version = Arc::new(Version {
            name: format!("{}/versions/{number}", self.key.name()).into(),
            primary,
            kms_key: wrapped.provider_info.as_str().into(),
        });
        // A local key may have any number of versions in its life.
        if names.len() == MOST_NAMES {
            names.clear();
        }
        names.push(Arc::clone(&version));
        version
    }
}

/// A data key's bytes, counted by their origin from first to last.
pub(super) struct Material {
    // Dropped in this order: wiped first, then counted out.
    secret: Secret<{ kms::DATA_KEY }>,
    living: Living,
}

impl Material {
    pub(super) fn new(secret: Secret<{ kms::DATA_KEY }>, origin: &Arc<Origin>) -> Self {
        origin.living.fetch_add(1, Ordering::SeqCst);
        Self {
            secret,
            living: Living(Arc::clone(origin)),
        }
    }

    pub(super) fn secret(&self) -> &Secret<{ kms::DATA_KEY }> {
        &self.secret
    }

    pub(super) fn origin(&self) -> &Arc<Origin> {
        &self.living.0
    }
}

struct Living(Arc<Origin>);

impl Drop for Living {
    fn drop(&mut self) {
        if self.0.living.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

/// Versions whose names are shared by their data keys.
const MOST_NAMES: usize = 16;
