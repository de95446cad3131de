//! What the layer has to know of an RPC of the broker.

use std::sync::Arc;

use tonic::body::Body;
use tower::Service as _;

use crate::datakeys::Patience;
use crate::error::Error;

use crate::grpc::pb::admin_service_server::AdminServiceServer;
use crate::grpc::pb::grant_service_server::GrantServiceServer;
use crate::grpc::pb::key_broker_service_server::KeyBrokerServiceServer;
use crate::grpc::service::Service;
use crate::grpc::unary;
use crate::grpc::witness::Guest;
use crate::grpc::witness::Opened;
use crate::grpc::witness::Passage;
use crate::metrics::CallTally;

/// What the layer has to know of an RPC of the broker.
pub(in crate::grpc) struct Rpc {
    /// The name without its service.
    pub(in crate::grpc) name: Arc<str>,
    /// What its calls come to.
    pub(in crate::grpc) tally: Arc<CallTally>,
    /// What serves it.
    pub(in crate::grpc) service: Contract,
    /// The longest request that it takes, in bytes.
    pub(in crate::grpc) limit: usize,
    /// How much longer than its request an answer can be, in bytes. Those of a stream are bounded
    /// one by one.
    pub(in crate::grpc) answer: usize,
    pub(in crate::grpc) work: Work,
}

impl Rpc {
    /// Has `guest` served, who has passed.
    pub(super) async fn call(
        &self,
        request: http::Request<Body>,
        guest: Guest,
        patience: Arc<Patience>,
        call: &Opened<'_>,
    ) -> Result<http::Response<Body>, Error> {
        let served = match (&self.service, guest) {
            (Contract::Decrypt(service), Guest::Visitor(visitor)) => {
                let message = unary::message(request, self.limit).await?;
                let passage = call.passage(visitor);
                let answer = service.decrypt_for(&passage, patience, message).await?;
                return Ok(unary::answer(answer));
            }
            (Contract::Encrypt(service), Guest::Visitor(visitor)) => {
                let message = unary::message(request, self.limit).await?;
                let passage = call.passage(visitor);
                let answer = service.encrypt_for(&passage, patience, message).await?;
                return Ok(unary::answer(answer));
            }
            (Contract::Admin(service), Guest::Operator(operator)) => {
                let request = with(request, call.passage(operator), patience);
                service.clone().call(request).await
            }
            (Contract::Grants(service), Guest::Visitor(visitor)) => {
                let request = with(request, call.passage(visitor), patience);
                service.clone().call(request).await
            }
            (Contract::Keys(service), Guest::Visitor(visitor)) => {
                let request = with(request, call.passage(visitor), patience);
                service.clone().call(request).await
            }
            (Contract::Admin(_), Guest::Visitor(_)) | (_, Guest::Operator(_)) => {
                return Err(Error::Bug("a guest of another service".into()));
            }
        };
        match served {
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
}

/// `request` with what its method takes from it.
fn with<V: Clone + Send + Sync + 'static>(
    mut request: http::Request<Body>,
    passage: Passage<V>,
    patience: Arc<Patience>,
) -> http::Request<Body> {
    request.extensions_mut().insert(passage);
    request.extensions_mut().insert(patience);
    request
}

/// The service that an RPC is of.
#[derive(Clone)]
pub(in crate::grpc) enum Contract {
    /// For operators, who get through whatever there is to do.
    Admin(AdminServiceServer<Service>),
    /// A method of its service that comes so often that it takes a shorter way, as the next one.
    Decrypt(Service),
    Encrypt(Service),
    Grants(GrantServiceServer<Service>),
    Keys(KeyBrokerServiceServer<Service>),
}

/// How much an RPC has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::grpc) enum Work {
    /// Little, but it may wait for others and shall not wait itself: it runs in a task of its own
    /// and takes no place among the calls under way.
    Control,
    /// Enough to hold up the other calls of its connection: it runs in a task of its own.
    Long,
    /// So little that it may run in the connection's own task.
    Short,
    /// As much as its client likes: the call only begins it, in a task of its own, and it goes on
    /// in another. It has a place among the streams and no deadline but its client's.
    Stream,
}
