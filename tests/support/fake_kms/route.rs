//! The way of the real client to the fake: the SDK's own connector, to the port of each Region.

use std::sync::Arc;
use std::sync::Weak;

use aws_sdk_kms::config::HttpClient as _;
use aws_sdk_kms::config::SharedHttpClient;
use aws_sdk_kms::config::http::HttpRequest;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::http::HttpConnectorFuture;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_smithy_runtime_api::client::http::http_client_fn;

use super::Shared;
use super::request::scope;

/// Sends each call to the port of the Region that its signature names: one endpoint for all of them,
/// which is what can be configured, could not refuse the connections of a single one.
pub fn by_region(shared: &Arc<Shared>) -> SharedHttpClient {
    let shared = Arc::downgrade(shared);
    let plain = aws_smithy_http_client::Builder::new().build_http();
    http_client_fn(move |settings, components| {
        SharedHttpConnector::new(Routed {
            shared: Weak::clone(&shared),
            connector: plain.http_connector(settings, components),
        })
    })
}

#[derive(Debug)]
struct Routed {
    shared: Weak<Shared>,
    connector: SharedHttpConnector,
}

impl HttpConnector for Routed {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let region = request.headers().get("authorization").and_then(scope);
        if let (Some((_, region)), Some(shared)) = (region, self.shared.upgrade()) {
            let endpoint = shared.station(region).door.endpoint();
            request.set_uri(format!("{endpoint}/")).expect("a URI");
        }
        self.connector.call(request)
    }
}
