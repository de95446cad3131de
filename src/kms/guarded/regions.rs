//! The keys that were called of late, and what those of a Region and of an account share.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::kms::KeyRef;
use crate::kms::guarded::guard::Guard;
use crate::kms::guarded::region::Account;
use crate::kms::guarded::region::Region;
use crate::kms::guarded::stop::Stop;
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::trace::Tracer;

/// All that were called of late.
pub(super) struct Regions {
    metrics: Metrics,
    tracer: Tracer,
    /// Requests a second to an account of AWS in a Region.
    limit: u32,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    regions: HashMap<String, Arc<Region>>,
    accounts: HashMap<(String, String), Arc<Account>>,
    keys: HashMap<KeyRef, Arc<Guard>>,
}

impl Regions {
    /// Regions whose accounts are sent at most `limit` requests a second each.
    pub(super) fn new(limit: u32, metrics: Metrics, tracer: Tracer) -> Self {
        Self {
            metrics,
            tracer,
            limit,
            known: Mutex::default(),
        }
    }

    /// The guard of `key`.
    pub(super) fn guard(&self, key: &KeyRef, now: Instant) -> Arc<Guard> {
        let Known {
            regions,
            accounts,
            keys,
        } = &mut *lock(&self.known);
        if let Some(guard) = keys.get(key) {
            return Arc::clone(guard);
        }
        let name = key.region();
        let region = regions.entry(name.to_owned()).or_insert_with(|| {
            let tally = self.metrics.kms(name);
            Arc::new(Region::new(name, tally, self.tracer.clone()))
        });
        let place = (name.to_owned(), key.account().to_owned());
        let account = accounts.entry(place).or_insert_with(|| {
            let limit = match key {
                KeyRef::Aws(_) | KeyRef::MultiRegion(_) => Some(self.limit),
                // Nobody counts them.
                KeyRef::Local(_) => None,
            };
            Arc::new(Account::new(limit, region, now))
        });
        let (region, account) = (Arc::clone(region), Arc::clone(account));
        let guard = Arc::new(Guard::new(key.clone(), region, account, now));
        keys.insert(key.clone(), Arc::clone(&guard));
        guard
    }

    /// The Regions of `key`, in the order in which a call shall ask them: first the preferred one of
    /// those that are well, or that it is time to try again.
    pub(super) fn route<'k>(&self, key: &'k KeyRef, now: Instant) -> Vec<Stop<'k>> {
        let replicas = key.in_regions();
        let stop = |key| Stop::new(key, self.guard(key, now), replicas);
        let mut route: Vec<_> = replicas.iter().map(stop).collect();
        if route.len() == 1 {
            return route;
        }
        let first = route
            .iter()
            .position(|stop| stop.guard.region().comes_first(now));
        if let Some(first) = first {
            let first = route.remove(first);
            let is_hopeful = |stop: &Stop<'_>| stop.guard.region().is_hopeful(now);
            // The last one is asked again and again: that would be lost on one that is not well.
            if is_hopeful(&first) || route.iter().any(is_hopeful) {
                route.retain(is_hopeful);
            }
            route.insert(0, first);
        }
        route
    }

    /// Forgets the keys that nobody has asked for during the last minute, and the Regions and
    /// accounts that have no others.
    pub(super) fn forget(&self, now: Instant) {
        let Known {
            regions,
            accounts,
            keys,
        } = &mut *lock(&self.known);
        keys.retain(|_, guard| {
            // Who has it will ask it.
            let kept = Arc::strong_count(guard) > 1 || !guard.is_idle(now);
            if !kept {
                guard.leave();
            }
            kept
        });
        accounts.retain(|_, account| {
            account.gate().tend(now);
            Arc::strong_count(account) > 1
        });
        regions.retain(|_, region| Arc::strong_count(region) > 1);
    }
}
