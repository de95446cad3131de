//! The way of audit records to a collector, over OTLP, as logs. Unlike the rest of telemetry, what it
//! has not acknowledged it does not have.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::logs::v1::ResourceLogs;
use opentelemetry_proto::tonic::logs::v1::ScopeLogs;
use opentelemetry_proto::tonic::logs::v1::SeverityNumber;
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde::Deserialize;
use tokio::runtime;
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;

use crate::audit::Address;
use crate::audit::Collector;
use crate::telemetry::plain;
use crate::telemetry::plain::attribute;
use crate::telemetry::plain::nanos;
use crate::telemetry::plain::number;
use crate::telemetry::plain::scope;
use crate::telemetry::plain::text;
use crate::telemetry::route::Route;
use crate::telemetry::variables::Misset;
use crate::telemetry::variables::Signal;
use crate::telemetry::variables::Variables;

/// Sends records to a collector, one request a lot.
pub struct Records {
    route: Route,
    resource: Resource,
    /// Made by the thread that sends, and dropped there.
    open: Option<Open>,
}

/// A connection, and a runtime of its own: what holds up the server's shall not hold up this, nor
/// this that.
struct Open {
    client: LogsServiceClient<Channel>,
    runtime: Runtime,
}

impl Records {
    /// To the collector at `address`, as `resource`; how, the variables for logs say.
    pub(super) fn new<F: Fn(&str) -> Option<String>>(
        variables: &Variables<F>,
        address: &Address,
        resource: &opentelemetry_sdk::Resource,
    ) -> Result<Self, Misset> {
        Ok(Self {
            route: Route::new(variables, Signal::Logs, address.as_str())?,
            resource: plain::resource(resource),
            open: None,
        })
    }

    fn request(&self, lines: &[u8]) -> tonic::Request<ExportLogsServiceRequest> {
        let logs = lines.split(|byte| *byte == b'\n');
        let logs = logs.filter(|line| !line.is_empty()).map(log);
        let message = ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(self.resource.clone()),
                scope_logs: vec![ScopeLogs {
                    scope: Some(scope("keybroker.audit")),
                    log_records: logs.collect(),
                    ..ScopeLogs::default()
                }],
                ..ResourceLogs::default()
            }],
        };
        self.route.request(message)
    }

    fn connect(&self) -> io::Result<Open> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let client = LogsServiceClient::new(self.route.channel());
        drop(entered);
        Ok(Open { client, runtime })
    }

    fn send(&self, open: &mut Open, lines: &[u8]) -> io::Result<()> {
        let Open { client, runtime } = open;
        let sent = async {
            let answer = match client.export(self.request(lines)).await {
                // A connection that has ended unused is only noticed by using it.
                Err(status) if status.code() == Code::Unavailable => {
                    client.export(self.request(lines)).await
                }
                answer => answer,
            };
            let partial = answer.map_err(refused)?.into_inner().partial_success;
            match partial.filter(|partial| partial.rejected_log_records != 0) {
                None => Ok(()),
                Some(partial) => Err(io::Error::other(format!(
                    "the collector rejects {} records: {}",
                    partial.rejected_log_records, partial.error_message
                ))),
            }
        };
        let sent = runtime.block_on(async { tokio::time::timeout(PATIENCE, sent).await });
        sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Collector for Records {
    fn take(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect()?,
        };
        let sent = self.send(&mut open, lines);
        self.open = Some(open);
        sent
    }
}

fn refused(status: Status) -> io::Error {
    io::Error::other(format!(
        "the collector answers {:?}: {}",
        status.code(),
        status.message()
    ))
}

/// What of a record stands beside it, for a collector to sort and search by.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'l> {
    event_time: Timestamp,
    event_name: Option<&'l str>,
    instance: &'l str,
    seq: u64,
    hash: &'l str,
}

/// The record as a log: its body is the line as it stands in a file, so that the chain can be
/// proved from what a collector keeps.
fn log(line: &[u8]) -> LogRecord {
    let mut log = LogRecord {
        observed_time_unix_nano: nanos(Timestamp::now()),
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".into(),
        body: Some(text(&String::from_utf8_lossy(line))),
        event_name: "keybroker.audit".into(),
        ..LogRecord::default()
    };
    if let Ok(head) = serde_json::from_slice::<Head<'_>>(line) {
        log.time_unix_nano = nanos(head.event_time);
        log.attributes = vec![
            attribute(
                "keybroker.audit.event_name",
                text(head.event_name.unwrap_or_default()),
            ),
            attribute("keybroker.audit.instance", text(head.instance)),
            attribute("keybroker.audit.seq", number(head.seq)),
            attribute("keybroker.audit.hash", text(head.hash)),
        ];
    }
    log
}

/// For a lot, with a second attempt and connections; its calls wait no longer than 2 s for any sink.
const PATIENCE: Duration = Duration::from_secs(5);
