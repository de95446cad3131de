//! The connections that are open: what each proved, how many there may be, and which of them have
//! lost their right to go on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio::sync::watch;

use crate::audit;
use crate::error::Unauthenticated;
use crate::grpc::room::Room;
use crate::grpc::tls::Trust;
use crate::grpc::tls::trust::moment;
use crate::identity::Id;
use crate::identity::Peer;
use crate::identity::Session;
use crate::quota::Known;

/// One open connection.
pub(super) struct Connection {
    /// Who it is; nobody on the health listener.
    pub(super) session: Option<Arc<Session>>,
    /// The peer and its address, for the record.
    pub(super) origin: Arc<audit::Origin>,
    /// Calls that began on it.
    pub(super) calls: AtomicU64,
    /// What its first call named as its agent, which is what most others do.
    agent: OnceLock<Arc<str>>,
    /// What is known of its account.
    pub(super) account: Known,
    /// For the requests and answers that are in memory.
    pub(super) room: Room,
    /// Streams that are open on it.
    streams: watch::Sender<usize>,
    chain: Vec<CertificateDer<'static>>,
    refused: OnceLock<Unauthenticated>,
    close: Notify,
}

impl Connection {
    /// A connection of `peer`, which showed `chain`.
    pub(super) fn new(
        peer: Option<Peer>,
        source: Arc<str>,
        tls: Option<audit::Tls>,
        chain: Vec<CertificateDer<'static>>,
    ) -> Self {
        let identity = peer.as_ref().map(user_identity);
        Self {
            session: peer.map(Session::new).map(Arc::new),
            origin: Arc::new(audit::Origin::new(identity.as_ref(), &source, tls)),
            agent: OnceLock::new(),
            calls: AtomicU64::new(0),
            account: Known::default(),
            room: Room::new(),
            streams: watch::Sender::new(0),
            chain,
            refused: OnceLock::new(),
            close: Notify::new(),
        }
    }

    /// The peer, for a call, unless it has lost its identity since the handshake.
    pub(super) fn authenticated(&self, now: Timestamp) -> Result<&Arc<Session>, Unauthenticated> {
        let session = self.session.as_ref().ok_or(Unauthenticated::Missing)?;
        if let Some(certificate) = session.peer().certificate()
            && certificate.not_after < now
        {
            self.refuse(Unauthenticated::Expired);
        }
        match self.refused.get() {
            Some(reason) => Err(*reason),
            None => Ok(session),
        }
    }

    /// Verifies the peer's certificate chain again, if it has one: if it fails, calls are refused
    /// from now on, and the connection shall end.
    pub(super) fn recheck(&self, trust: &Trust, now: Timestamp) {
        if self.chain.is_empty() {
            return;
        }
        if let Err(reason) = trust.verify(&self.chain, moment(now)) {
            self.refuse(reason);
        }
    }

    /// Resolves when the connection shall end: its peer has lost its identity.
    pub(super) async fn closing(&self) {
        self.close.notified().await;
    }

    /// `agent`, as often as it stays the same without a copy.
    pub(super) fn agent(&self, agent: &str) -> Arc<str> {
        let first = self.agent.get_or_init(|| agent.into());
        if **first == *agent {
            return Arc::clone(first);
        }
        agent.into()
    }

    /// Counts a stream as open as long as the result is kept.
    pub(super) fn stream(self: &Arc<Self>) -> OpenStream {
        self.streams.send_modify(|open| *open += 1);
        OpenStream(Arc::clone(self))
    }

    /// Whether no stream is open.
    pub(super) fn is_quiet(&self) -> bool {
        *self.streams.borrow() == 0
    }

    /// Resolves when no stream is open.
    pub(super) async fn quiet(&self) {
        // Err: the sender is gone, which it is not before the connection.
        let _ = self.streams.subscribe().wait_for(|open| *open == 0).await;
    }

    fn refuse(&self, reason: Unauthenticated) {
        if self.refused.set(reason).is_ok() {
            self.close.notify_one();
        }
    }
}

