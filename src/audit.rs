//! One record a call, hits and denials included: opened before anything can fail, finished when
//! the outcome is known, marked abandoned when the call is dropped.
//!
//! AWS CloudTrail never sees a cache hit, so these records are the only witness of most uses of a
//! key. They hold names, sizes and reasons; never content, and never the value of a context pair.

mod id;
mod record;
mod sink;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use uuid::Uuid;

use self::id::Ids;
use crate::clock::Clock;

pub use record::Cache;
pub use record::Failure;
pub use record::Record;
pub use record::Resource;
pub use record::Session;
pub use record::Tls;
pub use record::UserIdentity;
pub use sink::Config;
pub use sink::Error;
pub use sink::Sink;
pub use sink::Unavailable;

/// Writes the records of one process.
pub struct Audit {
    sink: Sink,
    clock: Arc<dyn Clock>,
    instance: Arc<str>,
    ids: Ids,
    seq: AtomicU64,
}

impl Audit {
    /// An audit trail into `sink`, under a fresh instance id.
    pub fn new(sink: Sink, clock: Arc<dyn Clock>) -> Arc<Self> {
        let instance = Uuid::now_v7().to_string().into();
        Arc::new(Self {
            sink,
            clock,
            instance,
            ids: Ids::new(),
            seq: AtomicU64::new(0),
        })
    }

    /// An id for what leaves no record.
    pub fn id(&self) -> Uuid {
        self.ids.next(self.clock.wall())
    }

    /// Opens the record of a call.
    pub fn begin(self: &Arc<Self>) -> Entry {
        let now = self.clock.wall();
        Entry {
            audit: Arc::clone(self),
            id: self.ids.next(now),
            began: now,
            notes: Notes(Arc::new(Mutex::new(Record::default()))),
            open: true,
        }
    }

    fn line(&self, record: &Record, id: Uuid, began: Timestamp) -> Vec<u8> {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let micros = self.clock.wall().duration_since(began).as_micros();
        record.line(&record::Stamp {
            instance: &self.instance,
            id,
            seq,
            began,
            micros,
        })
    }
}

/// The record of a call under way. Dropped unfinished, it says so: `ABANDONED`.
pub struct Entry {
    audit: Arc<Audit>,
    id: Uuid,
    began: Timestamp,
    notes: Notes,
    open: bool,
}

impl Entry {
    /// The record's `eventID`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// A handle for those who know what the call is about.
    pub fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Closes the record, which says "served" unless a failure was noted, and waits until a sink
    /// has accepted it. Secrets may leave after that.
    ///
    /// # Errors
    /// [`Unavailable`] when no sink accepts it: then nothing may leave.
    pub async fn finish(mut self) -> Result<(), Unavailable> {
        self.open = false;
        let line = self.audit.line(&self.notes.lock(), self.id, self.began);
        self.audit.sink.write(line).await
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            let mut record = self.notes.lock();
            record.failure = Some(Failure::abandoned());
            self.audit
                .sink
                .leave(self.audit.line(&record, self.id, self.began));
        }
    }
}

/// What is known of a call so far; clones write into one record.
#[derive(Clone)]
pub struct Notes(Arc<Mutex<Record>>);

impl Notes {
    /// Adds to the record.
    pub fn add(&self, note: impl FnOnce(&mut Record)) {
        note(&mut self.lock());
    }

    /// Whether a failure has been noted.
    pub fn failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
