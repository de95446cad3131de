//! What is known of grants, kept in step with the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::error::Error;
use crate::grants::Book;
use crate::grants::Contact;
use crate::grants::Living;
use crate::grants::MOST_SKEW;
use crate::grants::TokenKeys;
use crate::store;
use crate::store::Store;
use crate::store::grants::Told;

/// The grants that this replica knows, and the store that has them all.
pub struct Grants {
    pub(super) book: Book,
    pub(in crate::broker) store: Arc<Store>,
    clock: Arc<dyn Clock>,
    /// The change up to which all is known. Held while that moves.
    known: Mutex<Option<u64>>,
}

impl Grants {
    /// Those in `store`, none of them known yet; tokens are made and believed under `keys`.
    pub fn new(store: Arc<Store>, keys: TokenKeys, clock: Arc<dyn Clock>) -> Self {
        Self {
            book: Book::new(keys, Arc::clone(&clock)),
            store,
            clock,
            known: Mutex::new(None),
        }
    }

    /// What is known of them.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Asks the store what has changed, and takes it up: twice a second, and at once when there is
    /// word of a change. Afterwards grants count for another [`crate::grants::PATIENCE`].
    ///
    /// # Errors
    /// [`store::Error`]: what is known stays, and gets older.
    pub async fn catch_up(&self) -> Result<(), store::Error> {
        let mut known = self.known.lock().await;
        let asked = self.clock.now();
        let mut whole = None;
        let head = self
            .store
            .grant_news(*known, |told| match (told, &whole) {
                (Told::Whole, _) => whole = Some(Living::new()),
                (Told::Grant(grant), Some(living)) => living.insert(&grant),
                (Told::Grant(grant), None) => self.book.apply(&grant),
                (Told::Damaged(id), living) => {
                    tracing::error!(?id, "a grant's row in the store is damaged: it is no grant");
                    if let (Some(id), None) = (id, living) {
                        self.book.end(&id);
                    }
                }
            })
            .await;
        // Where that failed some of it may have been taken up, and will be again.
        let head = head?;
        if let Some(living) = whole {
            self.book.replace(living);
        }
        self.book.heard(Contact {
            asked,
            store: head.now,
            applied: head.number,
        });
        *known = Some(head.number);
        Ok(())
    }

    /// Has the store forget what was over a day ago: now and then.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn forget(&self) -> Result<(), store::Error> {
        self.store.forget_grants().await
    }

    /// Refuses to give anybody time while it is uncertain what time it is.
    pub(super) fn check_clock(&self) -> Result<(), Error> {
        match self.book.skew() {
            Some(skew) if skew > MOST_SKEW => {
                let why = format!(
                    "its clock and the broker's are {}s apart: no grant is made or renewed",
                    skew.as_secs()
                );
                Err(Error::StoreUnavailable(why.into()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes up what this replica has changed itself. The store has it, so there is no harm if that
    /// takes too long: the replica hears of it as others do.
    pub(super) async fn take_up(&self) {
        if let Err(late) = timeout(PATIENCE, self.catch_up()).await {
            tracing::warn!(%late, "a change of a grant is not taken up at once");
        }
    }
}

/// For taking up a change of one's own before it is answered.
const PATIENCE: Duration = Duration::from_secs(1);