/// A stream that is open on a connection.
pub(super) struct OpenStream(Arc<Connection>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        let streams = &self.0.streams;
        streams.send_modify(|open| *open = open.saturating_sub(1));
    }
}

fn user_identity(peer: &Peer) -> audit::UserIdentity {
    let (kind, authenticator) = match peer.id() {
        Id::Dns(_) => ("DNS", "x509"),
        Id::Spiffe(_) => ("SPIFFE", "x509-svid"),
        Id::Unix { .. } => ("Unix", "so_peercred"),
    };
    audit::UserIdentity {
        kind,
        principal_id: peer.id().to_string().into(),
        authenticator,
        session_context: peer.certificate().map(|certificate| audit::Session {
            cert_serial: certificate.serial.as_str().into(),
            not_after: certificate.not_after,
        }),
    }
}

/// All connections that are open.
pub(super) struct Connections {
    table: Mutex<Table>,
    per_identity: usize,
    per_address: usize,
    open: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    next: u64,
    live: HashMap<u64, Weak<Connection>>,
    identities: HashMap<Id, usize>,
    addresses: HashMap<IpAddr, usize>,
}

impl Connections {
    pub(super) fn new(per_identity: usize, per_address: usize) -> Arc<Self> {
        let open = watch::Sender::new(0);
        Arc::new(Self {
            table: Mutex::default(),
            per_identity,
            per_address,
            open,
        })
    }

    /// Counts a connection from `address` whose peer is not known yet; `None` if it has its share.
    pub(super) fn arrive(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Seat> {
        let mut table = self.lock();
        if let Some(address) = address {
            let count = table.addresses.entry(address).or_default();
            if *count >= self.per_address {
                return None;
            }
            *count += 1;
        }
        self.open.send_modify(|open| *open += 1);
        Some(Seat {
            all: Arc::clone(self),
            address,
            taken: None,
        })
    }

    /// Rechecks every open connection.
    pub(super) fn recheck(&self, trust: &Trust, now: Timestamp) {
        let live: Vec<_> = self
            .lock()
            .live
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        for connection in live {
            connection.recheck(trust, now);
        }
    }

    /// Resolves when no connection is open.
    pub(super) async fn gone(&self) {
        // Err: the sender is gone, and with it every connection.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the others, given back when dropped.
pub(super) struct Seat {
    all: Arc<Connections>,
    address: Option<IpAddr>,
    taken: Option<(u64, Option<Id>)>,
}

impl Seat {
    /// Enters `connection`, now that its peer is known; `None` if its identity has its share.
    pub(super) fn take(&mut self, connection: Connection) -> Option<Arc<Connection>> {
        let session = connection.session.as_ref();
        let id = session.map(|session| session.peer().id().clone());
        let mut table = self.all.lock();
        if let Some(id) = &id {
            let count = table.identities.entry(id.clone()).or_default();
            if *count >= self.all.per_identity {
                tracing::debug!(%id, "an identity has its share of connections");
                return None;
            }
            *count += 1;
        }
        let connection = Arc::new(connection);
        let number = table.next;
        table.next += 1;
        table.live.insert(number, Arc::downgrade(&connection));
        self.taken = Some((number, id));
        Some(connection)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.all.lock();
        if let Some((number, id)) = self.taken.take() {
            table.live.remove(&number);
            if let Some(id) = id {
                release(&mut table.identities, id);
            }
        }
        if let Some(address) = self.address {
            release(&mut table.addresses, address);
        }
        drop(table);
        self.all
            .open
            .send_modify(|open| *open = open.saturating_sub(1));
    }
}

fn release<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    use std::collections::hash_map::Entry;
    if let Entry::Occupied(mut count) = counts.entry(key) {
        match *count.get() {
            0 | 1 => {
                count.remove();
            }
            more => {
                count.insert(more - 1);
            }
        }
    }
}

impl Connection {
    /// Counts a call that begins.
    pub(super) fn call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}
