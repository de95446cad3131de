//! For whom KMS is asked, and until when that is of use.

use std::sync::Arc;

use tokio::time::Instant;

use crate::name::TenantId;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::trace::Cause;

/// What a call to KMS is made for: a tenant, and those of its callers who wait for the answer.
///
/// Callers may join while it lasts, and the latest deadline among them counts. One without any
/// caller gives way to those that have some, until callers are about to come. Clones are one and the
/// same.
#[derive(Clone)]
pub struct Demand {
    tenant: TenantId,
    weight: u32,
    cause: Cause,
    otherwise: Otherwise,
    state: Arc<Mutex<State>>,
}

/// What becomes of it if the call brings nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Otherwise {
    Fails,
    GoesOn,
}

struct State {
    until: Instant,
    urgency: Urgency,
    over: bool,
}

/// Whether it gives way to calls for which callers wait.
#[derive(Clone, Copy)]
enum Urgency {
    /// It does.
    None,
    /// It does until then.
    From(Instant),
    /// It is one.
    Now,
}

impl Demand {
    /// A demand of a caller of `tenant`, who waits until then. A tenant of twice the `weight` gets
    /// twice as many calls where there are too few for all.
    pub fn new(tenant: TenantId, weight: u32, until: Instant) -> Self {
        Self::with(tenant, weight, until, Urgency::Now)
    }

    /// The same, with the spans of its requests caused by that.
    pub fn caused_by(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// A demand for which nobody waits: what it brings is of use later, and it may be given up
    /// then.
    pub fn ahead(tenant: TenantId, weight: u32, until: Instant) -> Self {
        Self::with(tenant, weight, until, Urgency::None)
    }

    /// As [`Demand::ahead`], and from `urgent` on as if callers waited: they are about to.
    pub fn ahead_of(urgent: Instant, tenant: TenantId, weight: u32, until: Instant) -> Self {
        Self::with(tenant, weight, until, Urgency::From(urgent))
    }

    fn with(tenant: TenantId, weight: u32, until: Instant, urgency: Urgency) -> Self {
        let state = State {
            until,
            urgency,
            over: false,
        };
        Self {
            tenant,
            weight: weight.max(1),
            cause: Cause::Nobody,
            otherwise: Otherwise::Fails,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The same demand, for a call without which it goes on by another one: that call shall not try
    /// for long.
    pub fn with_alternative(&self) -> Self {
        Self {
            otherwise: Otherwise::GoesOn,
            ..self.clone()
        }
    }

    /// A demand of its own for a later call of the same undertaking, which is of use until then
    /// whoever still waits: what has begun shall come to something.
    pub fn prolonged(&self, until: Instant) -> Self {
        let urgency = lock(&self.state).urgency;
        let until = self.until().max(until);
        Self::with(self.tenant.clone(), self.weight, until, urgency).caused_by(self.cause.clone())
    }

    /// Whether it goes on by another call if this one brings nothing.
    pub fn has_alternative(&self) -> bool {
        self.otherwise == Otherwise::GoesOn
    }

    /// Whose it is.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The tenant's weight, at least 1.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// What the spans of its requests are caused by: who began it, whoever joined.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// Adds a caller who waits until then. False when it is over: the caller needs another one.
    pub fn join(&self, until: Instant) -> bool {
        let mut state = lock(&self.state);
        if !state.over {
            state.until = state.until.max(until);
            state.urgency = Urgency::Now;
        }
        !state.over
    }

    /// Whether a caller waits at `now`, or did, or is about to.
    pub fn is_urgent(&self, now: Instant) -> bool {
        match lock(&self.state).urgency {
            Urgency::None => false,
            Urgency::From(then) => then <= now,
            Urgency::Now => true,
        }
    }

    /// Until when an answer is of use, as things stand: later when a caller joins.
    pub fn until(&self) -> Instant {
        lock(&self.state).until
    }

    /// Ends it if an answer at `now` would be of no use, and says whether it would: for good, unless
    /// it goes on by another call, which may have an answer sooner.
    pub fn lapses(&self, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let over = state.over || state.until <= now;
        state.over |= over && !self.has_alternative();
        over
    }

    /// Whether both are one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tenant() -> TenantId {
        "acme".parse().expect("a tenant")
    }

    #[test]
    fn the_latest_caller_counts_until_nobody_waits() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let demand = Demand::new(tenant(), 1, at(2));
        assert!(demand.join(at(5)) && demand.join(at(3)));
        assert_eq!(demand.until(), at(5));
        assert!(!demand.lapses(at(4)));
        assert!(demand.lapses(at(5)));
        assert!(!demand.join(at(9)) && demand.lapses(now), "for good");
    }

    #[test]
    fn an_alternative_is_of_one_call_and_the_wait_of_all() {
        let now = Instant::now();
        let demand = Demand::new(tenant(), 2, now);
        let first = demand.with_alternative();
        assert!(first.has_alternative() && !demand.has_alternative());
        assert!(demand.join(now + Duration::from_secs(5)) && first.is(&demand));
        assert_eq!(first.until(), demand.until());
        assert!(demand.lapses(now + Duration::from_secs(5)));
        let later = first.prolonged(now + Duration::from_secs(9));
        assert!(!later.lapses(now + Duration::from_secs(8)) && later.is_urgent(now));
        assert_eq!((later.weight(), later.has_alternative()), (2, false));
    }

    #[test]
    fn a_caller_makes_it_urgent() {
        let now = Instant::now();
        let demand = Demand::ahead(tenant(), 0, now + Duration::from_secs(1));
        assert_eq!((demand.is_urgent(now), demand.weight()), (false, 1));
        assert!(demand.join(now));
        assert!(demand.is_urgent(now));
    }

    #[test]
    fn time_makes_it_urgent_where_callers_are_about_to_come() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let demand = Demand::ahead_of(at(3), tenant(), 1, at(9));
        let later = demand.prolonged(at(20));
        for demand in [demand, later] {
            assert!(!demand.is_urgent(at(2)) && demand.is_urgent(at(3)));
        }
    }
}
