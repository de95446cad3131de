//! A TCP proxy that can fall silent: for all connections or for one, without a word to either side.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::AbortHandle;

/// A proxy, until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: AbortHandle,
}

#[derive(Default)]
struct Shared {
    /// Whether new connections are cut at once.
    refuses: AtomicBool,
    accepted: AtomicUsize,
    /// Whether a connection is silent, by the port that the server sees.
    silent: Mutex<HashMap<u16, Arc<AtomicBool>>>,
}

impl Proxy {
    /// A proxy before `server`. Needs a runtime of several threads.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                own.accepted.fetch_add(1, Ordering::Relaxed);
                if !own.refuses.load(Ordering::Relaxed) {
                    tokio::spawn(own.clone().join(client, server));
                }
            }
        });
        Self {
            address,
            shared,
            listening: listening.abort_handle(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections have come.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Cuts new connections at once, or lets them through.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Swallows from now on what goes either way on the connection that comes to the server from
    /// `port`.
    pub fn silence(&self, port: u16) {
        self.shared.silent.lock().unwrap()[&port].store(true, Ordering::Relaxed);
    }

    /// The same for all connections that there are.
    pub fn silence_all(&self) {
        for silent in self.shared.silent.lock().unwrap().values() {
            silent.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Shared {
    async fn join(self: Arc<Self>, client: TcpStream, server: SocketAddr) {
        let Ok(server) = TcpStream::connect(server).await else {
            return;
        };
        let silent = Arc::new(AtomicBool::new(false));
        let port = server.local_addr().unwrap().port();
        self.silent
            .lock()
            .unwrap()
            .insert(port, Arc::clone(&silent));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            pass(from_client, to_server, &silent),
            pass(from_server, to_client, &silent)
        );
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silent: &AtomicBool) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if silent.load(Ordering::Relaxed) {
            continue;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
