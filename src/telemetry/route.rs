//! The way to a collector for what the SDK's exporters do not send: where it is and what each
//! request says beside its message, as the variables have it.

mod headers;

use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

use crate::telemetry::variables::Misset;
use crate::telemetry::variables::Signal;
use crate::telemetry::variables::Variables;

/// How a collector is reached.
pub(super) struct Route {
    endpoint: Endpoint,
    headers: MetadataMap,
}

impl Route {
    /// To the collector at `address`, for `signal`.
    pub(super) fn new<F: Fn(&str) -> Option<String>>(
        variables: &Variables<F>,
        signal: Signal,
        address: &str,
    ) -> Result<Self, Misset> {
        variables.protocol(signal)?;
        let unusable = |error: tonic::transport::Error| Misset::Address {
            address: address.to_owned(),
            error: error.to_string(),
        };
        let mut endpoint = Endpoint::from_shared(address.to_owned()).map_err(unusable)?;
        if let Some(tls) = variables.tls_to(signal, address)? {
            endpoint = endpoint.tls_config(tls).map_err(unusable)?;
        }
        let headers = match variables.of(signal, "HEADERS") {
            Some((variable, text)) => headers::parse(&text).ok_or(Misset::Headers { variable })?,
            None => MetadataMap::new(),
        };
        Ok(Self { endpoint, headers })
    }

    /// Connects when it is needed, and anew when it was cut. The runtime that this is called in
    /// carries it.
    pub(super) fn channel(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// A request with `message`.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request
    }
}
