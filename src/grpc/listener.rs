//! Accepts connections, on TCP with TLS, on Unix sockets, and in plain text for health probes
//! alone, and learns who is behind each before it is driven.

mod sockets;
mod unix;

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::CipherSuite;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use sockets::Config;
pub use sockets::Error;
pub(super) use sockets::Sockets;
pub use sockets::UnixConfig;
pub(crate) use sockets::bind;

use crate::audit;
use crate::clock::Clock;
use crate::crypto::random;
use crate::grpc::connection::Connection;
use crate::grpc::connection::Connections;
use crate::grpc::connection::Seat;
use crate::grpc::driver::BusyPoll;
use crate::grpc::driver::Deadlines;
use crate::grpc::driver::Socket;
use crate::grpc::driver::drive;
use crate::grpc::tls::Material;
use crate::grpc::tls::trust::moment;
use crate::grpc::witness::Witness;
use crate::identity::Peer;

/// What all listeners share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Acceptor {
    pub(super) witness: Witness,
    pub(super) connections: Arc<Connections>,
    pub(super) room: Arc<Semaphore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) drain: watch::Receiver<bool>,
    pub(super) age: Duration,
    pub(super) deadlines: Deadlines,
    pub(super) busy_poll: BusyPoll,
}

impl Acceptor {
    /// Accepts TLS connections until the drain begins.
    pub(super) async fn tls(self, listener: TcpListener, material: Arc<ArcSwap<Material>>) {
        self.accept(listener, move |this, stream, address, seat| {
            this.secure(stream, address, seat, Arc::clone(&material))
        })
        .await;
    }

    /// Accepts connections on a Unix socket until the drain begins.
    pub(super) async fn unix(self, listener: UnixListener) {
        self.accept(listener, |this, stream, _, seat| this.local(stream, seat))
            .await;
    }

    /// Accepts health probes until the drain begins.
    pub(super) async fn health(self, listener: TcpListener) {
        self.accept(listener, |this, stream, address, seat| {
            this.probe(stream, address, seat)
        })
        .await;
    }

