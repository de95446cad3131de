//! Connections: few, and made slowly, so that a database that comes back is not taken down by those
//! who waited for it.

use std::ops::Deref;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::sleep_until;

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

/// A connection on loan. Dropped, it is closed, and what it began is undone.
pub(super) struct Lease {
    connection: Option<Connection>,
    pool: Arc<Pool>,
    _seat: OwnedSemaphorePermit,
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
            connection: Some(connection),
            pool: Arc::clone(self),
            _seat: seat,
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
        if let Some(connection) = self.connection.take() {
            self.pool.idle().push(connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.connection.is_some() {
            // Where one has failed, most likely the others have, too.
            self.pool.idle().clear();
        }
    }
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is there until the end")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("it is there until the end")
    }
}

/// Least between two connections.
const PAUSE: Duration = Duration::from_millis(100);
