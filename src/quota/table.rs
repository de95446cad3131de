//! Buckets by whose they are, for as long as it matters.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::clock::Instant;
use crate::quota::bucket::Bucket;
use crate::quota::bucket::Size;
use crate::sync::Mutex;
use crate::sync::lock;

/// The buckets of those who have a connection, or called a few seconds ago.
pub(super) struct Table<K> {
    buckets: Mutex<HashMap<K, Arc<Bucket>>>,
    size: Size,
}

impl<K: Clone + Eq + Hash> Table<K> {
    /// An empty one, for buckets of `size`.
    pub(super) fn new(size: Size) -> Self {
        Self {
            buckets: Mutex::new(HashMap::new()),
            size,
        }
    }

    /// The bucket of `key`. When there are [`MOST`] it is the caller's alone, and others of the
    /// same key have another: who keeps them bounds how many there are.
    pub(super) fn bucket(&self, key: &K) -> Arc<Bucket> {
        let mut buckets = lock(&self.buckets);
        if let Some(bucket) = buckets.get(key) {
            return Arc::clone(bucket);
        }
        let bucket = Arc::new(Bucket::new(self.size));
        if buckets.len() < MOST {
            buckets.insert(key.clone(), Arc::clone(&bucket));
        }
        bucket
    }

    /// Forgets buckets that are full and that nobody keeps: a new one is the same. Who comes back
    /// before that finds what it has left.
    pub(super) fn sweep(&self, now: Instant) {
        lock(&self.buckets)
            .retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_full(now));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.buckets).len()
    }
}

/// Most that are remembered: as many as there may be connections.
pub(super) const MOST: usize = 65_536;
