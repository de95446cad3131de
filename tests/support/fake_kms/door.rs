//! A port where the fake listens, and the connections that came through it.

use std::io;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Shared;
use super::answer::Reply;
use super::exchange::exchange;
use super::lock;

/// A port of 127.0.0.1, which is kept when the door is shut.
pub struct Door {
    address: SocketAddr,
    /// Bound and never listening: connecting is refused, and nobody else gets the port.
    _port: TcpSocket,
    serving: Mutex<JoinSet<()>>,
    /// A listener that accepts nothing, and the connection that fills its queue.
    dark: Mutex<Option<(TcpListener, TcpStream)>>,
}

impl Door {
    pub fn open(shared: &Arc<Shared>) -> Self {
        let port = bind((Ipv4Addr::LOCALHOST, 0).into());
        let door = Self {
            address: port.local_addr().expect("an address"),
            _port: port,
            serving: Mutex::default(),
            dark: Mutex::default(),
        };
        door.reopen(shared);
        door
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends all connections; further ones are refused when this is over.
    pub async fn shut(&self) {
        *lock(&self.dark) = None;
        let mut serving = std::mem::take(&mut *lock(&self.serving));
        serving.shutdown().await;
    }

    /// Ends all connections; further ones get no answer when this is over: Linux drops what comes
    /// to a full queue.
    pub async fn darken(&self) {
        self.shut().await;
        let listener = bind(self.address).listen(0).expect("a listener");
        let first = TcpStream::connect(self.address).await;
        *lock(&self.dark) = Some((listener, first.expect("a connection")));
    }

    /// Ends all connections soon, for good.
    pub fn close(&self) {
        lock(&self.serving).abort_all();
    }

    pub fn reopen(&self, shared: &Arc<Shared>) {
        *lock(&self.dark) = None;
        let mut serving = lock(&self.serving);
        if serving.is_empty() {
            let listener = bind(self.address).listen(BACKLOG).expect("a listener");
            serving.spawn(serve(listener, Arc::clone(shared)));
        }
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a socket");
    socket.bind(address).expect("a port");
    socket
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a socket");
        connections.spawn(converse(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let stream = stream.into_std().expect("a socket");
    let handle = stream.try_clone().expect("a second handle");
    let stream = TcpStream::from_std(stream).expect("a socket");
    let answer = service_fn(|request: hyper::Request<Incoming>| {
        let shared = Arc::clone(&shared);
        let mut handle = &handle;
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            match exchange(&head.headers, &body, &shared).await {
                Reply::Answer(response) => return Ok(response),
                Reply::Reset => {
                    // Closed with a reset instead of an orderly end.
                    let closed = SockRef::from(handle).set_linger(Some(Duration::ZERO));
                    closed.expect("a socket");
                }
                // Past hyper, which would keep a head that no body follows.
                Reply::Torn(start) => handle.write_all(&start).unwrap_or_default(),
            }
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        }
    });
    // Clients that go away are no failure of the fake.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

/// More than any test connects at once.
const BACKLOG: u32 = 4096;
