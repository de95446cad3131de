//! The server as a whole: sockets bound, routes joined, reloads taken, and an end in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::SignedDuration;
use jiff::Timestamp;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use prost_types::MethodDescriptorProto;
use prost_types::ServiceDescriptorProto;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::audit::Audit;
use crate::broker::Broker;
use crate::clock::Clock;
use crate::grpc::MAX_BATCH;
use crate::grpc::MAX_MESSAGE;
use crate::grpc::backlog;
use crate::grpc::connection::Connections;
use crate::grpc::driver::Deadlines;
use crate::grpc::listener;
use crate::grpc::listener::Acceptor;
use crate::grpc::listener::Sockets;
use crate::grpc::pb;
use crate::grpc::pb::grant_service_server;
use crate::grpc::pb::grant_service_server::GrantServiceServer;
use crate::grpc::pb::key_broker_service_server::KeyBrokerServiceServer;
use crate::grpc::pb::key_broker_service_server::SERVICE_NAME;
use crate::grpc::service::Service;
use crate::grpc::tls::Material;
use crate::grpc::witness;
use crate::grpc::witness::Contract;
use crate::grpc::witness::Method;
use crate::grpc::witness::Rpc;
use crate::grpc::witness::Witness;
use crate::grpc::witness::Work;
use crate::strict::OutOfBounds;
use crate::trace::Tracer;

/// What the server serves.
pub struct Parts {
    /// The operations.
    pub broker: Arc<Broker>,
    /// The trail.
    pub audit: Arc<Audit>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Makes the spans of calls.
    pub tracer: Tracer,
}

/// Bounds of the server as a whole, each with a ceiling above which it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one identity.
    pub connections_per_identity: usize,
    /// Connections from one address, before the identity is known.
    pub connections_per_address: usize,
    /// Calls under way; one more is OVERLOADED.
    pub in_flight: usize,
    /// Streams under way, which count apart; one more is OVERLOADED.
    pub streams: usize,
    /// Time for which work may stand in line: while it stands longer, calls of tenants over their
    /// share are OVERLOADED.
    pub queue_delay: SignedDuration,
    /// The age at which a connection is asked to go, ± 10 %.
    pub connection_age: SignedDuration,
    /// After SIGTERM, the time in which load balancers learn that we go.
    pub drain_pause: SignedDuration,
    /// Then, the time in which calls under way finish.
    pub drain: SignedDuration,
    /// How patient a connection is.
    #[serde(skip)]
    pub deadlines: Deadlines,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_identity: 64,
            connections_per_address: 256,
            in_flight: 512,
            streams: 128,
            queue_delay: SignedDuration::from_millis(5),
            connection_age: SignedDuration::from_mins(15),
            drain_pause: SignedDuration::from_secs(5),
            drain: SignedDuration::from_secs(25),
            deadlines: Deadlines::default(),
        }
    }
}

impl Limits {
    /// Checks every limit against its ceiling.
    ///
    /// # Errors
    /// [`OutOfBounds`] for the first outside.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        let count = |name, value: usize, ceiling, most| match value {
            value if (1..=ceiling).contains(&value) => Ok(()),
            value => Err(OutOfBounds {
                name,
                value: value.to_string(),
                least: "1",
                most,
            }),
        };
        count("limits.connections", self.connections, 65_536, "65536")?;
        count(
            "limits.connections_per_identity",
            self.connections_per_identity,
            65_536,
            "65536",
        )?;
        count(
            "limits.connections_per_address",
            self.connections_per_address,
            65_536,
            "65536",
        )?;
        count("limits.in_flight", self.in_flight, 65_536, "65536")?;
        count("limits.streams", self.streams, 65_536, "65536")?;
        let span = |name, value: SignedDuration, least, floor, most, ceiling| {
            if value < floor || value > ceiling {
                return Err(OutOfBounds {
                    name,
                    value: format!("{value:#}"),
                    least,
                    most,
                });
            }
            Ok(())
        };
        let seconds = SignedDuration::from_secs;
        span(
            "limits.queue_delay",
            self.queue_delay,
            "1ms",
            SignedDuration::from_millis(1),
            "10s",
            seconds(10),
        )?;
        span(
            "limits.connection_age",
            self.connection_age,
            "1s",
            seconds(1),
            "24h",
            seconds(86_400),
        )?;
        span(
            "limits.drain_pause",
            self.drain_pause,
            "0s",
            seconds(0),
            "60s",
            seconds(60),
        )?;
        span(
            "limits.drain",
            self.drain,
            "1s",
            seconds(1),
            "10m",
            seconds(600),
        )
    }
}

/// A server whose sockets are bound: whoever connects waits until [`Server::run`].
pub struct Server {
    sockets: Sockets,
    acceptor: Acceptor,
    drain: watch::Sender<bool>,
    health: HealthReporter,
    handle: Handle,
    broker: Arc<Broker>,
    limits: Limits,
}