    /// The accept loop: a place first, then a connection; a task for each.
    async fn accept<L, Serve, Serving>(self, listener: L, serve: Serve)
    where
        L: Listener,
        Serve: Fn(Self, L::Stream, Option<IpAddr>, Seat) -> Serving,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let mut drain = self.drain.clone();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let accepted = tokio::select! {
                _ = drain.wait_for(|drain| *drain) => return,
                accepted = self.next(&listener) => accepted,
            };
            match accepted {
                Ok((room, stream, address)) => {
                    pause = SHORTEST_PAUSE;
                    if let Some(seat) = self.connections.arrive(address) {
                        let serving = serve(self.clone(), stream, address, seat);
                        tokio::spawn(async move {
                            serving.await;
                            drop(room);
                        });
                    }
                }
                // The peer left before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of file descriptors, most likely: to ask again at once would spin.
                    tracing::warn!(%error, "cannot accept connections; pausing");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn next<L: Listener>(
        &self,
        listener: &L,
    ) -> io::Result<(OwnedSemaphorePermit, L::Stream, Option<IpAddr>)> {
        let room = Arc::clone(&self.room)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let (stream, address) = listener.next().await?;
        Ok((room, stream, address))
    }

    /// Shakes hands, and learns who the peer is.
    async fn secure(
        self,
        stream: TcpStream,
        address: Option<IpAddr>,
        mut seat: Seat,
        materials: Arc<ArcSwap<Material>>,
    ) {
        if let Err(error) = set_up(&stream) {
            tracing::debug!(%error, "a connection that is gone already");
            return;
        }
        let material = materials.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&material.server));
        let stream = BufReader::with_capacity(READ_AHEAD, stream);
        let stream = match timeout(self.deadlines.handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, peer = %source(address), "TLS handshake refused");
                return;
            }
            Err(_) => {
                tracing::debug!(peer = %source(address), "TLS handshake timed out");
                return;
            }
        };
        let Some(connection) = self.identified(&stream, address, &material) else {
            return;
        };
        let Some(connection) = seat.take(connection) else {
            return;
        };
        // A reload during the handshake rechecked the connections of which this was not one yet.
        let current = materials.load_full();
        if !Arc::ptr_eq(&current, &material) {
            connection.recheck(&current.trust, self.clock.wall());
        }
        self.drive(stream, connection).await;
    }

    fn identified(
        &self,
        stream: &TlsStream<BufReader<TcpStream>>,
        address: Option<IpAddr>,
        material: &Material,
    ) -> Option<Connection> {
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(b"h2") {
            return None;
        }
        let chain: Vec<_> = session
            .peer_certificates()?
            .iter()
            .map(|one| one.clone().into_owned())
            .collect();
        // Verified in the handshake already; done again because it yields the leaf, and the
        // handshake could not hand it over.
        let leaf = material
            .trust
            .verify(&chain, moment(self.clock.wall()))
            .ok()?;
        let tls = audit::Tls {
            tls_version: "TLSv1.3",
            cipher_suite: iana(session.negotiated_cipher_suite()?.suite())?,
        };
        Some(Connection::new(
            Some(Peer::certified(leaf)),
            source(address),
            Some(tls),
            chain,
        ))
    }

    /// Asks the kernel who the peer is.
    async fn local(self, stream: UnixStream, mut seat: Seat) {
        let Ok(credentials) = stream.peer_cred() else {
            return;
        };
        let peer = Peer::unix(credentials.uid(), credentials.gid());
        let connection = Connection::new(Some(peer), source(None), None, Vec::new());
        if let Some(connection) = seat.take(connection) {
            self.drive(stream, connection).await;
        }
    }

    /// Serves a peer that proves nothing.
    async fn probe(self, stream: TcpStream, address: Option<IpAddr>, mut seat: Seat) {
        let connection = Connection::new(None, source(address), None, Vec::new());
        if let Some(connection) = seat.take(connection) {
            self.drive(stream, connection).await;
        }
    }

    async fn drive<IO>(self, io: IO, connection: Arc<Connection>)
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Socket + Send + Unpin + 'static,
    {
        let age = self.age_of(&connection);
        drive(
            io,
            connection,
            self.witness,
            age,
            self.deadlines,
            &self.busy_poll,
            self.drain,
        )
        .await;
    }

    /// The age at which the connection is asked to go: jittered, so that connections made together
    /// do not end together, and not past the end of the peer's certificate.
    fn age_of(&self, connection: &Connection) -> Duration {
        let jittered = jittered(self.age);
        let left = connection
            .session
            .as_ref()
            .and_then(|session| session.peer().certificate())
            .map(|certificate| {
                let left = certificate.not_after.duration_since(self.clock.wall());
                Duration::try_from(left).unwrap_or_default()
            });
        left.map_or(jittered, |left| jittered.min(left))
    }
}

impl Socket for TlsStream<BufReader<TcpStream>> {
    fn socket(&self) -> BorrowedFd<'_> {
        let (stream, _) = self.get_ref();
        stream.get_ref().socket()
    }
}

fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

/// `span` ± 10 %.
fn jittered(span: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness there is no jitter, and nothing worse.
    let _ = random::fill(&mut byte);
    let [byte] = byte;
    span.mul_f64(0.9 + 0.2 * f64::from(byte) / 255.0)
}

/// The IANA name of a TLS 1.3 suite; rustls has names of its own.
fn iana(suite: CipherSuite) -> Option<&'static str> {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => Some("TLS_AES_128_GCM_SHA256"),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => Some("TLS_AES_256_GCM_SHA384"),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some("TLS_CHACHA20_POLY1305_SHA256"),
        other => other.as_str(),
    }
}

/// A peer's address in the record.
fn source(address: Option<IpAddr>) -> Arc<str> {
    address.map_or_else(|| "unix".into(), |address| address.to_string().into())
}

/// A bound socket, whatever its family.
trait Listener: Send + Sync {
    type Stream: Send + 'static;

    /// The next connection, and its address where it has one.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<IpAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Some(address.ip())))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, None))
    }
}

/// Idle time after which the kernel asks whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// After a failed accept; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What is read at once, in bytes: rustls by itself asks for 4 KiB at a time.
const READ_AHEAD: usize = 32 << 10;
