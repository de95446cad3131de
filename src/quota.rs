//! Request limits: what each tenant and each principal may spend, what calls cost, and what is left
//! for each tenant when there is more to do than can be done.
//!
//! The unit is a small call that a cached data key serves. A call is let in while its tenant and
//! its principal have anything left, before its body is read, and pays what it turns out to cost;
//! what it spends beyond that holds up those after it. A connection looks up its [`Account`] once,
//! and from then on a call takes from two atomics and no lock.

mod bucket;
mod share;
mod table;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Deserialize;

use crate::clock::Clock;
use crate::clock::Instant;
use crate::identity::Caller;
use crate::identity::Principal;
use crate::metrics::Metrics;
use crate::metrics::RateScope;
use crate::name::TenantId;
use crate::quota::bucket::Bucket;
use crate::quota::bucket::Size;
use crate::quota::share::Share;
use crate::quota::share::Shares;
use crate::quota::table::Table;
use crate::strict::OutOfBounds;

pub use share::Crowded;
pub use share::Level;
pub use share::Passed;

/// What tenants and principals may spend unless the directory says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Units a second of one tenant.
    pub tenant_rate: u32,
    /// Units a second of one principal.
    pub principal_rate: u32,
}

impl Default for Config {
    /// More than one process serves to anybody: 100,000 small calls a second take two cores, and
    /// their data keys more KMS calls than an account has.
    fn default() -> Self {
        Self {
            tenant_rate: 200_000,
            principal_rate: 100_000,
        }
    }
}

impl Config {
    /// Checks both rates against their bounds.
    ///
    /// # Errors
    /// [`OutOfBounds`] for the first outside.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        for (name, value) in [
            ("quota.tenant_rate", self.tenant_rate),
            ("quota.principal_rate", self.principal_rate),
        ] {
            Rate::new(value).ok_or_else(|| OutOfBounds {
                name,
                value: value.to_string(),
                least: "100",
                most: "10000000",
            })?;
        }
        Ok(())
    }
}

/// Units a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU32);

impl Rate {
    /// The lowest: below it a batch of 1,000 items would hold up its tenant for long.
    pub const LEAST: u32 = 100;
    /// The highest, at which a unit comes back every 100 ns.
    pub const MOST: u32 = 10_000_000;

    /// So many units a second, if that is within the bounds.
    pub fn new(units: u32) -> Option<Self> {
        let units = NonZeroU32::new(units)?;
        (Self::LEAST..=Self::MOST)
            .contains(&units.get())
            .then_some(Self(units))
    }

    /// `units` a second, as near to it as the bounds allow.
    fn near(units: u32) -> Self {
        let units = NonZeroU32::new(units.clamp(Self::LEAST, Self::MOST));
        Self(units.unwrap_or(NonZeroU32::MIN))
    }

    /// Units a second.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The nanoseconds in which it brings `units`.
    pub fn nanos(self, units: u64) -> u64 {
        units.saturating_mul(1_000_000_000) / u64::from(self.get())
    }
}

/// The limits of all tenants and principals.
pub struct Quotas {
    tenants: Table<TenantId>,
    principals: Table<Principal>,
    shares: Shares,
    tenant_rate: Rate,
    principal_rate: Rate,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

impl Quotas {
    /// Limits as `config` has them, which [`Config::check`] has found good.
    pub fn new(config: &Config, metrics: Metrics, clock: Arc<dyn Clock>) -> Self {
        Self {
            tenants: Table::new(SIZE),
            principals: Table::new(SIZE),
            shares: Shares::new(),
            tenant_rate: Rate::near(config.tenant_rate),
            principal_rate: Rate::near(config.principal_rate),
            metrics,
            clock,
        }
    }

    /// The account of `caller`, whose tenant is on these `terms`. `known` is what its connection
    /// keeps of it; it is looked up anew for another `generation` of the directory.
    pub fn account(
        &self,
        known: &Known,
        generation: u64,
        caller: &Caller,
        terms: Terms,
    ) -> Arc<Account> {
        if let Some(account) = &*known.0.load()
            && account.generation == generation
        {
            return Arc::clone(account);
        }
        let account = Arc::new(Account {
            generation,
            tenant: Limit {
                bucket: self.tenants.bucket(caller.tenant()),
                rate: terms.rate.unwrap_or(self.tenant_rate),
                scope: RateScope::Tenant,
            },
            principal: Limit {
                bucket: self.principals.bucket(caller.principal()),
                rate: self.principal_rate,
                scope: RateScope::Principal,
            },
            share: self.shares.of(caller.tenant(), terms.weight),
            metrics: self.metrics.clone(),
            clock: Arc::clone(&self.clock),
        });
        known.0.store(Some(Arc::clone(&account)));
        account
    }

