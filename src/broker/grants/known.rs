//! What is known of grants, kept in step with the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::broker::grants::asked::Seats;
use crate::clock::Clock;
use crate::grants;
use crate::grants::Book;
use crate::grants::Contact;
use crate::grants::Living;
use crate::grants::TokenKeys;
use crate::store;
use crate::store::Store;
use crate::store::grants::Told;

/// The grants that this replica knows, and the store that has them all.
pub struct Grants {
    pub(super) book: Book,
    pub(in crate::broker) store: Arc<Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) seats: Seats,
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
            seats: Seats::default(),
            known: Mutex::new(None),
        }
    }

    /// What is known of them.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Whether all grants are known here. Before that the store is asked at each use.
    pub fn is_whole(&self) -> bool {
        self.book.contact().is_some()
    }

    /// Whether the store has been silent for so long that no grant counts.
    pub(in crate::broker) fn is_lost(&self) -> bool {
        self.is_whole() && !self.book.is_in_touch()
    }

    /// Whether `asked` will not count for much longer.
    pub(in crate::broker) fn is_old(&self, asked: &Book) -> bool {
        let contact = asked.contact();
        contact.is_none_or(|contact| self.clock.now().since(contact.asked) >= grants::PATIENCE / 3)
    }

    /// This replica's book, unless `asked` may know more.
    pub(in crate::broker) fn book_beside<'a>(&'a self, asked: Option<&'a Arc<Book>>) -> &'a Book {
        match asked {
            Some(asked) if !self.book.is_level_with(asked) => asked,
            Some(_) | None => &self.book,
        }
    }

    /// Asks the store what has changed, and takes it up: twice a second, and at once when there is
    /// word of a change. Afterwards grants count for another [`crate::grants::PATIENCE`].
    ///
    /// The first time takes as long as there are many.
    ///
    /// # Errors
    /// [`store::Error`]: what is known stays, and gets older.
    pub async fn catch_up(&self) -> Result<(), store::Error> {
        let mut known = self.known.lock().await;
        let mut whole = None;
        if known.is_none() {
            self.book.begin_anew();
        }
        // Where that fails some of it may have been taken up, and will be again.
        let mut contact = self.hear(*known, &mut whole).await?;
        // What took long to read is out of date.
        while whole.is_some() && self.clock.now().since(contact.asked) >= RECENT {
            contact = self.hear(Some(contact.applied), &mut whole).await?;
        }
        if let Some(living) = whole {
            tracing::info!(grants = living.len(), "all grants of the store are known");
            self.book.replace(living);
        }
        self.book.heard(contact);
        self.seats.clear();
        *known = Some(contact.applied);
        Ok(())
    }

    /// Has the book take up what has changed since the change `known`, or `whole` where that is all
    /// that there is.
    async fn hear(
        &self,
        known: Option<u64>,
        whole: &mut Option<Living>,
    ) -> Result<Contact, store::Error> {
        let asked = self.clock.now();
        let take = |told| match (told, &*whole) {
            (Told::Whole, _) => *whole = Some(Living::new()),
            (Told::Grant(grant), Some(living)) => living.apply(&grant),
            (Told::Grant(grant), None) => self.book.apply(&grant),
            (Told::Damaged(id), living) => {
                tracing::error!(?id, "a grant's row in the store is damaged: it is no grant");
                match (id, living) {
                    (Some(id), Some(living)) => living.end(&id),
                    (Some(id), None) => self.book.end(&id),
                    (None, _) => {}
                }
            }
        };
        let head = self.store.grant_news(known, take).await?;
        Ok(Contact {
            asked,
            store: head.now,
            applied: head.number,
        })
    }

    /// Has the store forget what was over a day ago: now and then.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn forget(&self) -> Result<(), store::Error> {
        self.store.forget_grants().await?;
        self.store.forget_kms_grants().await
    }

    /// Takes up what this replica has changed itself. The store has it, so there is no harm if that
    /// takes too long: the replica hears of it as others do.
    pub(super) async fn take_up(&self) {
        // Until all is known nobody goes by what is.
        if !self.is_whole() {
            return;
        }
        if let Err(late) = timeout(PATIENCE, self.catch_up()).await {
            tracing::warn!(%late, "a change of a grant is not taken up at once");
        }
    }
}

/// Old news: to read it took so long that there is more by then.
const RECENT: Duration = Duration::from_secs(1);
/// For taking up a change of one's own before it is answered.
const PATIENCE: Duration = Duration::from_secs(1);
