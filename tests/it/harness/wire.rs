//! A client's side of one connection, without a pool or a timer of its own: what a test sees is
//! what the server did.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::client::conn::http2::SendRequest;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use keybroker::grpc::tls::provider;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::Authority;
use super::Client;
use super::Identity;
use keybroker::grpc::pb::admin_service_client::AdminServiceClient;
use keybroker::grpc::pb::grant_service_client::GrantServiceClient;

/// Sends requests on one connection. Clones share it.
#[derive(Clone)]
pub struct Wire(SendRequest<Body>);

/// An HTTP/2 connection and its end.
pub struct Connection {
    /// Sends requests.
    pub wire: Wire,
    /// Resolves when the connection has ended, well or not.
    pub ended: JoinHandle<hyper::Result<()>>,
    tasks: Tasks,
}

impl Connection {
    /// HTTP/2 over `io`.
    pub async fn new<IO>(io: IO) -> io::Result<Self>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let tasks = Tasks::default();
        let (sender, connection) = http2::handshake(tasks.clone(), TokioIo::new(io))
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            wire: Wire(sender),
            ended: tokio::spawn(connection),
            tasks,
        })
    }

    /// HTTP/2 over TLS to `address`, whose server `authority` vouches for.
    pub async fn dial(
        address: SocketAddr,
        authority: &Authority,
        identity: &Identity,
    ) -> io::Result<Self> {
        Self::new(tls(address, authority, Some(identity)).await?).await
    }

    /// Breaks the connection without a word, as a process that dies does.
    pub fn cut(&self) {
        self.ended.abort();
        self.tasks.abort();
    }

    /// A client on this connection.
    pub fn client(&self) -> Client {
        Client::with_origin(self.wire.clone(), Uri::from_static(ORIGIN))
    }

    /// A client of the AdminService on this connection.
    pub fn admin(&self) -> AdminServiceClient<Wire> {
        AdminServiceClient::with_origin(self.wire.clone(), Uri::from_static(ORIGIN))
    }

    /// A client of the GrantService on this connection.
    pub fn grants(&self) -> GrantServiceClient<Wire> {
        GrantServiceClient::with_origin(self.wire.clone(), Uri::from_static(ORIGIN))
    }
}

/// What hyper spawns for a connection, the one that owns the socket among them.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<AbortHandle>>>);

impl Tasks {
    fn abort(&self) {
        for task in self.0.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let task = tokio::spawn(future).abort_handle();
        self.0.lock().unwrap().push(task);
    }
}

/// What came back for a raw request.
pub struct Answer {
    /// The HTTP response's head.
    pub head: http::response::Parts,
    /// The gRPC status, from the head or the trailers; unknown without one.
    pub status: Status,
    /// The body.
    pub body: Bytes,
}

impl Wire {
    /// Posts `body`, as it is, to `path` with `headers` beside those that gRPC wants.
    pub async fn send(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = http::Request::post(format!("{ORIGIN}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::new(Full::from(body))).unwrap();
        let mut sender = self.0.clone();
        sender.ready().await.unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let collected = body.collect().await.unwrap();
        let status = Status::from_header_map(&head.headers)
            .or_else(|| Status::from_header_map(collected.trailers()?))
            .unwrap_or_else(|| Status::unknown("no grpc-status"));
        Answer {
            head,
            status,
            body: collected.to_bytes(),
        }
    }
}

/// A gRPC message around `bytes`, uncompressed.
pub fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), bytes].concat()
}

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A TLS stream to `address`, whose server `authority` vouches for.
pub async fn tls(
    address: SocketAddr,
    authority: &Authority,
    identity: Option<&Identity>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let config = config(authority, identity);
    let name = "localhost".try_into().unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// A client's TLS: 1.3, h2.
pub(super) fn config(authority: &Authority, identity: Option<&Identity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain(), identity.key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The scheme and authority of requests.
pub const ORIGIN: &str = "https://localhost";