    /// Forgets whom a new account would suit as well.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.tenants.sweep(now);
        self.principals.sweep(now);
        self.shares.sweep(now);
    }

    /// Sets up to where each tenant is served, however much it has left otherwise; none: as far as
    /// it has anything left.
    pub fn set_level(&self, level: Option<Level>) {
        self.shares.set_level(level);
    }

    /// For how long those who are refused shall wait for that, on average.
    pub fn hold(&self) -> Duration {
        self.shares.hold()
    }

    /// What went by since this was last asked, while there was a level.
    pub fn passed(&self) -> Passed {
        self.shares.passed()
    }
}

/// What the directory says of a tenant.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What it may spend, if that is its own.
    pub rate: Option<Rate>,
    /// Its share, as against other tenants'.
    pub weight: u32,
}

/// What a connection keeps of its account.
#[derive(Default)]
pub struct Known(ArcSwapOption<Account>);

/// What one caller may spend: what its tenant and what it has left itself.
pub struct Account {
    generation: u64,
    tenant: Limit,
    principal: Limit,
    share: Share,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

struct Limit {
    bucket: Arc<Bucket>,
    rate: Rate,
    scope: RateScope,
}

impl Account {
    /// Whether there is room for a call of this tenant among those of others.
    ///
    /// # Errors
    /// [`Crowded`] while there is too much for all and the tenant has had its share.
    pub fn enter(&self) -> Result<(), Crowded> {
        self.share.enter(self.clock.now())
    }

    /// Spends `units`, which may be more than there are, if there are any.
    ///
    /// # Errors
    /// [`Exceeded`], and nothing is spent.
    pub fn spend(&self, units: u64) -> Result<(), Exceeded> {
        let now = self.clock.now();
        let spent = self.take(units, now);
        spent.inspect_err(|exceeded| self.metrics.rate_limited(exceeded.scope))
    }

    /// As [`Account::enter`] and [`Account::spend`], by one who waits and tries again, and is not
    /// counted as refused.
    ///
    /// # Errors
    /// The time until there is something, and nothing is spent.
    pub fn try_spend(&self, units: u64) -> Result<(), Duration> {
        let now = self.clock.now();
        match self.share.owed(now) {
            Some(wait) => Err(wait),
            None => self.take(units, now).map_err(|exceeded| exceeded.wait),
        }
    }

    fn take(&self, units: u64, now: Instant) -> Result<(), Exceeded> {
        // The tenant is asked first, so that a call that it refuses costs the principal nothing.
        match self.tenant.bucket.owed(now) {
            Some(wait) => Err(self.tenant.exceeded(wait)),
            None => self
                .principal
                .take(units, now)
                .and_then(|()| self.tenant.take(units, now)),
        }?;
        self.share.charge(units, now);
        Ok(())
    }

    /// Spends `units` whatever there is.
    pub fn charge(&self, units: u64) {
        let now = self.clock.now();
        for limit in [&self.tenant, &self.principal] {
            limit.bucket.charge(units, limit.rate, now);
        }
        self.share.charge(units, now);
    }
}

impl Limit {
    fn take(&self, units: u64, now: Instant) -> Result<(), Exceeded> {
        let taken = self.bucket.take(units, self.rate, now);
        taken.map_err(|wait| self.exceeded(wait))
    }

    fn exceeded(&self, wait: Duration) -> Exceeded {
        Exceeded {
            scope: self.scope,
            rate: self.rate.get(),
            wait,
        }
    }
}

/// A caller has spent what it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("over the {}'s rate of {rate} units a second", scope.label())]
pub struct Exceeded {
    /// Whose limit it is.
    pub scope: RateScope,
    /// The limit, in units a second.
    pub rate: u32,
    /// The time until there is something to spend.
    pub wait: Duration,
}

/// What so many bytes cost beside the call or the item that they are in: sealing 8 KiB takes about
/// as long as all that goes with a call.
pub fn of_bytes(bytes: usize) -> u64 {
    u64::try_from(bytes >> 13).unwrap_or(u64::MAX)
}

/// What a call costs, an item of a batch, or a chunk of a stream.
pub const CALL: u64 = 1;
/// What asking KMS costs beside the call for which it is asked.
pub const KMS: u64 = 9;
/// What making or ending a grant of KMS costs beside its call: KMS takes 50 a second of an account.
pub const KMS_GRANT: u64 = 999;
/// Of the buckets of tenants and principals.
const SIZE: Size = Size {
    burst: Duration::from_secs(2),
    debt: Duration::from_secs(10),
};

#[cfg(test)]
mod tests;
