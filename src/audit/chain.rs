//! The chain of one process's records: each hangs on the one before, and some are signed.
//!
//! Whoever has the pen links a lot, in its order. So `seq` is the order in which records stand in a
//! file, and callers take no lock for it. The first record says who begins, what this file's last
//! chain ended with, and which key signs; a signed record follows every so often, and at the end. A
//! signed record carries what another key has countersigned meanwhile.

use std::io::BufRead as _;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use uuid::Uuid;

use crate::audit::countersign::Countersignature;
use crate::audit::countersign::Progress;
use crate::audit::countersign::Tray;
use crate::audit::json::Other;
use crate::audit::json::put;
use crate::audit::key::Key;
use crate::audit::link::Hash;
use crate::audit::link::Place;
use crate::audit::link::SIGNATURE_BEGINS;
use crate::clock::Clock;

/// Links the records of one process.
pub(super) struct Chain {
    instance: Uuid,
    key: Key,
    /// What the sink had before.
    previous: Option<Place>,
    clock: Arc<dyn Clock>,
    tray: Arc<Tray>,
    head: Head,
}

/// How far a chain has come.
#[derive(Clone, Copy, Default)]
pub(super) struct Head {
    last: Option<Place>,
    signed: Option<Place>,
    /// Records since the last that is signed.
    unsigned: u64,
    /// Those of calls, all in all.
    calls: u64,
    /// The record that the last countersignature is about which was carried.
    carried: Option<u64>,
}

/// What a signed record is about, by its `eventName`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Event {
    /// Vouches for the records before it.
    #[serde(rename = "AuditCheckpoint")]
    Checkpoint,
    /// The first of a process.
    #[serde(rename = "AuditStarted")]
    Started,
    /// The last.
    #[serde(rename = "AuditStopped")]
    Stopped,
}

/// What a signed record says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Signed {
    /// The version of keybroker.
    pub(super) version: String,
    /// The key that signs, in base64url.
    pub(super) public_key: String,
    /// Its name for people.
    pub(super) key_id: String,
    /// `file`; `process` for one that nobody else has and that ends with it.
    pub(super) key_origin: String,
    /// The last record that was signed; in the first one, the last that the sink had before.
    pub(super) previous: Option<Place>,
    /// What another key says of a record before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) countersignature: Option<Arc<Countersignature>>,
}

impl Chain {
    /// A chain of `instance` behind `previous`.
    pub(super) fn new(
        instance: Uuid,
        key: Key,
        previous: Option<Place>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            instance,
            key,
            previous,
            clock,
            tray: Arc::default(),
            head: Head::default(),
        }
    }

    /// Adds `lines` to `sealed`, linked. Before the first of all comes a record that says so, and
    /// behind so many a signed one; an empty line asks for that, if it has anything to say.
    pub(super) fn seal(&mut self, mut lines: &[u8], sealed: &mut Vec<u8>) {
        sealed.reserve(lines.len() + lines.len() / 8);
        if self.head.last.is_none() {
            self.sign(Event::Started, sealed);
        }
        loop {
            let start = sealed.len();
            // Memory takes all.
            if lines.read_until(b'\n', sealed).unwrap_or_default() == 0 {
                return;
            }
            if sealed.pop_if(|last| *last == b'\n').is_some() && sealed.len() == start {
                if self.head.unsigned > 0 || self.fresh().is_some() {
                    self.sign(Event::Checkpoint, sealed);
                }
                continue;
            }
            sealed.pop_if(|last| *last == b'}');
            self.link(start, sealed);
            sealed.extend_from_slice(b"}\n");
            self.head.unsigned += 1;
            self.head.calls += 1;
            if self.head.unsigned >= UNSIGNED {
                self.sign(Event::Checkpoint, sealed);
            }
        }
    }

    /// Adds the last record to `sealed`, if there is a first.
    pub(super) fn stop(&mut self, sealed: &mut Vec<u8>) {
        if self.head.last.is_some() {
            self.sign(Event::Stopped, sealed);
        }
    }

    /// Whether there are records that no signature vouches for.
    pub(super) fn unsigned(&self) -> bool {
        self.head.unsigned > 0
    }

    /// Where countersignatures come from.
    pub(super) fn tray(&self) -> Arc<Tray> {
        Arc::clone(&self.tray)
    }

    /// Says how far it has come to whoever countersigns it: what was linked will stand somewhere.
    pub(super) fn publish(&self) {
        self.tray.publish(Progress {
            signed: self.head.signed,
            covered: self.head.calls - self.head.unsigned,
            calls: self.head.calls,
        });
    }

    /// The last record.
    pub(super) fn last(&self) -> Option<Place> {
        self.head.last
    }

    /// How far it has come.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Forgets what was linked since `head`: it stands nowhere.
    pub(super) fn rewind(&mut self, head: Head) {
        self.head = head;
    }

    /// Ends the line that begins at `start`, but for its brace.
    fn link(&mut self, start: usize, sealed: &mut Vec<u8>) -> Place {
        let (seq, before) = match self.head.last {
            Some(last) => (last.seq + 1, last.hash),
            None => (0, Hash::genesis(self.instance)),
        };
        let place = Place::end(self.instance, seq, before, start, sealed);
        self.head.last = Some(place);
        place
    }

    /// The countersignature that none of its records has carried.
    fn fresh(&self) -> Option<Arc<Countersignature>> {
        self.tray.fresh(self.head.carried)
    }

    fn sign(&mut self, event: Event, sealed: &mut Vec<u8>) {
        let start = sealed.len();
        let public = self.key.public();
        let countersignature = self.fresh();
        if let Some(one) = &countersignature {
            self.head.carried = Some(one.of.seq);
        }
        let signed = Signed {
            version: env!("CARGO_PKG_VERSION").into(),
            public_key: public.to_string(),
            key_id: public.id(),
            key_origin: self.key.origin().into(),
            previous: self.head.signed.or(self.previous),
            countersignature,
        };
        put(
            sealed,
            r#"{"eventVersion":"1.0","eventTime":"#,
            self.clock.wall(),
        );
        put(sealed, r#","eventID":"#, Uuid::now_v7());
        put(
            sealed,
            r#","eventSource":"keybroker","eventName":"#,
            event.name(),
        );
        put(
            sealed,
            r#","eventCategory":"Management","readOnly":false,"additionalEventData":"#,
            Other(signed),
        );
        put(
            sealed,
            r#","errorCode":null,"errorMessage":null,"instance":"#,
            self.instance,
        );
        let place = self.link(start, sealed);
        // The quote that ends the hash is the mark's first.
        sealed.pop();
        sealed.extend_from_slice(SIGNATURE_BEGINS);
        sealed.extend_from_slice(place.sign(self.key.signing()).to_string().as_bytes());
        sealed.extend_from_slice(b"\"}\n");
        self.head.signed = Some(place);
        self.head.unsigned = 0;
    }
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "AuditCheckpoint",
            Self::Started => "AuditStarted",
            Self::Stopped => "AuditStopped",
        }
    }
}

/// The line that asks for a signed record.
pub(super) const REMINDER: &[u8] = b"\n";
/// Most records before one is signed.
const UNSIGNED: u64 = 1024;
