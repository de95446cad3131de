//! A fake AWS KMS: its wire protocol over HTTP, its rules, and faults on demand.
//!
//! The real SDK talks to it, so that timeouts, retries and the decoding of errors are the SDK's.
//! It checks no signatures, and knows no grants, dry runs or quotas.

mod service;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use keybroker::kms::Arn;
use keybroker::kms::aws::Aws;
use keybroker::kms::aws::Config;
use serde_json::Value;
use serde_json::json;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use service::Answer;
use service::Refusal;
use service::Request;
use service::Service;
pub use service::State;
use service::Usage;

/// The access key of the callers that [`FakeKms::aws`] makes.
pub const BROKER: &str = "AKIABROKER";

/// What the fake can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Decrypt,
    DescribeKey,
    Encrypt,
    GenerateDataKey,
    GenerateDataKeyWithoutPlaintext,
    GenerateRandom,
}

/// What can go wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This error code with this HTTP status.
    Code(&'static str, u16),
    /// A body as it stands, with this HTTP status.
    Body(u16, String),
    /// The right answer, late.
    Delay(Duration),
    /// This error code, with a message that repeats the request's context.
    EchoContext(&'static str),
    /// This error code, with a message that repeats the request's head.
    EchoHead(&'static str),
    /// A success whose body is no JSON.
    Garbage,
    /// No answer, on a connection that stays open.
    Hang,
    /// A success with a body of this many bytes.
    Huge(usize),
    /// A page of somebody between, with this HTTP status and no code.
    Page(u16),
    /// The connection is reset.
    Reset,
    /// Half of the body, then the end.
    Truncate,
    /// Another key's ARN in the answer.
    WrongKeyId,
    /// A plaintext of this many bytes.
    WrongLength(usize),
}

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    pub operation: Operation,
    /// The ARN of the key that was named; what was sent, if that names no key.
    pub key: Option<String>,
    /// The access key.
    pub caller: String,
    pub region: String,
    pub context: BTreeMap<String, String>,
}

/// A running fake. Stops when dropped.
pub struct FakeKms {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    service: Mutex<Service>,
    faults: Mutex<Vec<Rule>>,
    log: watch::Sender<Vec<Call>>,
    holds: watch::Sender<usize>,
}

/// When a fault happens. The latest rule that matches counts.
struct Rule {
    operation: Operation,
    key: Option<String>,
    region: Option<String>,
    remaining: Option<usize>,
    fault: Fault,
}

impl FakeKms {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            service: Mutex::default(),
            faults: Mutex::default(),
            log: watch::Sender::default(),
            holds: watch::Sender::default(),
        });
        let server = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            server,
        }
    }

    /// Where it listens: `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The real client, aimed at this fake, with timeouts that no answer here comes near.
    pub fn aws(&self) -> Aws {
        Aws::new(&sdk_config(BROKER), self.config()).expect("a valid configuration")
    }

    /// The configuration of [`FakeKms::aws`].
    pub fn config(&self) -> Config {
        Config {
            endpoint: Some(self.endpoint()),
            attempt_timeout: SignedDuration::from_secs(10),
            operation_timeout: SignedDuration::from_secs(30),
        }
    }

    /// A new symmetric key in `region`.
    pub fn key(&self, region: &str) -> Arn {
        self.add(region, &Uuid::new_v4().to_string(), Usage::Encrypt)
    }

    /// A new key in `region` that can only make MACs.
    pub fn hmac_key(&self, region: &str) -> Arn {
        self.add(region, &Uuid::new_v4().to_string(), Usage::Mac)
    }

    /// A new multi-Region key, with its primary in `region`.
    pub fn multi_region_key(&self, region: &str) -> Arn {
        let id = format!("mrk-{}", Uuid::new_v4().simple());
        self.add(region, &id, Usage::Encrypt)
    }

    /// A replica of a multi-Region key in another Region, with a state and denials of its own.
    pub fn replica(&self, primary: &Arn, region: &str) -> Arn {
        self.add(region, id(primary), Usage::Encrypt)
    }

    /// A second name, `alias/<name>`, in the key's Region.
    pub fn alias(&self, key: &Arn, name: &str) {
        self.service(|service| service.alias(key.region(), name, id(key)));
    }

    pub fn disable(&self, key: &Arn) {
        self.set_state(key, State::Disabled);
    }

    pub fn enable(&self, key: &Arn) {
        self.set_state(key, State::Enabled);
    }

    pub fn schedule_deletion(&self, key: &Arn) {
        self.set_state(key, State::PendingDeletion);
    }

    pub fn set_state(&self, key: &Arn, state: State) {
        self.service(|service| service.set_state(key.region(), id(key), state));
    }

    /// Gives the key new material; what the old one wrapped still opens.
    pub fn rotate(&self, key: &Arn) {
        self.service(|service| service.rotate(id(key)));
    }

    /// Refuses `operation` with `key` to the caller with this access key.
    pub fn deny(&self, caller: &str, operation: Operation, key: &Arn) {
        self.service(|service| service.deny(caller, operation, key.as_str()));
    }

    /// Ends a [`FakeKms::deny`].
    pub fn allow(&self, caller: &str, operation: Operation, key: &Arn) {
        self.service(|service| service.allow(caller, operation, key.as_str()));
    }

    /// Knows the caller with this access key no more.
    pub fn revoke(&self, caller: &str) {
        self.service(|service| service.revoke(caller));
    }

    /// Answers every `operation` with `fault` until [`FakeKms::heal`].
    pub fn fail(&self, operation: Operation, fault: Fault) {
        self.rule(operation, None, None, None, fault);
    }

    /// Answers the next `calls` of `operation` with `fault`.
    pub fn fail_next(&self, calls: usize, operation: Operation, fault: Fault) {
        self.rule(operation, None, None, Some(calls), fault);
    }

    /// Answers every `operation` with `key` with `fault`.
    pub fn fail_key(&self, key: &Arn, operation: Operation, fault: Fault) {
        self.rule(operation, Some(key.to_string()), None, None, fault);
    }

    /// Answers every `operation` in `region` with `fault`.
    pub fn fail_region(&self, region: &str, operation: Operation, fault: Fault) {
        self.rule(operation, None, Some(region.to_owned()), None, fault);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Holds all calls, which are counted when they arrive, until the guard is dropped.
    pub fn hold(&self) -> Hold {
        self.shared.holds.send_modify(|holds| *holds += 1);
        Hold(Arc::clone(&self.shared))
    }

    /// Waits until `operation` was called `calls` times.
    pub async fn arrived(&self, operation: Operation, calls: usize) {
        let reached = |log: &Vec<Call>| count(log, operation, None) >= calls;
        let mut log = self.shared.log.subscribe();
        log.wait_for(reached).await.expect("the fake lives");
    }

    /// The plaintext of every data key that was given out, and of all else that was encrypted.
    pub fn plaintexts(&self) -> Vec<Vec<u8>> {
        self.service(|service| service.plaintexts())
    }

    /// How many times `operation` was called.
    pub fn calls(&self, operation: Operation) -> usize {
        count(&self.shared.log.borrow(), operation, None)
    }

    /// How many times `operation` was called with `key`.
    pub fn calls_of(&self, key: &Arn, operation: Operation) -> usize {
        count(&self.shared.log.borrow(), operation, Some(key.as_str()))
    }

    /// All calls so far, in order.
    pub fn log(&self) -> Vec<Call> {
        self.shared.log.borrow().clone()
    }

    fn add(&self, region: &str, id: &str, usage: Usage) -> Arn {
        self.service(|service| service.add(region, id, usage));
        service::arn(region, id).parse().expect("a valid ARN")
    }

    fn service<T>(&self, change: impl FnOnce(&mut Service) -> T) -> T {
        change(&mut lock(&self.shared.service))
    }

    fn rule(
        &self,
        operation: Operation,
        key: Option<String>,
        region: Option<String>,
        remaining: Option<usize>,
        fault: Fault,
    ) {
        lock(&self.shared.faults).push(Rule {
            operation,
            key,
            region,
            remaining,
            fault,
        });
    }
}

