//! A call that does nothing, on stock tonic: what every call on every gRPC server in Rust costs at
//! least, unless it drives its connections itself.

use std::convert::Infallible;
use std::fs;
use std::future::Ready;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::task::Context;
use std::task::Poll;
use std::thread;

use bytes::Bytes;
use tokio::sync::oneshot;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::Service;
use tonic::server::Grpc;
use tonic::server::NamedService;
use tonic::server::UnaryService;
use tonic::transport::Certificate;
use tonic::transport::Identity;
use tonic::transport::Server;
use tonic::transport::ServerTlsConfig;
use tonic::transport::server::TcpIncoming;
use tonic_prost::ProstCodec;

use crate::stage;

/// What is sent, and what comes back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    /// The bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// The one method.
pub const PATH: &str = "/bench.Echo/Echo";

/// Serves with the certificates in `folder`, says where on standard error, and stops when standard
/// input ends: the parent is gone.
pub fn serve(folder: &Path) {
    let read = |name| fs::read(folder.join(name)).unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(
            read(stage::SERVER.certificate),
            read(stage::SERVER.private_key),
        ))
        .client_ca_root(Certificate::from_pem(read(stage::AUTHORITY)));
    let (gone, parent) = oneshot::channel();
    thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = gone.send(());
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = incoming.local_addr().unwrap();
        eprintln!("echo address={address}");
        let server = Server::builder().tls_config(tls).unwrap().add_service(Echo);
        let parent = async { drop(parent.await) };
        server
            .serve_with_incoming_shutdown(incoming.with_nodelay(Some(true)), parent)
            .await
            .unwrap();
    });
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// As generated code does it.
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.unary(Same, request).await)
        })
    }
}

struct Same;

impl UnaryService<Payload> for Same {
    type Response = Payload;
    type Future = Ready<Result<Response<Payload>, Status>>;

    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}
