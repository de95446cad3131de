//! Puts a server under load: a fixed number of connections, each with a fixed number of calls in
//! flight, and the next call as soon as one is answered.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Buf as _;
use bytes::BufMut as _;
use bytes::Bytes;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::Codec;
use tonic::codec::DecodeBuf;
use tonic::codec::Decoder;
use tonic::codec::EncodeBuf;
use tonic::codec::Encoder;
use tonic::transport::Certificate;
use tonic::transport::Channel;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;
use tonic::transport::Identity;
use tower::service_fn;

use crate::stage;

/// Connections to one server.
pub struct Client {
    channels: Vec<Channel>,
    in_flight: usize,
}

/// How a server is pressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// So many connections.
    pub connections: usize,
    /// So many calls in flight on each.
    pub in_flight: usize,
}

impl Shape {
    /// A few connections, all of them busy.
    pub const USUAL: Self = Self {
        connections: 4,
        in_flight: 16,
    };
    /// Many connections with little to do on each.
    pub const WIDE: Self = Self {
        connections: 64,
        in_flight: 4,
    };
    /// One call after the other.
    pub const SINGLE: Self = Self {
        connections: 1,
        in_flight: 1,
    };
}

/// A call, encoded once: the client's own work is not what is measured.
#[derive(Clone)]
pub struct Call {
    /// The method.
    pub path: &'static str,
    /// The request message.
    pub message: Bytes,
}

/// How a server stood the load.
pub struct Stood {
    /// How long the load lasted.
    pub span: Duration,
    /// How long each call took, from the shortest.
    pub latencies: Vec<Duration>,
}

/// Where to connect to, with the certificates in `folder`.
pub fn endpoint(address: SocketAddr, folder: &Path) -> Endpoint {
    let read = |name| fs::read(folder.join(name)).unwrap();
    let tls = ClientTlsConfig::new()
        .domain_name(stage::SERVER_NAME)
        .ca_certificate(Certificate::from_pem(read(stage::AUTHORITY)))
        .identity(Identity::from_pem(
            read(stage::CLIENT.certificate),
            read(stage::CLIENT.private_key),
        ));
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    endpoint.tls_config(tls).unwrap()
}

impl Client {
    /// Connects in `shape` with the certificates in `folder`.
    pub async fn connect(address: SocketAddr, folder: &Path, shape: Shape) -> Self {
        let endpoint = endpoint(address, folder);
        let mut channels = Vec::new();
        for _ in 0..shape.connections {
            channels.push(endpoint.connect().await.unwrap());
        }
        Self {
            channels,
            in_flight: shape.in_flight,
        }
    }

    /// One connection to the Unix socket at `path`, where somebody listens.
    pub async fn local(path: PathBuf) -> Result<Self, tonic::transport::Error> {
        let dial = service_fn(move |_: Uri| {
            let path = path.clone();
            async { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(dial).await?;
        Ok(Self {
            channels: vec![channel],
            in_flight: 1,
        })
    }

    /// Makes one call and returns the answer's message.
    pub async fn call(&self, call: &Call) -> Bytes {
        answer(&mut Grpc::new(self.channels[0].clone()), call).await
    }

    /// Keeps the server busy with `call` for `span`. Every call must succeed.
    pub async fn press(&self, call: &Call, span: Duration) -> Stood {
        let call = Arc::new(call.clone());
        let began = Instant::now();
        let mut callers = JoinSet::new();
        for channel in &self.channels {
            for _ in 0..self.in_flight {
                let (channel, call) = (channel.clone(), Arc::clone(&call));
                callers.spawn(async move {
                    let mut grpc = Grpc::new(channel);
                    let mut latencies = Vec::new();
                    while began.elapsed() < span {
                        let asked = Instant::now();
                        answer(&mut grpc, &call).await;
                        latencies.push(asked.elapsed());
                    }
                    latencies
                });
            }
        }
        let latencies = callers.join_all().await;
        let span = began.elapsed();
        let mut latencies = latencies.concat();
        latencies.sort_unstable();
        Stood { span, latencies }
    }
}

impl Stood {
    /// Calls answered.
    pub fn calls(&self) -> usize {
        self.latencies.len()
    }

    /// Calls answered a second.
    pub fn rate(&self) -> f64 {
        self.calls() as f64 / self.span.as_secs_f64()
    }

    /// The latency that `percent` of the calls kept, in microseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let place = (self.calls() * percent / 100).min(self.calls() - 1);
        self.latencies[place].as_secs_f64() * 1e6
    }
}

async fn answer(grpc: &mut Grpc<Channel>, call: &Call) -> Bytes {
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static(call.path);
    let request = Request::new(call.message.clone());
    grpc.unary(request, path, Raw).await.unwrap().into_inner()
}

/// Sends bytes as they are, and hands them out so.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
