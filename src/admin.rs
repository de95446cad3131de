//! What those who run the broker look at: metrics, liveness and readiness, on a listener of their
//! own in plain HTTP/1.1. It knows no caller and answers from memory alone, so that it still
//! answers when KMS does not. Nothing can be changed here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::grpc;
use crate::grpc::listener;
use crate::mem;
use crate::metrics::Metrics;
use crate::telemetry;
use crate::telemetry::Telemetry;

/// The admin listener, bound: whoever connects waits until [`Admin::run`].
pub struct Admin {
    listener: TcpListener,
    view: Arc<View>,
}

/// What there is to see.
pub struct View {
    /// The text of the metrics.
    pub telemetry: Telemetry,
    /// What is degraded.
    pub metrics: Metrics,
    /// Whether the server is ready.
    pub server: grpc::Handle,
}

impl View {
    /// Tells the metrics what only the system knows.
    fn look(&self) {
        let memory = mem::status();
        let swapped = memory.swapped_bytes.unwrap_or_default();
        let outside = memory.outside.try_into().unwrap_or(u64::MAX);
        self.metrics.memory(memory.degraded, swapped, outside);
        let tasks = Handle::current().metrics().num_alive_tasks();
        self.metrics.tasks(tasks.try_into().unwrap_or(u64::MAX));
    }
}

impl Admin {
    /// Binds `address`.
    ///
    /// # Errors
    /// [`listener::Error`], naming the address.
    pub async fn bind(address: SocketAddr, view: View) -> Result<Self, listener::Error> {
        let listener = listener::bind(address).await?;
        let view = Arc::new(view);
        Ok(Self { listener, view })
    }

    /// Its address, the port chosen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers until it is dropped, and its connections with it.
    pub async fn run(self) -> Infallible {
        let seats = Arc::new(Semaphore::new(SEATS));
        let mut connections = JoinSet::new();
        loop {
            let seat = Arc::clone(&seats).acquire_owned().await;
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                // The peer left before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Out of file descriptors, most likely: to ask again at once would spin.
                    tracing::warn!(%error, "cannot accept connections to listen.admin; pausing");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let view = Arc::clone(&self.view);
            connections.spawn(async move {
                serve(stream, view).await;
                drop(seat);
            });
        }
    }
}

/// Answers one request and closes: a scrape every few seconds needs no more, and whoever is slow
/// loses its seat at a known time.
async fn serve(stream: TcpStream, view: Arc<View>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&view)));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .max_headers(64)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    // Neither an error nor the end of patience is anybody's matter but the peer's.
    let _ = timeout(CONNECTION, serving).await;
}

async fn answer(
    request: Request<Incoming>,
    view: Arc<View>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let route = match request.uri().path() {
        "/metrics" => Route::Metrics,
        "/healthz" => Route::Health,
        "/readyz" => Route::Readiness,
        _ => return Ok(response(StatusCode::NOT_FOUND, TEXT, "not found\n")),
    };
    if request.method() != Method::GET {
        let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET alone\n");
        let allowed = HeaderValue::from_static("GET");
        refusal.headers_mut().insert(header::ALLOW, allowed);
        return Ok(refusal);
    }
    Ok(match route {
        Route::Health => response(StatusCode::OK, TEXT, "ok\n"),
        Route::Metrics => metrics(view).await,
        Route::Readiness => readiness(&view),
    })
}

enum Route {
    Health,
    Metrics,
    Readiness,
}

async fn metrics(view: Arc<View>) -> Response<Full<Bytes>> {
    // Collecting from many tenants takes longer than a call should wait.
    let text = tokio::task::spawn_blocking(move || {
        view.look();
        view.telemetry.text()
    })
    .await;
    match text {
        Ok(Ok(text)) => response(StatusCode::OK, telemetry::FORMAT, text),
        Ok(Err(error)) => {
            tracing::error!(%error, "a scrape failed");
            failure()
        }
        // It panicked, which is logged already.
        Err(_) => failure(),
    }
}

fn failure() -> Response<Full<Bytes>> {
    response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "see the log\n")
}

/// Degraded is ready: taking away every replica during an outage of KMS would make of a part
/// failure a whole one.
fn readiness(view: &View) -> Response<Full<Bytes>> {
    view.look();
    let unready = view.server.unready();
    let degraded = view.metrics.reasons();
    let (code, status) = match unready {
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        None if degraded.is_empty() => (StatusCode::OK, "ready"),
        None => (StatusCode::OK, "degraded"),
    };
    let reasons = unready.into_iter().chain(degraded).collect();
    let body = serde_json::to_vec(&Readiness { status, reasons })
        .expect("a struct of strings is representable");
    response(code, "application/json", body)
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    reasons: Vec<&'static str>,
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    response
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Connections at once. Scrapers and probes are few, and none stays.
const SEATS: usize = 16;
/// For the head of a request.
const HEADERS: Duration = Duration::from_secs(2);
/// For a whole connection, the peer's reading included.
const CONNECTION: Duration = Duration::from_secs(10);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(200);
