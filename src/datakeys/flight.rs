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

use crate::datakeys::Error;
use crate::datakeys::Source;
use crate::datakeys::id::Id;
use crate::kms;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::sync::spawn;
use crate::sync::within;

/// The calls under way, by entry.
pub(super) struct Flights<T> {
    flights: Table<T>,
    longest: Duration,
}

type Table<T> = Arc<Mutex<HashMap<Id, Flight<T>>>>;

/// What a flight ends in: the key, and how KMS names its call.
pub(super) type Landed<T> = Result<(T, Option<String>), Error>;
type Flight<T> = Shared<BoxFuture<'static, Landed<T>>>;

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// No calls yet, each of which may take as long as `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            flights: Arc::default(),
            longest,
        }
    }

    /// Waits for the flight of `id`, starting `fetch` if there is none. `fetch` puts its result
    /// into the cache before it returns; `cached` looks there.
    pub(super) async fn join(
        &self,
        id: Id,
        cached: impl Fn() -> Option<T>,
        fetch: impl Future<Output = Landed<T>> + Send + 'static,
    ) -> Result<(T, Source), Error> {
        let (flight, mine) = {
            let mut flights = lock(&self.flights);
            match flights.get(&id) {
                Some(flight) => (flight.clone(), false),
                None => {
                    // A flight may have landed since the caller looked.
                    if let Some(landed) = cached() {
                        return Ok((landed, Source::Coalesced));
                    }
                    let flight = self.start(id, fetch);
                    flights.insert(id, flight.clone());
                    (flight, true)
                }
            }
        };
        let (landed, request_id) = flight.await?;
        let source = if mine {
            Source::Miss(request_id)
        } else {
            Source::Coalesced
        };
        Ok((landed, source))
    }

    /// Whether no call is under way.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.flights).is_empty()
    }

    fn start(&self, id: Id, fetch: impl Future<Output = Landed<T>> + Send + 'static) -> Flight<T> {
        let flights = Arc::clone(&self.flights);
        let longest = self.longest;
        let task = spawn(async move {
            // Made in here: a runtime that is closing drops the task where it is spawned, under
            // the lock that a slot takes.
            let _slot = Slot { flights, id };
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
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.id);
    }
}

/// Bounds a flight whatever KMS and its client do.
pub(super) const LONGEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::future::ready;

    use super::*;

    fn nothing() -> Option<u8> {
        None
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_makes_way_for_the_next() {
        let flights = Flights::new(Duration::ZERO);
        let id = Id::any();
        let hung = pending::<Landed<u8>>();
        let error = flights
            .join(id, nothing, hung)
            .await
            .expect_err("no answer");
        assert!(matches!(error, Error::Kms(kms::Error::Unavailable(_))));
        assert!(flights.is_empty());
        let next = flights.join(id, nothing, ready(Ok((7, None)))).await;
        assert_eq!(next, Ok((7, Source::Miss(None))));
    }

    #[tokio::test]
    async fn a_panic_makes_way_for_the_next() {
        let flights = Flights::new(LONGEST);
        let id = Id::any();
        let error = flights.join(id, nothing, async { panic!("as told") }).await;
        assert_eq!(error, Err(Error::Bug("a KMS call panicked")));
        let next = flights.join(id, nothing, ready(Ok((7, None)))).await;
        assert_eq!(next, Ok((7, Source::Miss(None))));
    }

    #[tokio::test]
    async fn nobody_but_its_task_ends_a_call() {
        let flights = Flights::new(LONGEST);
        let id = Id::any();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let fetch = async move { Ok((answered.await.expect("an answer"), None)) };
        let leader = flights.join(id, nothing, fetch);
        assert!(leader.now_or_never().is_none(), "and the leader is gone");
        let follower = flights.join(id, nothing, pending());
        answer.send(7).expect("the call goes on");
        assert_eq!(follower.await, Ok((7, Source::Coalesced)));
    }
}
