//! Health and reflection, which leave no record, and the listener for probes.

use http::Uri;
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1;
use tonic_reflection::pb::v1alpha;

use crate::harness::Broker;
use crate::harness::Connection;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::Wire;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

const SERVICE: &str = "keybroker.v1.KeyBrokerService";

fn origin() -> Uri {
    Uri::from_static("https://localhost")
}

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

/// A broker with a listener for probes, and a connection to that.
async fn probed() -> (Broker, Connection) {
    let broker = Broker::start()
        .with(|setup| {
            setup.listen.health = Some(([127, 0, 0, 1], 0).into());
            setup.limits.drain_pause = jiff::SignedDuration::from_millis(300);
        })
        .await;
    let stream = TcpStream::connect(broker.health_address().unwrap())
        .await
        .unwrap();
    (broker, Connection::new(stream).await.unwrap())
}

async fn wire(broker: &Broker) -> Wire {
    broker
        .connect(&broker.authority.client(WEB))
        .await
        .unwrap()
        .wire
}

#[tokio::test]
async fn health_is_told_to_probes_and_to_callers() {
    let (broker, probe) = probed().await;
    for wire in [probe.wire, wire(&broker).await] {
        let mut health = HealthClient::with_origin(wire, origin());
        // The first pulse sets the service's own.
        let mut watch = health.watch(of(SERVICE)).await.unwrap().into_inner();
        let serving = i32::from(ServingStatus::Serving);
        soon(async { while watch.message().await.unwrap().unwrap().status != serving {} }).await;
        for service in ["", SERVICE] {
            let answer = health.check(of(service)).await.unwrap().into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
        }
        let unknown = health.check(of("keybroker.v2.Nothing")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
    }
    assert_eq!(broker.records().len(), 0);
}

#[tokio::test]
async fn the_health_listener_serves_nothing_else() {
    let (broker, probe) = probed().await;
    let outcome = probe.client().encrypt(encrypt("keys/orders", "x")).await;
    let refusal = Refusal::of(&outcome.unwrap_err());
    assert_eq!(refusal.code, tonic::Code::Unauthenticated);
    assert_eq!(refusal.reason, "IDENTITY_MISSING");
    assert_eq!(broker.records()[0]["errorCode"], "IDENTITY_MISSING");
    assert_eq!(broker.records()[0]["userIdentity"], serde_json::Value::Null);

    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let answer = probe.wire.send(path, &[], Vec::new()).await;
    assert_eq!(reason::<()>(Err(answer.status)), "IDENTITY_MISSING");
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn who_watches_sees_the_server_stop_and_does_not_hold_it_up() {
    let (mut broker, probe) = probed().await;
    let mut watches = Vec::new();
    for wire in [probe.wire, wire(&broker).await] {
        let mut health = HealthClient::with_origin(wire, origin());
        let mut watch = health.watch(of("")).await.unwrap().into_inner();
        let first = watch.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    broker.ask_to_stop();
    for watch in &mut watches {
        let next = soon(watch.message()).await.unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
    }
    // New callers are still served: load balancers have not heard of it yet.
    broker
        .caller(WEB)
        .await
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap();
    for watch in &mut watches {
        assert_eq!(soon(watch.message()).await.unwrap(), None);
    }
    // Far sooner than the drain's 25 s.
    tokio::time::timeout(std::time::Duration::from_secs(5), broker.stop())
        .await
        .expect("no stream holds it");
}

/// Asks both versions of reflection on `wire` for the services.
async fn services(wire: &Wire) -> Result<[Vec<String>; 2], tonic::Status> {
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::with_origin(wire.clone(), origin());
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut answers = client
        .server_reflection_info(once(request))
        .await?
        .into_inner();
    let answer = answers.message().await?.unwrap().message_response.unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}");
    };
    let first = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();

    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::with_origin(
        wire.clone(),
        origin(),
    );
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = client
        .server_reflection_info(once(request))
        .await?
        .into_inner();
    let answer = answers.message().await?.unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer
    else {
        panic!("{answer:?}");
    };
    let second = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    Ok([first, second])
}

fn once<T>(one: T) -> impl futures_util::Stream<Item = T> + Send + 'static
where
    T: Send + 'static,
{
    futures_util::stream::once(std::future::ready(one))
}

#[tokio::test]
async fn reflection_lists_the_service_in_both_versions() {
    let broker = Broker::start().await;
    for listed in services(&wire(&broker).await).await.unwrap() {
        assert!(listed.iter().any(|name| name == SERVICE), "{listed:?}");
        assert!(
            listed.iter().any(|name| name == "grpc.health.v1.Health"),
            "{listed:?}"
        );
    }
    assert_eq!(broker.records().len(), 0);
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    let broker = Broker::start()
        .with(|setup| setup.listen.reflection = false)
        .await;
    let outcome = services(&wire(&broker).await).await;
    assert_eq!(reason(outcome), "METHOD_UNKNOWN");
    let listen: keybroker::grpc::listener::Config = toml::from_str("reflection = false").unwrap();
    assert!(!listen.reflection);
    let listen: keybroker::grpc::listener::Config = toml::from_str("").unwrap();
    assert!(listen.reflection);
}
