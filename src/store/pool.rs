//! Connections: few, and made slowly, so that a database that comes back is not taken down by those
//! who waited for it.

use std::ops::Deref;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use crate::crypto::random::jittered;
use crate::store::Error;
use crate::store::engine::Connection;
use crate::store::engine::Engine;

/// Connections to one engine.
pub(super) struct Pool {
    engine: Engine,
    idle: Mutex<Vec<Connection>>,
    seats: Arc<Semaphore>,
    /// When the next connection may be made.
    next: tokio::sync::Mutex<Instant>,
}

/// A connection on loan. Dropped, it is closed if its use has failed; if that was given up, what it
/// began is undone aside.
pub(super) struct Lease {
    held: Option<Held>,
    pool: Arc<Pool>,
}

struct Held {
    connection: Connection,
    seat: OwnedSemaphorePermit,
}

impl Pool {
    /// A pool of at most `most` connections, none of them made yet.
    pub(super) fn new(engine: Engine, most: usize) -> Arc<Self> {
        Arc::new(Self {
            engine,
            idle: Mutex::default(),
            seats: Arc::new(Semaphore::new(most)),
            next: tokio::sync::Mutex::new(Instant::now()),
        })
    }

    /// What it connects to.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A connection, perhaps a new one. Waits as long as it takes.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Lease, Error> {
        let seat = Arc::clone(&self.seats).acquire_owned().await;
        let seat = seat.expect("nobody closes the semaphore");
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                self.turn().await;
                self.engine.connect().await?
            }
        };
        Ok(Lease {
            held: Some(Held { connection, seat }),
            pool: Arc::clone(self),
        })
    }

    /// Waits for the turn to make a connection: at most ten a second, not in step with others'.
    pub(super) async fn turn(&self) {
        let mut next = self.next.lock().await;
        sleep_until(*next).await;
        *next = Instant::now() + jittered(PAUSE);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Keeps the connection for others: after a use that succeeded and left nothing open.
    pub(super) fn give_back(mut self) {
        if let Some(held) = self.held.take() {
            self.pool.idle().push(held.connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        match Handle::try_current() {
            // Callers may leave at any moment, as often as they like: if that closed connections, one
            // of them could keep all others waiting for new ones.
            Ok(runtime) if !held.connection.has_failed() => {
                runtime.spawn(salvage(held, Arc::clone(&self.pool)));
            }
            // Where one has failed, most likely the others have, too.
            Ok(_) | Err(_) => self.pool.idle().clear(),
        }
    }
}

/// Undoes what was begun on a connection, and keeps it if that works.
async fn salvage(held: Held, pool: Arc<Pool>) {
    let Held {
        mut connection,
        seat,
    } = held;
    match timeout(UNDOING, connection.undo()).await {
        Ok(Ok(())) => pool.idle().push(connection),
        Ok(Err(_)) | Err(_) => {
            drop(connection);
            pool.idle().clear();
        }
    }
    drop(seat);
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        let held = self.held.as_ref();
        &held.expect("it is there until the end").connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        let held = self.held.as_mut();
        &mut held.expect("it is there until the end").connection
    }
}

/// Least between two connections.
const PAUSE: Duration = Duration::from_millis(100);
/// For undoing what was begun on a connection.
const UNDOING: Duration = Duration::from_secs(1);