/// Changes a running server.
#[derive(Clone)]
pub struct Handle {
    material: Option<Arc<ArcSwap<Material>>>,
    connections: Arc<Connections>,
    clock: Arc<dyn Clock>,
    stopping: Arc<AtomicBool>,
    broker: Arc<Broker>,
}

impl Handle {
    /// Why the server is not ready, if it is not.
    pub fn unready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("stopping");
        }
        if !self.broker.policy().directory().is_known() {
            return Some("store");
        }
        (!self.certified(self.clock.wall())).then_some("certificate_expired")
    }

    /// The last moment at which our own certificate, if there is one, is good.
    pub fn certificate_expiry(&self) -> Option<Timestamp> {
        let material = self.material.as_ref()?;
        Some(material.load().not_after())
    }

    /// Whether our own certificate, if there is one, is still good.
    fn certified(&self, now: Timestamp) -> bool {
        self.certificate_expiry().is_none_or(|end| end >= now)
    }

    /// Serves new handshakes with `material`, and verifies open connections against it: those
    /// that fail are refused and asked to go.
    pub fn reload(&self, material: Material) {
        if let Some(current) = &self.material {
            let material = Arc::new(material);
            current.store(Arc::clone(&material));
            self.connections.recheck(&material.trust, self.clock.wall());
        }
    }

    /// Rechecks open connections if a revocation list ended between `earlier` and `now`.
    fn follow(&self, earlier: Timestamp, now: Timestamp) {
        if let Some(material) = &self.material {
            let material = material.load();
            if material.trust.ended(earlier, now) {
                self.connections.recheck(&material.trust, now);
            }
        }
    }
}

impl Server {
    /// Binds the sockets of `listen`. `material` is needed where `listen.tcp` is set.
    ///
    /// # Errors
    /// [`listener::Error`], naming the address.
    pub async fn bind(
        parts: Parts,
        listen: &listener::Config,
        limits: Limits,
        material: Option<Material>,
    ) -> Result<Self, listener::Error> {
        let sockets = Sockets::bind(listen).await?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut routes = Routes::new(health_service);
        if listen.reflection {
            routes = routes
                .add_service(
                    reflection()
                        .build_v1()
                        .expect("our own descriptors are well-formed"),
                )
                .add_service(
                    reflection()
                        .build_v1alpha()
                        .expect("our own descriptors are well-formed"),
                );
        }
        let clock = Arc::clone(&parts.clock);
        let witness = Witness::new(
            Arc::clone(&parts.broker),
            routes.prepare(),
            methods(&parts.broker, listen),
            parts.audit,
            parts.tracer,
            Arc::clone(&clock),
            witness::Bounds {
                in_flight: limits.in_flight,
                streams: limits.streams,
                stall: limits.deadlines.stall,
            },
        );
        let connections = Connections::new(
            limits.connections_per_identity,
            limits.connections_per_address,
        );
        let (drain, draining) = watch::channel(false);
        let acceptor = Acceptor {
            witness,
            connections: Arc::clone(&connections),
            room: Arc::new(Semaphore::new(limits.connections)),
            clock: Arc::clone(&clock),
            drain: draining,
            age: span(limits.connection_age),
            deadlines: limits.deadlines,
        };
        let material = material.map(|material| Arc::new(ArcSwap::from_pointee(material)));
        let handle = Handle {
            material,
            connections,
            clock,
            stopping: Arc::default(),
            broker: Arc::clone(&parts.broker),
        };
        Ok(Self {
            sockets,
            acceptor,
            drain,
            health,
            handle,
            broker: parts.broker,
            limits,
        })
    }

    /// The address of the TLS listener, its port chosen.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.sockets
            .tcp
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// The address of the health listener, its port chosen.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.sockets
            .health
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// What can change the server while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown`; then says NOT_SERVING, waits for load balancers to see it, sends
    /// GOAWAY, and lets calls under way finish within their time.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut tasks = JoinSet::new();
        if let (Some(listener), Some(material)) = (self.sockets.tcp, &self.handle.material) {
            tasks.spawn(self.acceptor.clone().tls(listener, Arc::clone(material)));
        }
        for listener in self.sockets.unix {
            tasks.spawn(self.acceptor.clone().unix(listener));
        }
        if let Some(listener) = self.sockets.health {
            let probes = Acceptor {
                // Probes have places of their own: strangers shall not lock callers out.
                room: Arc::new(Semaphore::new(PROBES)),
                ..self.acceptor.clone()
            };
            tasks.spawn(probes.health(listener));
        }
        let pulse = pulse(
            Arc::clone(&self.broker),
            self.handle.clone(),
            self.health.clone(),
        );
        let pulse = tokio::spawn(pulse);
        let backlog = backlog::watch(Arc::clone(&self.broker), span(self.limits.queue_delay));
        let backlog = tokio::spawn(backlog);

