//! `keybroker serve`: everything is read and checked, then bound, then served. `keybroker dev`
//! starts through the same [`Broking`].

mod follow;
pub(super) mod keyring;
mod reload;
mod tokens;
mod warm;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admin;
use crate::admin::Admin;
use crate::audit;
use crate::audit::Audit;
use crate::audit::Collector;
use crate::audit::Countersigning;
use crate::audit::Sink;
use crate::broker::Broker;
use crate::broker::Grants;
use crate::cli::ConfigArg;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::chain;
use crate::cli::serve::follow::Configured;
use crate::cli::serve::follow::Follower;
use crate::cli::serve::follow::Presence;
use crate::cli::serve::warm::Keeper;
use crate::cli::stored;
use crate::clock::Clock;
use crate::clock::System;
use crate::config::Config;
use crate::datakeys::DataKeys;
use crate::directory::Directory;
use crate::directory::staleness;
use crate::grpc::Parts;
use crate::grpc::Server;
use crate::grpc::listener;
use crate::kms;
use crate::kms::Backends;
use crate::kms::Guarded;
use crate::kms::aws::Aws;
use crate::kms::local::Purpose;
use crate::mem;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::quota::Quotas;
use crate::store;
use crate::store::Freshness;
use crate::telemetry::Telemetry;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    harden();
    // Before anything says that it serves: a signal then has it end in order.
    let stop = told_to_stop()?;
    let broking = Broking::start(&args.config.config, Purpose::Production).await?;
    broking.until(stop).await;
    Ok(())
}

/// A broker whose sockets are bound: whoever connects waits until [`Broking::until`].
pub(super) struct Broking {
    server: Server,
    admin: Option<Admin>,
    broker: Arc<Broker>,
    telemetry: Telemetry,
    follower: Arc<Follower>,
    /// None where nothing is kept for the next start.
    keeper: Option<Keeper>,
    audit: Arc<Audit>,
    /// None where no KMS key countersigns audit records.
    countersigning: Option<Countersigning>,
}

impl Broking {
    /// Reads and checks all that the configuration at `path` names, and binds its sockets.
    pub(super) async fn start(path: &Path, purpose: Purpose) -> Result<Self, Failure> {
        let clock: Arc<dyn Clock> = Arc::new(System);
        let config = Config::load_for(path, purpose).map_err(|error| Failure::config(&error))?;
        guard(&config.memory);
        let read = reload::Stamps::of(path, &config);
        let state = config
            .state(path, clock.wall())
            .map_err(|error| Failure::config(&error))?;
        let hangup = signals(SignalKind::hangup())?;
        let backends = backends(&config.kms, purpose).await?;
        if let (Some(keyring), Some(tenants)) = (&backends.local, &state.tenants) {
            tenants
                .check_keyring(keyring)
                .map_err(|error| Failure::config(&error))?;
        }
        let keyring = backends.local.clone();
        if let (Some(keyring), Some(local)) = (&backends.local, &config.kms.local) {
            tokio::spawn(keyring::tend(
                Arc::clone(keyring),
                local.clone(),
                Arc::clone(&clock),
            ));
        }
        let telemetry = Telemetry::from_environment();
        let metrics = telemetry.metrics();
        metrics.loaded(clock.wall());
        let sink = sink(&config.audit, &telemetry, metrics.clone())?;
        let audit = Audit::new(sink, Arc::clone(&clock));
        let countersigning = config.audit.kms_key.as_ref().and_then(|key| {
            let key = backends.aws.signing_key(key);
            audit.countersign(Box::new(key))
        });
        let backends = Arc::new(backends);
        let delegation: Arc<dyn kms::Delegation> = backends.clone();
        let guarded = Guarded::new(
            backends,
            &config.kms.aws,
            metrics.clone(),
            telemetry.tracer(),
        )
        .map_err(|error| Failure::config(&error))?;
        let data_keys = DataKeys::new(
            Arc::new(guarded),
            Arc::clone(&clock),
            metrics.clone(),
            &config.cache,
        );
        let quotas = Quotas::new(&config.quota, metrics.clone(), Arc::clone(&clock));
        let configured = Configured {
            config: config.clone(),
            rules: Arc::new(state.rules),
            documents: state.tenants.map(|tenants| tenants.documents),
        };
        let nobody = Arc::new(Directory::default());
        let policy = Policy::new(nobody, Arc::clone(&configured.rules))
            .map_err(|error| Failure::config(&error))?;
        let store = Arc::new(stored::open(&config.store)?);
        let keys = tokens::keys(&config)?;
        let grants = Grants::new(Arc::clone(&store), keys, Arc::clone(&clock));
        // Its bounds are checked: what is none has no time at all.
        let limit = staleness(config.store.max_staleness).unwrap_or_default();
        let freshness = Arc::new(Freshness::new(Arc::clone(&clock), limit));
        let broker = Broker::new(policy, quotas, data_keys, grants);
        broker.manage(config.management());
        let broker = broker.delegating(delegation);
        let broker = Arc::new(broker.following(Arc::clone(&freshness)));
        let instance = audit.instance();
        let presence = Presence::new(Arc::clone(&store), Arc::clone(&clock), instance, limit);
        let follower = Arc::new(Follower::new(
            path.to_owned(),
            store,
            presence,
            Arc::clone(&broker),
            freshness,
            Arc::clone(&clock),
            configured,
        ));
        begin(&follower, &config.store).await?;
        let parts = Parts {
            broker: Arc::clone(&broker),
            audit: Arc::clone(&audit),
            clock: Arc::clone(&clock),
            tracer: telemetry.tracer(),
        };
        let server = Server::bind(parts, &config.listen, config.limits.clone(), state.material)
            .await
            .map_err(|error| unbound(&error))?;
        if let Some(address) = server.tcp_address() {
            tracing::info!(%address, "serving with TLS");
        }
        if let Some(unix) = &config.listen.unix {
            tracing::info!(path = %unix.path.display(), "serving on a Unix socket");
        }
        if let Some(address) = server.health_address() {
            tracing::info!(%address, "serving health probes in plain text");
        }
        let admin = match config.listen.admin {
            Some(address) => {
                let view = admin::View::new(telemetry.clone(), metrics.clone(), server.handle());
                let admin = Admin::bind(address, view).await;
                Some(admin.map_err(|error| unbound(&error))?)
            }
            None => None,
        };
        if let Some(address) = admin.as_ref().and_then(Admin::address) {
            tracing::info!(%address, "serving metrics and readiness in plain text");
        }
        let keeper = match purpose {
            Purpose::Production => Keeper::new(&config.cache, Arc::clone(&broker)),
            Purpose::Dev => None,
        };
        let reloader = reload::Reloader {
            path: path.to_owned(),
            config,
            read,
            audit: Arc::downgrade(&audit),
            server: server.handle(),
            keyring,
            clock,
            metrics,
            follower: Arc::clone(&follower),
        };
        tokio::spawn(reloader.run(hangup));
        Ok(Self {
            server,
            admin,
            broker,
            telemetry,
            follower,
            keeper,
            audit,
            countersigning,
        })
    }

