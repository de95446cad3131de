//! What is left for each tenant when there is more to do than can be done: as much as for every
//! other, by weight. Who wants less gets all it wants; who wants more is refused the rest.
//!
//! Whoever measures the load sets the level. Without one, a call pays two relaxed loads.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::name::TenantId;
use crate::quota::Rate;
use crate::quota::bucket::Bucket;
use crate::quota::bucket::Size;
use crate::quota::table::Table;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;

/// Up to where tenants are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Units a second for each unit of a tenant's weight.
    pub units: u32,
    /// For how long who is refused waits for that, on average: meanwhile it asks for nothing else.
    pub hold: Duration,
}

/// What went by under a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Units that were spent.
    pub units: u64,
    /// Calls that were refused.
    pub refused: u64,
}

/// There is too much for all, and the tenant has had its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is too much to do, and the tenant has had its share")]
pub struct Crowded;

/// The shares of all tenants.
pub(super) struct Shares {
    tenants: Table<TenantId>,
    load: Arc<Load>,
}

/// What all tenants have in common. Relaxed: a call that sees the level of a moment ago is one of
/// that moment, and what is counted is read by and by.
struct Load {
    /// Of the level; [`NONE`] without one.
    units: AtomicU32,
    /// In milliseconds.
    hold: AtomicU64,
    spent: AtomicU64,
    refused: AtomicU64,
}

impl Shares {
    /// Without a level.
    pub(super) fn new() -> Self {
        let shares = Self {
            tenants: Table::new(SIZE),
            load: Arc::new(Load {
                units: AtomicU32::new(NONE),
                hold: AtomicU64::new(0),
                spent: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            }),
        };
        shares.set_level(None);
        shares
    }

    /// The share of `tenant`.
    pub(super) fn of(&self, tenant: &TenantId, weight: u32) -> Share {
        Share {
            bucket: self.tenants.bucket(tenant),
            weight,
            load: Arc::clone(&self.load),
        }
    }

    pub(super) fn set_level(&self, level: Option<Level>) {
        let units = level.map_or(NONE, |level| level.units);
        let hold = level.map_or(HOLD, |level| level.hold).as_millis();
        self.load.units.store(units, Ordering::Relaxed);
        let hold = u64::try_from(hold).unwrap_or(u64::MAX);
        self.load.hold.store(hold, Ordering::Relaxed);
    }

    pub(super) fn hold(&self) -> Duration {
        Duration::from_millis(self.load.hold.load(Ordering::Relaxed))
    }

    pub(super) fn passed(&self) -> Passed {
        Passed {
            units: self.load.spent.swap(0, Ordering::Relaxed),
            refused: self.load.refused.swap(0, Ordering::Relaxed),
        }
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.tenants.sweep(now);
    }
}

/// The share of one tenant.
pub(super) struct Share {
    bucket: Arc<Bucket>,
    weight: u32,
    load: Arc<Load>,
}

impl Share {
    /// Whether anything is left of it.
    pub(super) fn enter(&self, now: Instant) -> Result<(), Crowded> {
        match self.owed(now) {
            None => Ok(()),
            Some(_) => {
                self.load.refused.fetch_add(1, Ordering::Relaxed);
                Err(Crowded)
            }
        }
    }

    /// How long nothing is left of it; none when something is.
    pub(super) fn owed(&self, now: Instant) -> Option<Duration> {
        self.rate()?;
        self.bucket.owed(now)
    }

    /// Takes `units` of it, whatever is left.
    pub(super) fn charge(&self, units: u64, now: Instant) {
        if let Some(rate) = self.rate() {
            self.load.spent.fetch_add(units, Ordering::Relaxed);
            self.bucket.charge(units, rate, now);
        }
    }

    fn rate(&self) -> Option<Rate> {
        match self.load.units.load(Ordering::Relaxed) {
            NONE => None,
            units => Some(Rate::near(units.saturating_mul(self.weight))),
        }
    }
}

/// More than any level.
const NONE: u32 = u32::MAX;
/// While nothing stands in line, a refusal is held back for so long on average.
pub(super) const HOLD: Duration = Duration::from_millis(100);
/// What comes together is done together, so a burst is delay for all others.
const SIZE: Size = Size {
    burst: Duration::from_millis(10),
    debt: Duration::from_secs(1),
};
