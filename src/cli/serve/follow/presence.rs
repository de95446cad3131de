//! What a broker says of itself to those who share its store.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
use uuid::Uuid;

use crate::cli::chain;
use crate::clock::Clock;
use crate::clock::Instant;
use crate::store::Error;
use crate::store::Replica;
use crate::store::Store;

/// One broker's place among those on its store.
pub(in crate::cli::serve) struct Presence {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    said: Mutex<Said>,
}

/// What was said last, and when.
struct Said {
    replica: Replica,
    at: Option<Instant>,
}

impl Presence {
    /// The place of the process `id`, which goes by what it knows for `staleness`; not taken yet.
    pub(in crate::cli::serve) fn new(
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        id: Uuid,
        staleness: Duration,
    ) -> Self {
        let replica = Replica {
            id,
            name: host(),
            applied: 0,
            staleness,
        };
        let said = Mutex::new(Said { replica, at: None });
        Self { store, clock, said }
    }

    /// Says that all is known up to the change `applied`, unless that was said a moment ago.
    pub(super) async fn tell(&self, applied: u64) -> Result<(), Error> {
        let mut said = self.said.lock().await;
        let now = self.clock.now();
        let lately = said.at.is_some_and(|at| now.since(at) < OFTEN);
        if lately && said.replica.applied == applied {
            return Ok(());
        }
        let replica = Replica {
            applied,
            ..said.replica.clone()
        };
        // Where that fails, it is said again.
        said.at = None;
        self.store.report(&replica).await?;
        *said = Said {
            replica,
            at: Some(now),
        };
        Ok(())
    }

    /// Gives the place up. Where that fails, others forget of it by themselves.
    pub(in crate::cli::serve) async fn end(&self) {
        let id = self.said.lock().await.replica.id;
        match timeout(PATIENCE, self.store.withdraw(id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "{LEFT}"),
            Err(_) => tracing::warn!("{LEFT}"),
        }
    }
}

/// The name of the machine, or of its container.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

const LEFT: &str = "the store goes on naming this broker for a while";
/// Well before anybody takes it for silence.
const OFTEN: Duration = Duration::from_secs(10);
/// For an end in order.
const PATIENCE: Duration = Duration::from_secs(1);
