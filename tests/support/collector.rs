//! A collector of OpenTelemetry: takes spans, metrics and logs over OTLP/gRPC, as others send them,
//! and keeps them.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsPartialSuccess;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::LogsService;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::LogsServiceServer;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsService;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsServiceServer;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceServiceServer;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::codegen::tokio_stream::StreamExt as _;
use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::transport::ServerTlsConfig;

/// A collector on a port of its own.
pub struct Collector {
    address: SocketAddr,
    taken: Arc<Taken>,
    manner: Arc<Mutex<Manner>>,
    serving: JoinHandle<()>,
}

/// What becomes of what is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It is kept.
    Takes,
    /// It is read, and never answered.
    Hangs,
    /// Logs are read, and rejected.
    Rejects,
}

#[derive(Default)]
struct Taken {
    spans: Mutex<Vec<Seen>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    logs: Mutex<Vec<LogRecord>>,
    requests: Mutex<Vec<MetadataMap>>,
    bytes: Mutex<Vec<u8>>,
    connections: Mutex<usize>,
    news: Notify,
}

/// A span, with the resource that it is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub state: String,
    pub is_server: bool,
    pub is_error: bool,
    pub took: Duration,
    pub attributes: BTreeMap<String, String>,
    pub resource: BTreeMap<String, String>,
}

impl Seen {
    /// An attribute, as text; empty where there is none.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    /// A collector that takes what comes, in plain text.
    pub async fn start() -> Self {
        Self::serve(Manner::Takes, None).await
    }

    /// A collector that behaves so, with TLS or without.
    pub async fn serve(manner: Manner, tls: Option<ServerTlsConfig>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(Taken::default());
        let manner = Arc::new(Mutex::new(manner));
        let desk = Desk {
            taken: Arc::clone(&taken),
            manner: Arc::clone(&manner),
        };
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let routes = server
            .add_service(TraceServiceServer::new(desk.clone()))
            .add_service(LogsServiceServer::new(desk.clone()))
            .add_service(MetricsServiceServer::new(desk));
        let counting = Arc::clone(&taken);
        let incoming = TcpListenerStream::new(listener).map(move |connection| {
            *counting.connections.lock().unwrap() += 1;
            connection
        });
        let serving = tokio::spawn(async move {
            routes.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            taken,
            manner,
            serving,
        }
    }

    /// Behaves so from the next request on.
    pub fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// Where it is, without TLS.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The spans so far.
    pub fn spans(&self) -> Vec<Seen> {
        self.taken.spans.lock().unwrap().clone()
    }

    /// The metrics, as often as they came.
    pub fn metrics(&self) -> Vec<ExportMetricsServiceRequest> {
        self.taken.metrics.lock().unwrap().clone()
    }

    /// The logs so far.
    pub fn logs(&self) -> Vec<LogRecord> {
        self.taken.logs.lock().unwrap().clone()
    }

    /// The metadata of every request.
    pub fn requests(&self) -> Vec<MetadataMap> {
        self.taken.requests.lock().unwrap().clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        *self.taken.connections.lock().unwrap()
    }

    /// All that came, as it was on the wire, but for the framing.
    pub fn bytes(&self) -> Vec<u8> {
        self.taken.bytes.lock().unwrap().clone()
    }

    /// Waits until `reached`, which is looked at whenever something came.
    pub async fn until(&self, reached: impl Fn() -> bool) {
        let all = async {
            loop {
                let news = self.taken.news.notified();
                if reached() {
                    return;
                }
                news.await;
            }
        };
        let patience = Duration::from_secs(30);
        let waited = tokio::time::timeout(patience, all).await;
        waited.unwrap_or_else(|_| panic!("within {patience:?}: {:#?}", self.spans()));
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone)]
struct Desk {
    taken: Arc<Taken>,
    manner: Arc<Mutex<Manner>>,
}

impl Desk {
    /// Keeps what every request has.
    async fn open<T: prost::Message>(&self, request: Request<T>) -> T {
        let (metadata, _, message) = request.into_parts();
        self.taken.requests.lock().unwrap().push(metadata);
        self.taken.news.notify_waiters();
        let manner = *self.manner.lock().unwrap();
        if manner == Manner::Hangs {
            pending::<()>().await;
        }
        let mut bytes = self.taken.bytes.lock().unwrap();
        message.encode(&mut *bytes).unwrap();
        message
    }
}

#[tonic::async_trait]
impl TraceService for Desk {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let message = self.open(request).await;
        let mut seen = Vec::new();
        for of_resource in message.resource_spans {
            let resource = of_resource.resource.unwrap().attributes;
            for of_scope in of_resource.scope_spans {
                assert_eq!(of_scope.scope.unwrap().name, "keybroker");
                seen.extend(of_scope.spans.iter().map(|one| span(one, &resource)));
            }
        }
        self.taken.spans.lock().unwrap().extend(seen);
        self.taken.news.notify_waiters();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Desk {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let message = self.open(request).await;
        self.taken.metrics.lock().unwrap().push(message);
        self.taken.news.notify_waiters();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Desk {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let message = self.open(request).await;
        let scopes = message
            .resource_logs
            .into_iter()
            .flat_map(|of_resource| of_resource.scope_logs);
        let mut logs: Vec<_> = scopes.flat_map(|of_scope| of_scope.log_records).collect();
        let mut response = ExportLogsServiceResponse::default();
        if *self.manner.lock().unwrap() == Manner::Rejects {
            response.partial_success = Some(ExportLogsPartialSuccess {
                rejected_log_records: i64::try_from(logs.len()).unwrap(),
                error_message: "no room".into(),
            });
            logs.clear();
        }
        self.taken.logs.lock().unwrap().extend(logs);
        self.taken.news.notify_waiters();
        Ok(Response::new(response))
    }
}

fn span(span: &Span, resource: &[KeyValue]) -> Seen {
    assert!(span.events.is_empty() && span.links.is_empty());
    let nanos = span
        .end_time_unix_nano
        .checked_sub(span.start_time_unix_nano);
    Seen {
        name: span.name.clone(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        state: span.trace_state.clone(),
        is_server: span.kind == 2,
        is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
        took: Duration::from_nanos(nanos.expect("it ends after it begins")),
        attributes: texts(&span.attributes),
        resource: texts(resource),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for attribute in attributes {
        let value = attribute.value.as_ref().and_then(|one| one.value.as_ref());
        let text = match value.unwrap() {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            other => panic!("{}: {other:?}", attribute.key),
        };
        let before = texts.insert(attribute.key.clone(), text);
        assert_eq!(before, None, "{} stands there twice", attribute.key);
    }
    texts
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