impl Drop for FakeKms {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Holds the calls of a [`FakeKms`] while it lives.
pub struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.send_modify(|holds| *holds -= 1);
    }
}

/// The credentials of the caller with this access key, and nothing else.
pub fn sdk_config(caller: &str) -> SdkConfig {
    let credentials = Credentials::new(caller, "no secret", None, None, "fake");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Response = hyper::Response<Body>;

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a socket");
        connections.spawn(converse(stream, Arc::clone(&shared)));
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let stream = stream.into_std().expect("a socket");
    let handle = stream.try_clone().expect("a second handle");
    let stream = TcpStream::from_std(stream).expect("a socket");
    let answer = service_fn(|request| {
        let shared = Arc::clone(&shared);
        let handle = &handle;
        async move {
            let answer = respond(request, &shared).await;
            if answer.is_err() {
                // Closed with a reset instead of an orderly end.
                SockRef::from(handle)
                    .set_linger(Some(Duration::ZERO))
                    .expect("a socket");
            }
            answer
        }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    // Clients that go away are no failure of the fake.
    let _ = connection
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

/// The answer to a request; an error resets the connection.
async fn respond(request: hyper::Request<Incoming>, shared: &Shared) -> io::Result<Response> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let request = match parse(&parts.headers, &body) {
        Ok(request) => request,
        Err(refusal) => return Ok(error(400, refusal.code, &refusal.message)),
    };
    let key = lock(&shared.service).arn_of(&request);
    shared.log.send_modify(|log| {
        log.push(Call {
            operation: request.operation,
            key: key.or_else(|| request.body["KeyId"].as_str().map(str::to_owned)),
            caller: request.caller.clone(),
            region: request.region.clone(),
            context: service::context(&request).unwrap_or_default(),
        });
    });
    let _ = shared.holds.subscribe().wait_for(|holds| *holds == 0).await;
    let fault = fault(shared, &request);
    let answer = || lock(&shared.service).answer(&request);
    match fault {
        None => Ok(reply(answer())),
        Some(Fault::Body(status, body)) => Ok(whole(status, body)),
        Some(Fault::EchoContext(code)) => {
            let context = &request.body["EncryptionContext"];
            Ok(error(400, code, &format!("not with {context}")))
        }
        Some(Fault::EchoHead(code)) => {
            let token = &parts.headers["x-amz-security-token"];
            let message = format!("not x-amz-security-token:{token:?} of {:?}", parts.headers);
            Ok(error(400, code, &message))
        }
        Some(Fault::Code(code, status)) => Ok(error(status, code, "as the test wants it")),
        Some(Fault::Delay(span)) => {
            tokio::time::sleep(span).await;
            Ok(reply(answer()))
        }
        Some(Fault::Garbage) => Ok(whole(200, "{\"Plaintext\": not so")),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Huge(length)) => Ok(whole(200, " ".repeat(length))),
        Some(Fault::Page(status)) => Ok(whole(status, "<html>Bad gateway</html>")),
        Some(Fault::Reset) => Err(io::ErrorKind::ConnectionReset.into()),
        Some(Fault::Truncate) => Ok(half(answer())),
        Some(Fault::WrongKeyId) => Ok(reply(answer().map(|mut answer| {
            let other = service::arn(&request.region, &Uuid::new_v4().to_string());
            match answer.get_mut("KeyMetadata") {
                Some(key) => key["Arn"] = other.into(),
                None => answer["KeyId"] = other.into(),
            }
            answer
        }))),
        Some(Fault::WrongLength(length)) => Ok(reply(answer().map(|mut answer| {
            answer["Plaintext"] = BASE64_STANDARD.encode(service::random(length)).into();
            answer
        }))),
    }
}

fn parse(headers: &hyper::HeaderMap, body: &[u8]) -> Result<Request, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let operation = match header("x-amz-target").and_then(|t| t.strip_prefix("TrentService.")) {
        Some("Decrypt") => Operation::Decrypt,
        Some("DescribeKey") => Operation::DescribeKey,
        Some("Encrypt") => Operation::Encrypt,
        Some("GenerateDataKey") => Operation::GenerateDataKey,
        Some("GenerateDataKeyWithoutPlaintext") => Operation::GenerateDataKeyWithoutPlaintext,
        Some("GenerateRandom") => Operation::GenerateRandom,
        _ => return service::refuse("UnknownOperationException", ""),
    };
    // `AWS4-HMAC-SHA256 Credential=<access key>/<date>/<region>/kms/aws4_request, …`
    let scope = header("authorization")
        .and_then(|value| value.split_once("Credential="))
        .and_then(|(_, rest)| rest.split_once(','))
        .map(|(scope, _)| scope.split('/').collect::<Vec<&str>>());
    let Some([caller, _, region, "kms", "aws4_request"]) = scope.as_deref() else {
        return service::refuse("MissingAuthenticationTokenException", "");
    };
    let Ok(body @ Value::Object(_)) = serde_json::from_slice(body) else {
        return service::refuse("SerializationException", "");
    };
    Ok(Request {
        operation,
        caller: (*caller).to_owned(),
        region: (*region).to_owned(),
        body,
    })
}

