//! One KMS call at a time for an entry: whoever comes meanwhile waits for its result.
//!
//! The call runs in a task of its own, so that a caller who goes away harms nobody, and it clears
//! its slot however it ends, a panic included. A tenant has flights of its own.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::future::Shared;
use tokio::time::Instant;

use crate::datakeys::Error;
use crate::datakeys::Source;
use crate::datakeys::id::Id;
use crate::kms;
use crate::kms::Demand;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::sync::spawn;
use crate::sync::within;

/// The calls under way, by entry.
pub(super) struct Flights<T> {
    flights: Table<T>,
    longest: Duration,
}

type Table<T> = Arc<Mutex<HashMap<Id, UnderWay<T>>>>;

struct UnderWay<T> {
    flight: Flight<T>,
    demand: Demand,
}

/// What a flight ends in: the key, and how KMS names its calls.
pub(super) type Landed<T> = Result<(T, Vec<String>), Error>;
type Flight<T> = Shared<BoxFuture<'static, Landed<T>>>;

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// No calls yet, each of which may take as long as `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            flights: Arc::default(),
            longest,
        }
    }

    /// Waits for the flight of `id`, as one of those for whom it is made, starting `fetch` for
    /// `demand` if there is none. `fetch` puts its result into the cache before it returns; `cached`
    /// looks there.
    pub(super) async fn join(
        &self,
        id: Id,
        demand: &Demand,
        cached: impl Fn() -> Option<T>,
        fetch: impl Future<Output = Landed<T>> + Send + 'static,
    ) -> Result<(T, Source), Error> {
        let (flight, mine) = {
            let mut flights = lock(&self.flights);
            match flights.get(&id) {
                Some(under_way) if under_way.takes(demand) => (under_way.flight.clone(), false),
                // One that nobody waits for any more brings nothing.
                Some(_) | None => {
                    // A flight may have landed since the caller looked.
                    if let Some(landed) = cached() {
                        return Ok((landed, Source::Coalesced));
                    }
                    let flight = self.start(id, demand, fetch);
                    let under_way = UnderWay {
                        flight: flight.clone(),
                        demand: demand.clone(),
                    };
                    flights.insert(id, under_way);
                    (flight, true)
                }
            }
        };
        let (landed, request_ids) = flight.await?;
        let source = if mine {
            Source::Miss(request_ids)
        } else {
            Source::Coalesced
        };
        Ok((landed, source))
    }

    /// Whether no call is under way.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.flights).is_empty()
    }

    fn start(
        &self,
        id: Id,
        demand: &Demand,
        fetch: impl Future<Output = Landed<T>> + Send + 'static,
    ) -> Flight<T> {
        let flights = Arc::clone(&self.flights);
        let demand = demand.clone();
        let longest = self.longest;
        let task = spawn(async move {
            // Made in here: a runtime that is closing drops the task where it is spawned, under
            // the lock that a slot takes.
            let _slot = Slot {
                flights,
                id,
                demand,
            };
            within(longest, fetch)
                .await
                .unwrap_or_else(|| Err(kms::Error::Unavailable("no answer in time".into()).into()))
        });
        async move { task.await.unwrap_or(Err(Error::Bug("a KMS call panicked"))) }
            .boxed()
            .shared()
    }
}

/// Leaves the table when the flight ends.
struct Slot<T> {
    flights: Table<T>,
    id: Id,
    demand: Demand,
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        let mut flights = lock(&self.flights);
        // Another one may have its place.
        if flights
            .get(&self.id)
            .is_some_and(|one| one.demand.is(&self.demand))
        {
            flights.remove(&self.id);
        }
    }
}

impl<T> UnderWay<T> {
    /// Whether the flight is made for `demand` too from now on.
    fn takes(&self, demand: &Demand) -> bool {
        let now = Instant::now();
        match demand.is_urgent(now) {
            true => self.demand.join(demand.until()),
            false => !self.demand.lapses(now),
        }
    }
}

/// Bounds a flight whatever KMS and its client do: callers who wait for 30 s each may join one after
/// the other while it has not had its turn.
pub(super) const LONGEST: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::future::ready;

    use super::*;

    fn nothing() -> Option<u8> {
        None
    }

    /// Of a caller who waits for so long.
    fn demand(wait: Duration) -> Demand {
        let tenant = "acme".parse().expect("a tenant");
        Demand::new(tenant, 1, Instant::now() + wait)
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_makes_way_for_the_next() {
        let flights = Flights::new(Duration::ZERO);
        let id = Id::any();
        let hung = pending::<Landed<u8>>();
        let error = flights
            .join(id, &demand(LONGEST), nothing, hung)
            .await
            .expect_err("no answer");
        assert!(matches!(error, Error::Kms(kms::Error::Unavailable(_))));
        assert!(flights.is_empty());
        let second = demand(LONGEST);
        let next = flights.join(id, &second, nothing, ready(Ok((7, Vec::new()))));
        let next = next.await;
        assert_eq!(next, Ok((7, Source::Miss(Vec::new()))));
    }

    #[tokio::test]
    async fn a_panic_makes_way_for_the_next() {
        let flights = Flights::new(LONGEST);
        let id = Id::any();
        let panics = async { panic!("as told") };
        let error = flights.join(id, &demand(LONGEST), nothing, panics).await;
        assert_eq!(error, Err(Error::Bug("a KMS call panicked")));
        let second = demand(LONGEST);
        let next = flights.join(id, &second, nothing, ready(Ok((7, Vec::new()))));
        let next = next.await;
        assert_eq!(next, Ok((7, Source::Miss(Vec::new()))));
    }

    #[tokio::test]
    async fn nobody_but_its_task_ends_a_call() {
        let flights = Flights::new(LONGEST);
        let id = Id::any();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let fetch = async move { Ok((answered.await.expect("an answer"), Vec::new())) };
        let first = demand(LONGEST);
        let leader = flights.join(id, &first, nothing, fetch);
        assert!(leader.now_or_never().is_none(), "and the leader is gone");
        let second = demand(2 * LONGEST);
        let follower = flights.join(id, &second, nothing, pending());
        let mut follower = Box::pin(follower);
        assert!((&mut follower).now_or_never().is_none());
        assert_eq!(first.until(), second.until(), "it waits too");
        answer.send(7).expect("the call goes on");
        assert_eq!(follower.await, Ok((7, Source::Coalesced)));
    }

    #[tokio::test]
    async fn who_comes_when_nobody_waits_any_more_has_a_call_of_its_own() {
        let flights = Flights::new(LONGEST);
        let id = Id::any();
        let late = demand(Duration::ZERO);
        assert!(late.lapses(Instant::now()));
        let (end, ended) = tokio::sync::oneshot::channel();
        let fetch = async move { Ok((ended.await.expect("an end"), Vec::new())) };
        let mut first = Box::pin(flights.join(id, &late, nothing, fetch));
        assert!((&mut first).now_or_never().is_none());
        let (answer, answered) = tokio::sync::oneshot::channel();
        let fetch = async move { Ok((answered.await.expect("an answer"), Vec::new())) };
        let next = demand(LONGEST);
        let mut second = Box::pin(flights.join(id, &next, nothing, fetch));
        assert!((&mut second).now_or_never().is_none());
        end.send(6).expect("it goes on");
        assert_eq!(first.await, Ok((6, Source::Miss(Vec::new()))));
        assert!(!flights.is_empty(), "its end is not the other's");
        answer.send(7).expect("it goes on");
        assert_eq!(second.await, Ok((7, Source::Miss(Vec::new()))));
        assert!(flights.is_empty());
    }
}
