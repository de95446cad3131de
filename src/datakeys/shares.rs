//! All tenants' shares: found by tenant, bounded together.

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::Clock;
use crate::datakeys::share::Allowance;
use crate::datakeys::share::Share;
use crate::metrics::Metrics;
use crate::name::TenantId;
use crate::sync::RwLock;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;
use crate::sync::read;
use crate::sync::write;

/// The shares of tenants that have something in the cache.
pub(super) struct Shares {
    shares: RwLock<HashMap<TenantId, Arc<Share>>>,
    /// Entries that hold a key.
    entries: Arc<AtomicU64>,
    most: u64,
    allowance: Allowance,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

impl Shares {
    /// Shares of `allowance` each, and of at most `most` entries in all.
    pub(super) fn new(
        most: u64,
        allowance: Allowance,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            shares: RwLock::default(),
            entries: Arc::default(),
            most,
            allowance,
            metrics,
            clock,
        }
    }

    /// The share of `tenant`.
    pub(super) fn of(&self, tenant: &TenantId) -> Arc<Share> {
        if let Some(share) = read(&self.shares).get(tenant) {
            return Arc::clone(share);
        }
        let fresh = || {
            let tally = self.metrics.tenant(tenant.as_str());
            let allowance = self.allowance;
            Arc::new(Share::new(
                allowance,
                &self.entries,
                &self.metrics,
                &self.clock,
                tally,
            ))
        };
        let mut shares = write(&self.shares);
        Arc::clone(shares.entry(tenant.clone()).or_insert_with(fresh))
    }

    /// The share of `tenant`, if it has one.
    pub(super) fn known(&self, tenant: &TenantId) -> Option<Arc<Share>> {
        read(&self.shares).get(tenant).cloned()
    }

    /// All shares of this moment.
    pub(super) fn all(&self) -> Vec<Arc<Share>> {
        read(&self.shares).values().cloned().collect()
    }

    /// Whether `share` can take two entries more, those of a sealing key, and nobody loses one.
    pub(super) fn have_room(&self, share: &Share) -> bool {
        let Allowance { entries, bytes } = self.allowance;
        self.entries.load(Ordering::Relaxed).saturating_add(2) <= self.most
            && share.entries().saturating_add(2) <= entries
            && share.bytes() < bytes
    }

    /// Makes room when there are too many entries in all: the tenant that has most gives some of
    /// its own, so nobody below an equal part of the whole loses any.
    pub(super) fn make_room(&self) {
        if self.entries.load(Ordering::Relaxed) <= self.most {
            return;
        }
        let largest = read(&self.shares)
            .values()
            .max_by_key(|share| share.entries())
            .cloned();
        if let Some(share) = largest {
            share.shrink();
        }
    }

    /// Forgets shares with nothing in them that nobody is about to use.
    pub(super) fn forget_empty(&self) {
        write(&self.shares).retain(|_, share| Arc::strong_count(share) > 1 || !share.is_empty());
    }
}
