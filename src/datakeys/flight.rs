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
pub(super) struct Flights<T>(Arc<Mutex<HashMap<Id, Flight<T>>>>);

/// What a flight ends in: the key, and how KMS names its call.
pub(super) type Landed<T> = Result<(T, Option<String>), Error>;
type Flight<T> = Shared<BoxFuture<'static, Landed<T>>>;

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Waits for the flight of `id`, starting `fetch` if there is none. `fetch` puts its result
    /// into the cache before it returns; `cached` looks there.
    pub(super) async fn join(
        &self,
        id: Id,
        cached: impl Fn() -> Option<T>,
        fetch: impl Future<Output = Landed<T>> + Send + 'static,
    ) -> Result<(T, Source), Error> {
        let (flight, mine) = {
            let mut flights = lock(&self.0);
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
        lock(&self.0).is_empty()
    }

    fn start(&self, id: Id, fetch: impl Future<Output = Landed<T>> + Send + 'static) -> Flight<T> {
        let flights = Arc::clone(&self.0);
        let task = spawn(async move {
            // Made in here: a runtime that is closing drops the task where it is spawned, under
            // the lock that a slot takes.
            let _slot = Slot { flights, id };
            within(LONGEST, fetch)
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
    flights: Arc<Mutex<HashMap<Id, Flight<T>>>>,
    id: Id,
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.id);
    }
}

/// Bounds a flight whatever KMS and its client do.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
