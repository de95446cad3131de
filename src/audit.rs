//! One record a call, hits and denials included: opened before anything can fail, finished when
//! the outcome is known, marked abandoned when the call is dropped. And one for each right that the
//! broker takes away by itself.
//!
//! AWS CloudTrail never sees a cache hit, so these records are the only witness of most uses of a
//! key. They hold names, sizes and reasons; never content, and of the encryption context the
//! values that its tenant has allowed alone. Each hangs on the one before, and some are signed, so that others can prove that none was
//! altered, moved or taken out: [`verify`].

mod chain;
mod config;
mod countersign;
mod file;
mod id;
mod json;
mod key;
mod link;
mod out;
mod output;
mod queue;
mod record;
mod relay;
mod sink;
mod tally;
pub mod verify;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use jiff::Timestamp;
use uuid::Uuid;

use self::id::Ids;
use self::queue::Ask;
use crate::clock::Clock;
use crate::kms::Signer;

pub use config::Address;
pub use config::Config;
pub use config::Mode;
pub use config::NoAddress;
pub use countersign::Countersigning;
pub use json::Names;
pub use json::Values;
pub use key::KeyError;
pub use link::Hash;
pub use link::NoHash;
pub use link::Place;
pub use out::Collector;
pub use record::Cache;
pub use record::Category;
pub use record::Failure;
pub use record::KmsGrant;
pub use record::Origin;
pub use record::Phase;
pub use record::Record;
pub use record::Resource;
pub use record::Session;
pub use record::Stamp;
pub use record::Stream;
pub use record::Terms;
pub use record::Tls;
pub use record::UserIdentity;
pub use sink::Error;
pub use sink::Sink;
pub use sink::Unavailable;
pub use tally::Tally;

/// Writes the records of one process.
pub struct Audit {
    /// None where nothing is kept.
    sink: Option<Sink>,
    instance: Uuid,
    clock: Arc<dyn Clock>,
    ids: Ids,
}

impl Audit {
    /// An audit trail into `sink`.
    pub fn new(sink: Sink, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            instance: sink.instance(),
            sink: Some(sink),
            clock,
            ids: Ids::new(),
        })
    }

    /// A trail that keeps nothing: for a benchmark of what keeping it costs. No setting leads here.
    pub fn unkept(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            instance: Uuid::nil(),
            sink: None,
            clock,
            ids: Ids::new(),
        })
    }

    /// Which process it is, as its records say it.
    pub fn instance(&self) -> Uuid {
        self.instance
    }

    /// Has the audit file, if it was moved, opened anew before the next record.
    pub fn reopen(&self) {
        if let Some(sink) = &self.sink {
            sink.reopen();
        }
    }

    /// An id for what leaves no record.
    pub fn id(&self) -> Uuid {
        self.ids.next(self.clock.wall())
    }

    /// Has `signer` countersign what is on record, aside: nothing here waits for it. To be called
    /// once, on a Tokio runtime. None where nothing is kept.
    pub fn countersign(self: &Arc<Self>, signer: Box<dyn Signer>) -> Option<Countersigning> {
        let sink = self.sink.as_ref()?;
        Some(sink.countersign(self, signer))
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

    /// Has the records of [`Entry::finish_gathered`] written, into a file on the caller's own thread
    /// if nobody else is writing; see [`Sink`]. Costs next to nothing when there are none.
    pub fn flush(&self) {
        if let Some(sink) = &self.sink {
            sink.flush();
        }
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
    pub fn finish(self) -> impl Future<Output = Result<(), Unavailable>> {
        self.close(Ask::Now)
    }

    /// As [`Entry::finish`], for one of many: whoever polls it calls [`Audit::flush`] when all
    /// have been polled, so that their records leave in one write. Without that the record waits
    /// for others' or for a quarter of a second, whichever is shorter.
    ///
    /// # Errors
    /// As [`Entry::finish`].
    pub fn finish_gathered(self) -> impl Future<Output = Result<(), Unavailable>> {
        self.close(Ask::Later)
    }

    async fn close(mut self, ask: Ask) -> Result<(), Unavailable> {
        self.open = false;
        let Some(sink) = &self.audit.sink else {
            return Ok(());
        };
        let line = self.line(&self.notes.lock());
        let accepted = sink.write(&line, ask);
        keep_line(line);
        accepted.await
    }

    fn line(&self, record: &Record) -> Vec<u8> {
        let audit = &self.audit;
        let mut line = take_line();
        let stamp = Stamp {
            instance: audit.instance,
            id: self.id,
            began: self.began,
            micros: audit.clock.wall().duration_since(self.began).as_micros(),
        };
        record.line(&stamp, &mut line);
        line
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open
            && let Some(sink) = &self.audit.sink
        {
            let mut record = self.notes.lock();
            record.failure = Some(Failure::abandoned());
            let line = self.line(&record);
            sink.leave(&line);
            keep_line(line);
        }
    }
}

/// The thread's own line to write into. A new one where the thread has none, or is at its end.
fn take_line() -> Vec<u8> {
    LINE.try_with(Cell::take).unwrap_or_default()
}

fn keep_line(mut line: Vec<u8>) {
    line.clear();
    line.shrink_to(KEPT);
    // Err: the thread is at its end.
    let _ = LINE.try_with(|kept| kept.set(line));
}

thread_local! {
    static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Most bytes that a thread keeps for the lines to come.
const KEPT: usize = 8 << 10;

/// What is known of a call so far; clones write into one record.
#[derive(Clone)]
pub struct Notes(Arc<Mutex<Record>>);

impl Notes {
    /// Adds to the record.
    pub fn add(&self, note: impl FnOnce(&mut Record)) {
        note(&mut self.lock());
    }

    /// What has been added so far.
    pub fn record(&self) -> Record {
        self.lock().clone()
    }

    /// Whether a failure has been noted.
    pub fn failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    /// Why the call fails, as its record says; empty where it does not.
    pub fn reason(&self) -> &'static str {
        let record = self.lock();
        record.failure.as_ref().map_or("", |failure| failure.reason)
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
