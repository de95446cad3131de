//! What the layer has to know of an RPC of the broker.

use std::sync::Arc;

use tonic::body::Body;
use tower::Service as _;

use crate::grpc::pb::admin_service_server::AdminServiceServer;
use crate::grpc::pb::grant_service_server::GrantServiceServer;
use crate::grpc::pb::key_broker_service_server::KeyBrokerServiceServer;
use crate::grpc::service::Service;
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

/// The service that an RPC is of.
#[derive(Clone)]
pub(in crate::grpc) enum Contract {
    /// For operators, who get through whatever there is to do.
    Admin(AdminServiceServer<Service>),
    Grants(GrantServiceServer<Service>),
    Keys(KeyBrokerServiceServer<Service>),
}

impl Contract {
    pub(super) async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        let served = match self {
            Self::Admin(mut service) => service.call(request).await,
            Self::Grants(mut service) => service.call(request).await,
            Self::Keys(mut service) => service.call(request).await,
        };
        match served {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
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