    /// The address of the TLS listener, its port chosen.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.server.tcp_address()
    }

    /// The address of the admin listener, its port chosen.
    pub(super) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.address()
    }

    /// The broker behind it.
    pub(super) fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Serves until `shutdown`, and lets calls under way finish.
    pub(super) async fn until(self, shutdown: impl Future<Output = ()>) {
        let keeping = self.keeper.map(Keeper::start);
        // Ends after the server: a drain is worth seeing to its end.
        let mut aside = JoinSet::new();
        let broker = Arc::clone(&self.broker);
        let directory = move || Arc::clone(broker.policy().directory());
        aside.spawn(self.broker.data_keys().watch(directory));
        aside.spawn(Arc::clone(&self.follower).run(self.audit));
        if let Some(admin) = self.admin {
            aside.spawn(admin.run());
        }
        self.server.run(shutdown).await;
        if let Some(keeping) = keeping {
            keeping.end().await;
        }
        // It has the last word in the trail, what ends aside included.
        aside.shutdown().await;
        if let Some(countersigning) = self.countersigning {
            countersigning.end().await;
        }
        self.follower.end().await;
        self.telemetry.stop().await;
        tracing::info!("stopped");
    }
}

/// Where audit records go.
fn sink(config: &audit::Config, telemetry: &Telemetry, metrics: Metrics) -> Result<Sink, Failure> {
    let collector = match &config.otlp {
        Some(address) => {
            let records = telemetry.records(address);
            let records = records.map_err(|error| Failure::config(&error))?;
            let collector: Box<dyn Collector> = Box::new(records);
            Some(collector)
        }
        None => None,
    };
    Sink::open(config, collector, metrics).map_err(|error| Failure::config(&error))
}

/// Has `follower` begin. A server's store may come later: nobody is served until then.
async fn begin(follower: &Follower, config: &store::Config) -> Result<(), Failure> {
    let patience = match config.url {
        Some(_) => STORE,
        None => Duration::MAX,
    };
    let begun = timeout(patience, follower.begin()).await;
    match begun.unwrap_or(Err(store::Error::Slow)) {
        Err(error) if config.url.is_some() && error.is_outage() => {
            tracing::error!(
                error = chain(&error),
                "the store is out of reach: not ready until it was reached once"
            );
            Ok(())
        }
        begun => begun.map_err(|error| stored::failure(&error)),
    }
}

/// The key management services of `config`. A keyring is opened, never made.
pub(super) async fn backends(config: &kms::Config, purpose: Purpose) -> Result<Backends, Failure> {
    let aws = Aws::load(config.aws.clone())
        .await
        .map_err(|error| Failure::config(&error))?;
    let local = match &config.local {
        Some(local) => Some(Arc::new(keyring::opened(local.clone(), purpose).await?)),
        None => None,
    };
    Ok(Backends { aws, local })
}

/// Resolves on SIGTERM or SIGINT.
pub(super) fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: calls under way may finish");
    })
}

/// Closes the process to those who would read its memory, before it has read a secret.
pub(super) fn harden() {
    tell(&mem::harden());
}

/// Locks the memory for keys.
fn guard(config: &mem::Config) {
    tell(&mem::init(config));
    let status = mem::status();
    tracing::info!(
        arena = status.arena.label(),
        locked_bytes = status.locked_bytes,
        slots = status.slots_total,
        swapped_bytes = status.swapped_bytes,
        "memory for keys"
    );
}

fn tell(missing: &[mem::Error]) {
    for error in missing {
        tracing::warn!("{error}");
    }
}

/// Signals of `kind`, which from now on end the process no more.
fn signals(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::system(format!("cannot await signals: {error}")))
}

/// An address that is not to be had is the machine's matter, the rest is the configuration's.
fn unbound(error: &listener::Error) -> Failure {
    let code = match error {
        listener::Error::Tcp { .. }
        | listener::Error::Unix { .. }
        | listener::Error::InUse { .. } => Exit::System,
        listener::Error::Exposed { .. }
        | listener::Error::NoSocket { .. }
        | listener::Error::Mode { .. } => Exit::Config,
    };
    Failure::new(code, chain(error))
}

/// For the store's server at the start, which waits for it no longer.
const STORE: Duration = Duration::from_secs(2);
