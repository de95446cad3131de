//! The way to a broker: TCP, TLS or a Unix socket, as one kind of stream.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;

use crate::grpc::client::Address;
use crate::grpc::client::Credentials;
use crate::grpc::client::Error;
use crate::grpc::client::Place;
use crate::grpc::tls;

/// How to get to a broker.
#[derive(Clone)]
pub(super) enum Route {
    Plain(Place),
    Tls(Place, ServerName<'static>, Arc<ClientConfig>),
    Unix(PathBuf),
}

impl Route {
    pub(super) fn new(address: &Address, credentials: Option<&Credentials>) -> Result<Self, Error> {
        match (address, credentials) {
            (Address::Plain(place), _) => Ok(Self::Plain(place.clone())),
            (Address::Unix(path), _) => Ok(Self::Unix(path.clone())),
            (Address::Tls(_), None) => Err(Error::NoCredentials),
            (Address::Tls(place), Some(credentials)) => {
                let name = credentials.server_name.as_ref().unwrap_or(&place.host);
                let server = ServerName::try_from(name.clone())
                    .map_err(|_| Error::ServerName(name.clone()))?;
                Ok(Self::Tls(
                    place.clone(),
                    server,
                    Arc::new(config(credentials)?),
                ))
            }
        }
    }

    /// Connects; what the connection dies of later stands in `epitaph`.
    pub(super) async fn dial(&self, epitaph: Epitaph) -> io::Result<Watched> {
        let stream: Box<dyn Stream> = match self {
            Self::Plain(place) => Box::new(place.dial().await?),
            Self::Tls(place, server, config) => {
                let stream = place.dial().await?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(server.clone(), stream).await?)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(Watched { stream, epitaph })
    }
}

impl Place {
    async fn dial(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// What the last connection died of: HTTP/2 above it often knows no more than that it did. An alert
/// is kept: the same certificate would meet it again.
#[derive(Clone, Default)]
pub(super) struct Epitaph(Arc<Mutex<Option<Death>>>);

/// Why a connection is no more.
#[derive(Clone)]
pub(super) enum Death {
    /// The broker ended the handshake: with TLS 1.3 it looks at our certificate after we think that
    /// all is well.
    Alert(String),
    /// The network's reason.
    Network(String),
}

impl Epitaph {
    /// What is known.
    pub(super) fn read(&self) -> Option<Death> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn write(&self, error: &io::Error) {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let death = match tls {
            Some(rustls::Error::AlertReceived(_)) => Death::Alert(error.to_string()),
            Some(_) | None => Death::Network(error.to_string()),
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An alert says more than the broken pipe that follows it.
        if !matches!(*known, Some(Death::Alert(_))) {
            *known = Some(death);
        }
    }
}

/// A stream that notes what it dies of.
pub(super) struct Watched {
    stream: Box<dyn Stream>,
    epitaph: Epitaph,
}

impl Watched {
    fn note<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            self.epitaph.write(error);
        }
        outcome
    }

    /// Notes a failed write, and the alert that may still lie unread behind it.
    fn note_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = &outcome {
            let mut byte = [0];
            let last = Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte));
            drop(self.note(last));
        }
        self.note(outcome)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.note(outcome)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_write(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Any connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn config(credentials: &Credentials) -> Result<ClientConfig, tls::Error> {
    let mut roots = RootCertStore::empty();
    for anchor in tls::certificates(&credentials.ca)? {
        roots.add(anchor).map_err(|error| tls::Error::Certificate {
            path: credentials.ca.clone(),
            why: error.to_string(),
        })?;
    }
    let chain = tls::certificates(&credentials.own.certificate)?;
    let key = tls::private_key(&credentials.own.private_key)?;
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| tls::Error::pair(&credentials.own, error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
