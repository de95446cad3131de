//! The way of the real client to the fake without a network, for tests in virtual time: while bytes
//! are on a socket nothing seems to be left to do, and the time would jump.
//!
//! All of the SDK is the real one but its connector, from which the read timeout is missing: here it
//! is made up for.

use std::io;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use aws_sdk_kms::config::SharedHttpClient;
use aws_sdk_kms::config::http::HttpRequest;
use aws_sdk_kms::config::http::HttpResponse;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::http::HttpConnectorFuture;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_smithy_runtime_api::client::http::http_client_fn;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use hyper::HeaderMap;
use hyper::header::HeaderName;

use super::Shared;
use super::answer::Reply;
use super::answer::Response;
use super::exchange::exchange;
use super::request::scope;

/// Hands each call to the fake as it is.
pub fn in_memory(shared: &Arc<Shared>) -> SharedHttpClient {
    let shared = Arc::downgrade(shared);
    http_client_fn(move |settings, _| {
        SharedHttpConnector::new(Handed {
            shared: Weak::clone(&shared),
            read_timeout: settings.read_timeout(),
        })
    })
}

#[derive(Debug)]
struct Handed {
    shared: Weak<Shared>,
    read_timeout: Option<Duration>,
}

impl HttpConnector for Handed {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let shared = self.shared.upgrade();
        let timeout = self.read_timeout.unwrap_or(Duration::MAX);
        HttpConnectorFuture::new(async move {
            let shared = shared.ok_or_else(|| broken(io::ErrorKind::ConnectionRefused))?;
            let region = request.headers().get("authorization").and_then(scope);
            if region.is_some_and(|(_, region)| shared.station(region).is_lost()) {
                return Err(broken(io::ErrorKind::ConnectionRefused));
            }
            let body = request.body().bytes().unwrap_or_default();
            match tokio::time::timeout(timeout, exchange(&head(&request), body, &shared)).await {
                Ok(Reply::Answer(response)) => Ok(answer(response)),
                Ok(Reply::Reset) => Err(broken(io::ErrorKind::ConnectionReset)),
                Ok(Reply::Torn(_)) => Err(broken(io::ErrorKind::UnexpectedEof)),
                Err(late) => Err(ConnectorError::timeout(
                    format!("read timeout after {timeout:?}: {late}").into(),
                )),
            }
        })
    }
}

fn head(request: &HttpRequest) -> HeaderMap {
    let pair = |(name, value): (&str, &str)| {
        let name: HeaderName = name.parse().expect("a name");
        (name, value.parse().expect("a value"))
    };
    request.headers().iter().map(pair).collect()
}

fn answer(response: Response) -> HttpResponse {
    let (head, body) = response.into_parts();
    let status = head.status.as_u16().try_into().expect("a status");
    let mut answer = HttpResponse::new(status, SdkBody::from_body_1_x(body));
    for (name, value) in &head.headers {
        let value = value.to_str().expect("text").to_owned();
        answer.headers_mut().append(name.as_str().to_owned(), value);
    }
    answer
}

fn broken(kind: io::ErrorKind) -> ConnectorError {
    ConnectorError::io(io::Error::from(kind).into())
}
