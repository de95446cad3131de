//! The server as a whole: sockets bound, routes joined, reloads taken, and an end in order.

mod limits;
mod methods;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::SignedDuration;
use jiff::Timestamp;
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
use crate::grpc::backlog;
use crate::grpc::connection::Connections;
use crate::grpc::driver::BusyPoll;
use crate::grpc::listener;
use crate::grpc::listener::Acceptor;
use crate::grpc::listener::Sockets;
use crate::grpc::pb;
use crate::grpc::pb::admin_service_server;
use crate::grpc::pb::grant_service_server;
use crate::grpc::pb::key_broker_service_server::SERVICE_NAME;
use crate::grpc::tls::Material;
use crate::grpc::witness;
use crate::grpc::witness::Witness;
use crate::trace::Tracer;

pub use limits::Limits;

use methods::methods;

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
            busy_poll: BusyPoll::new(span(limits.busy_poll), Arc::clone(&clock)),
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
                busy_poll: BusyPoll::off(),
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

/// Those whose health can be asked for; "" is the whole.
const SERVICES: [&str; 4] = [
    "",
    SERVICE_NAME,
    admin_service_server::SERVICE_NAME,
    grant_service_server::SERVICE_NAME,
];

/// A span that `check` has found not negative.
fn span(span: SignedDuration) -> Duration {
    Duration::try_from(span).unwrap_or_default()
}

/// Connections to the health listener at once.
const PROBES: usize = 32;
