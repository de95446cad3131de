//! Buckets by whose they are, for as long as it matters.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::clock::Instant;
use crate::quota::bucket::Bucket;
use crate::sync::Mutex;
use crate::sync::lock;

/// The buckets of those who have a connection, or called a few seconds ago.
pub(super) struct Table<K>(Mutex<HashMap<K, Arc<Bucket>>>);

impl<K: Clone + Eq + Hash> Table<K> {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// The bucket of `key`. When there are [`MOST`] it is the caller's alone, and others of the
    /// same key have another: who keeps them bounds how many there are.
    pub(super) fn bucket(&self, key: &K) -> Arc<Bucket> {
        let mut buckets = lock(&self.0);
        if let Some(bucket) = buckets.get(key) {
            return Arc::clone(bucket);
        }
        let bucket = Arc::new(Bucket::new());
        if buckets.len() < MOST {
            buckets.insert(key.clone(), Arc::clone(&bucket));
        }
        bucket
    }

    /// Forgets buckets that are full and that nobody keeps: a new one is the same. Who comes back
    /// before that finds what it has left.
    pub(super) fn sweep(&self, now: Instant) {
        lock(&self.0).retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_full(now));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

/// Most that are remembered: as many as there may be connections.
pub(super) const MOST: usize = 65_536;