fn fault(shared: &Shared, request: &Request) -> Option<Fault> {
    let key = lock(&shared.service).arn_of(request);
    let mut faults = lock(&shared.faults);
    let rule = faults.iter_mut().rev().find(|rule| {
        rule.operation == request.operation
            && rule.remaining != Some(0)
            && (rule.key.is_none() || rule.key == key)
            && rule
                .region
                .as_ref()
                .is_none_or(|region| *region == request.region)
    })?;
    rule.remaining = rule.remaining.map(|calls| calls - 1);
    Some(rule.fault.clone())
}

fn reply(answer: Answer) -> Response {
    match answer {
        Ok(answer) => whole(200, answer.to_string()),
        Err(refusal) => error(400, refusal.code, &refusal.message),
    }
}

fn error(status: u16, code: &str, message: &str) -> Response {
    whole(
        status,
        json!({ "__type": code, "message": message }).to_string(),
    )
}

/// An answer in one write: hyper sends head and body together when it has both.
fn whole(status: u16, body: impl Into<Bytes>) -> Response {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {});
    response(status, body.boxed_unsync())
}

/// An answer whose body ends before the length that its head declares.
fn half(answer: Answer) -> Response {
    let text = answer.expect("an answer to cut").to_string();
    let start = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
    let torn = async {
        // Lets hyper send what it has.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    };
    let start = futures_util::stream::iter([Ok(Frame::data(start))]);
    let body = futures_util::StreamExt::chain(start, futures_util::stream::once(torn));
    let mut response = response(200, StreamBody::new(body).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert("content-length", text.len().into());
    response
}

fn response(status: u16, body: Body) -> Response {
    hyper::Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amzn-requestid", Uuid::new_v4().to_string())
        .body(body)
        .expect("a valid answer")
}

fn count(log: &[Call], operation: Operation, key: Option<&str>) -> usize {
    log.iter()
        .filter(|call| call.operation == operation)
        .filter(|call| key.is_none() || call.key.as_deref() == key)
        .count()
}

fn id(arn: &Arn) -> &str {
    let (_, id) = arn.as_str().rsplit_once('/').expect("an ARN of a key");
    id
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