        shutdown.await;
        self.handle.stopping.store(true, Ordering::Relaxed);
        pulse.abort();
        report(&self.health, ServingStatus::NotServing).await;
        tokio::time::sleep(span(self.limits.drain_pause)).await;
        self.drain.send_replace(true);
        // Ends the streams of those who watch: they would hold their connections to the last.
        for service in SERVICES {
            self.health.clear_service_status(service).await;
        }
        while tasks.join_next().await.is_some() {}
        let gone = self.handle.connections.gone();
        if tokio::time::timeout(span(self.limits.drain), gone)
            .await
            .is_err()
        {
            tracing::warn!("calls were still under way at the end of the drain");
        }
        backlog.abort();
    }
}

/// Once a second: expired keys and idle accounts leave memory, and what has ended is noticed: revocation lists, and
/// our own certificate, which readiness follows.
async fn pulse(broker: Arc<Broker>, handle: Handle, health: HealthReporter) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    let mut looked = handle.clock.wall();
    loop {
        ticks.tick().await;
        broker.sweep();
        let now = handle.clock.wall();
        handle.follow(looked, now);
        looked = now;
        let unready = handle.unready();
        if said != Some(unready) {
            said = Some(unready);
            let status = match unready {
                None => ServingStatus::Serving,
                Some(_) => ServingStatus::NotServing,
            };
            report(&health, status).await;
            if !handle.certified(now) {
                tracing::error!("our own certificate has expired: not ready until it is replaced");
            }
        }
    }
}

async fn report(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// The methods that there are, by path, from the contracts themselves.
fn methods(broker: &Arc<Broker>, listen: &listener::Config) -> HashMap<String, Method> {
    let ours = |limit| {
        let service = KeyBrokerServiceServer::new(Service(Arc::clone(broker)))
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        (Contract::Keys(service), limit)
    };
    let grants = {
        let service = GrantServiceServer::new(Service(Arc::clone(broker)))
            .max_decoding_message_size(MAX_CONTROL)
            .max_encoding_message_size(MAX_MESSAGE);
        (Contract::Grants(service), MAX_CONTROL)
    };
    let usual = ours(MAX_MESSAGE);
    let batch = ours(MAX_BATCH);
    let rpc = |service: &ServiceDescriptorProto, method: &MethodDescriptorProto| {
        let ((service, limit), answer, work) = match method.name() {
            _ if service.name() == "GrantService" => (&grants, MAX_PAGE, Work::Short),
            "EncryptBatch" | "DecryptBatch" => (&batch, MAX_HEADERS, Work::Long),
            "ListKeys" => (&usual, MAX_PAGE, Work::Short),
            _ if method.client_streaming() => (&usual, 0, Work::Stream),
            _ => (&usual, MAX_HEADER, Work::Short),
        };
        Method::Ours(Rpc {
            name: method.name().into(),
            service: service.clone(),
            limit: *limit,
            answer,
            work,
        })
    };

    let mut methods = HashMap::new();
    let mut enter =
        |descriptors: &[u8],
         kind: &dyn Fn(&ServiceDescriptorProto, &MethodDescriptorProto) -> Method| {
            let descriptors = FileDescriptorSet::decode(descriptors)
                .expect("descriptors are made with their code");
            for file in &descriptors.file {
                for service in &file.service {
                    for method in &service.method {
                        let path =
                            format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        methods.insert(path, kind(service, method));
                    }
                }
            }
        };
    enter(pb::DESCRIPTORS, &rpc);
    enter(tonic_health::pb::FILE_DESCRIPTOR_SET, &|_, _| {
        Method::Health
    });
    if listen.reflection {
        for descriptors in [
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            enter(descriptors, &|_, _| Method::Reflection);
        }
    }
    methods
}

/// What a page of 1,000 keys or of 100 grants takes at most, about, in bytes.
const MAX_PAGE: usize = 512 << 10;
/// Longest request that is about grants: with ten tokens, a principal and pairs, in bytes.
const MAX_CONTROL: usize = 128 << 10;
/// What an answer adds to the payload at most, in bytes: a header with its context and wrapped keys,
/// tags, and names.
const MAX_HEADER: usize = 16 << 10;
/// The same for the usual batch of 1,000 items, in bytes.
const MAX_HEADERS: usize = 1 << 20;
/// Those whose health can be asked for; "" is the whole.
const SERVICES: [&str; 3] = ["", SERVICE_NAME, grant_service_server::SERVICE_NAME];

/// A span that `check` has found not negative.
fn span(span: SignedDuration) -> Duration {
    Duration::try_from(span).unwrap_or_default()
}

/// Connections to the health listener at once.
const PROBES: usize = 32;
