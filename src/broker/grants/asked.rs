//! Grants that the store was asked for at the moment of use, before all are known here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::broker::Call;
use crate::broker::grants::Grants;
use crate::error::Error;
use crate::grants::Backing;
use crate::grants::Book;
use crate::grants::Contact;
use crate::identity::Caller;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::store;
use crate::sync::Mutex;
use crate::sync::lock;

/// What the store has said to one call, of each key once.
#[derive(Default)]
pub(in crate::broker) struct Asked(OnceLock<Box<Answer>>);

struct Answer {
    key: KeyName,
    book: Arc<Book>,
    next: Asked,
}

impl Asked {
    /// The grants of `key`, if the store was asked for them.
    pub(in crate::broker) fn of(&self, key: &KeyName) -> Option<&Arc<Book>> {
        let mut next = self;
        while let Some(answer) = next.0.get() {
            if answer.key == *key {
                return Some(&answer.book);
            }
            next = &answer.next;
        }
        None
    }

    fn add(&self, key: KeyName, book: Arc<Book>) {
        let next = Self::default();
        let mut answer = Box::new(Answer { key, book, next });
        let mut last = self;
        while let Err(refused) = last.0.set(answer) {
            answer = refused;
            match last.0.get() {
                Some(taken) => last = &taken.next,
                None => return,
            }
        }
    }
}

/// Who may ask: so many at once of a tenant.
#[derive(Default)]
pub(in crate::broker) struct Seats(Mutex<HashMap<TenantId, Arc<Semaphore>>>);

impl Seats {
    fn of(&self, tenant: &TenantId) -> Arc<Semaphore> {
        let mut seats = lock(&self.0);
        let seats = seats.entry(tenant.clone());
        Arc::clone(seats.or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))))
    }

    /// Nobody asks any more.
    pub(in crate::broker) fn clear(&self) {
        lock(&self.0).clear();
    }
}

impl Grants {
    /// Asks the store for the grants of `key` that are for `caller`.
    ///
    /// # Errors
    /// [`store::Error`].
    pub(in crate::broker) async fn ask(
        &self,
        key: &KeyName,
        caller: &Caller,
    ) -> Result<Book, store::Error> {
        let seats = self.seats.of(caller.tenant());
        let seat = timeout(PATIENCE, seats.acquire()).await;
        let _seat = seat.map_err(|_| store::Error::Slow)?;
        let book = self.book.apart();
        let asked = self.clock.now();
        let held = self
            .store
            .grants_held(key, caller.principal(), |grant| book.apply(grant));
        let head = held.await?;
        book.heard(Contact {
            asked,
            store: head.now,
            applied: head.number,
        });
        Ok(book)
    }
}

impl Call<'_> {
    /// What `decide` says about the key `name`. While not all grants are known here, what would
    /// depend on them is decided again by what the store says of that key.
    ///
    /// # Errors
    /// Those of `decide`, and [`Error::StoreUnavailable`].
    pub(in crate::broker) async fn knowing<T>(
        &self,
        name: Option<&KeyName>,
        decide: impl Fn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match (decide(), name) {
            (Err(Error::StoreUnavailable(_)), Some(name)) if !self.broker.grants.is_lost() => {
                // In a box: few calls ask, and all would carry it along.
                Box::pin(self.learn(name)).await?;
                decide()
            }
            (decided, _) => decided,
        }
    }

    /// Asks the store for the grants of the key `name`, unless all are known here.
    ///
    /// # Errors
    /// [`Error::StoreUnavailable`].
    pub(in crate::broker) async fn learn(&self, name: &KeyName) -> Result<(), Error> {
        let grants = &self.broker.grants;
        if grants.is_whole() || self.asked.of(name).is_some() {
            return Ok(());
        }
        let book = grants.ask(name, &self.caller).await;
        let book = book.inspect_err(|_| self.broker.metrics().undecided())?;
        self.asked.add(name.clone(), Arc::new(book));
        Ok(())
    }

    /// What decisions about the key `name` may rest on beside key policies.
    pub(in crate::broker) fn backing<'a>(
        &'a self,
        name: Option<&KeyName>,
        tokens: &'a [String],
    ) -> Backing<'a> {
        let asked = name.and_then(|name| self.asked.of(name));
        Backing::new(self.broker.grants.book_beside(asked), tokens)
    }

    /// The grants of the key `name`, as far as they are known.
    pub(in crate::broker) fn book(&self, name: &KeyName) -> &Book {
        self.broker.grants.book_beside(self.asked.of(name))
    }
}

/// Reads of one tenant: it leaves connections for others.
const AT_ONCE: usize = 2;
/// For one's turn to ask.
const PATIENCE: Duration = Duration::from_secs(5);
