//! What those who run the broker look at: metrics, liveness, readiness and a page for people, on a
//! listener of their own in plain HTTP/1.1. It knows no caller and answers from memory alone, so that
//! it still answers when KMS does not. Nothing can be changed here.

mod history;
mod page;

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
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::timeout;

use crate::admin::history::History;
use crate::admin::history::Look;
use crate::admin::page::Facts;
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
    telemetry: Telemetry,
    metrics: Metrics,
    server: grpc::Handle,
    began: Instant,
    history: History,
}

impl View {
    /// The text of `telemetry`, the numbers of `metrics`, and whether `server` is ready.
    pub fn new(telemetry: Telemetry, metrics: Metrics, server: grpc::Handle) -> Self {
        Self {
            telemetry,
            metrics,
            server,
            began: Instant::now(),
            history: History::default(),
        }
    }

    /// Tells the metrics what only the system knows.
    fn look(&self) {
        let memory = mem::status();
        let swapped = memory.swapped_bytes.unwrap_or_default();
        let outside = memory.outside.try_into().unwrap_or(u64::MAX);
        self.metrics.memory(memory.degraded, swapped, outside);
        let tasks = Handle::current().metrics().num_alive_tasks();
        self.metrics.tasks(tasks.try_into().unwrap_or(u64::MAX));
        let expiry = self.server.certificate_expiry();
        self.metrics.certificate_expiry(expiry);
    }

    /// Degraded is ready: taking away every replica during an outage of KMS would make of a part
    /// failure a whole one.
    fn readiness(&self) -> Readiness {
        self.look();
        let unready = self.server.unready();
        let degraded = self.metrics.reasons();
        let status = match unready {
            Some(_) => Status::NotReady,
            None if degraded.is_empty() => Status::Ready,
            None => Status::Degraded,
        };
        let reasons = unready.into_iter().chain(degraded).collect();
        Readiness { status, reasons }
    }

    fn page(&self) -> String {
        let facts = Facts {
            readiness: self.readiness(),
            uptime: self.began.elapsed(),
            certificate_expiry: self.server.certificate_expiry(),
            now: Timestamp::now(),
        };
        let now = Arc::new(Look::at(&self.metrics));
        let before = self.history.oldest().unwrap_or_else(|| Arc::clone(&now));
        page::page(&facts, &now, &before)
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
        let view = Arc::clone(&self.view);
        connections.spawn(async move {
            view.history.keep(&view.metrics).await;
        });
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
        "/" => Route::Page,
        "/metrics" => Route::Metrics,
        "/healthz" => Route::Health,
        "/readyz" => Route::Readiness,
        "/version" => Route::Version,
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
        Route::Page => response(StatusCode::OK, HTML, view.page()),
        Route::Readiness => readiness(&view.readiness()),
        Route::Version => response(StatusCode::OK, JSON, VERSION),
    })
}

enum Route {
    Health,
    Metrics,
    Page,
    Readiness,
    Version,
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

fn readiness(readiness: &Readiness) -> Response<Full<Bytes>> {
    let code = match readiness.status {
        Status::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        Status::Degraded | Status::Ready => StatusCode::OK,
    };
    let body = serde_json::to_vec(readiness).expect("a struct of strings is representable");
    response(code, JSON, body)
}

#[derive(Serialize)]
struct Readiness {
    status: Status,
    /// Why it is not `ready`.
    reasons: Vec<&'static str>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Degraded,
    NotReady,
    Ready,
}

impl Status {
    fn label(self) -> &'static str {
        match self {
            Self::Degraded => "degraded",
            Self::NotReady => "not_ready",
            Self::Ready => "ready",
        }
    }
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

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const VERSION: &str = concat!("{\"version\":\"", env!("CARGO_PKG_VERSION"), "\"}\n");

/// Connections at once. Scrapers and probes are few, and none stays.
const SEATS: usize = 16;
/// For the head of a request.
const HEADERS: Duration = Duration::from_secs(2);
/// For a whole connection, the peer's reading included.
const CONNECTION: Duration = Duration::from_secs(10);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(200);
