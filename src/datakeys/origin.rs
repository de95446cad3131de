//! What data keys have in common that the same KMS keys wrap for one key: they can be cut off
//! together at once, and somebody can wait until the last of them is wiped.

use std::sync::Arc;
use std::sync::OnceLock;

use tokio::sync::Notify;

use crate::crypto::Secret;
use crate::directory::Key;
use crate::directory::KmsKeys;
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
    kms_keys: KmsKeys,
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
    /// The KMS keys that have wrapped or unwrapped it: what stands in the message as provider info.
    pub kms_keys: Box<[Arc<str>]>,
}

impl Origin {
    /// The origin of data keys under `version` of `key`, counted from 1, which is `kms_keys`.
    pub(super) fn new(key: Arc<Key>, version: usize, kms_keys: KmsKeys) -> Self {
        Self {
            key,
            version,
            kms_keys,
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

    /// The KMS keys that wrap here.
    pub(super) fn kms_keys(&self) -> &KmsKeys {
        &self.kms_keys
    }

    /// Whether `kms_key` is one of those in its preferred Region, whatever replicas either has.
    pub(super) fn is_under(&self, kms_key: &KeyRef) -> bool {
        let mut own = self.kms_keys.iter().map(KeyRef::preferred);
        own.any(|one| one == kms_key.preferred())
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

    /// The version by the names that `wrapped` gives it, of the same data key each; `primary` when
    /// KMS would wrap with it.
    pub(super) fn named(&self, wrapped: &[EncryptedDataKey], primary: bool) -> Arc<Version> {
        let mut names = lock(&self.names);
        let infos = || wrapped.iter().map(|one| one.provider_info.as_str());
        let same = |one: &Version| one.kms_keys.iter().map(|name| &**name).eq(infos());
        let mut known = names.iter();
        if let Some(known) = known.find(|one| one.primary == primary && same(one)) {
            return Arc::clone(known);
        }
        let position = self.version.to_string();
        let number = match wrapped.first() {
            Some(one) if one.provider_id == kms::LOCAL_PROVIDER => {
                one.provider_info.rsplit('/').next().unwrap_or("0")
            }
            Some(_) | None => &position,
        };
        let version = Arc::new(Version {
            name: format!("{}/versions/{number}", self.key.name()).into(),
            primary,
            kms_keys: infos().map(Arc::from).collect(),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::directory::Directory;
    use crate::kms::Replicas;

    #[test]
    fn an_origin_is_under_its_kms_keys_whatever_replicas_they_are_named_with() {
        let near = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1";
        let other = "arn:aws:kms:eu-west-1:111122223333:key/other";
        let text = format!(
            "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\n\
             kms = {{ key = \"{near}\", replica_regions = [\"us-east-1\"], \
             additional_key = \"{other}\" }}\n"
        );
        let directory = Directory::parse(&text, Path::new("tenants.toml")).expect("a directory");
        let tenant = "acme".parse().expect("a tenant");
        let key = directory.keys(&tenant).first().expect("a key");
        let kms_keys = key.kms().versions().next().expect("a version").clone();
        let origin = Origin::new(Arc::clone(key), 1, kms_keys);
        let aws = |text: &str| text.parse::<KeyRef>().expect("an ARN");
        let replicas = Replicas::new(near.parse().expect("an ARN"), ["ap-south-1"]);
        for (kms_key, is_under) in [
            (aws(near), true),
            (KeyRef::MultiRegion(replicas.expect("a replica")), true),
            (aws(other), true),
            // Another Region's replica has a state of its own.
            (aws(&near.replace("eu-west-1", "us-east-1")), false),
            (aws(&near.replace("mrk-1", "mrk-2")), false),
            ("local:mrk-1".parse().expect("a name"), false),
        ] {
            assert_eq!(origin.is_under(&kms_key), is_under, "{kms_key}");
        }
    }
}
