//! What the witnesses of a call cost: a server put together here as `keybroker serve` does, as it
//! is, without an audit trail, and without metrics and traces, beside the same echo in one run.

use std::env;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use keybroker::audit::Audit;
use keybroker::audit::Sink;
use keybroker::broker::Broker;
use keybroker::broker::Grants;
use keybroker::clock::Clock;
use keybroker::clock::System;
use keybroker::config::Config;
use keybroker::crypto::Secret;
use keybroker::datakeys::DataKeys;
use keybroker::grants::TokenKey;
use keybroker::grants::TokenKeys;
use keybroker::grpc::Parts;
use keybroker::grpc::Server;
use keybroker::kms::local::Keyring;
use keybroker::kms::local::Purpose;
use keybroker::kms::local::SealingKey;
use keybroker::metrics::Metrics;
use keybroker::policy::Policy;
use keybroker::quota::Quotas;
use keybroker::store::Store;
use keybroker::telemetry::Telemetry;
use keybroker::trace::Sampling;
use keybroker::trace::Tracer;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::ECHO;
use crate::calls;
use crate::client::Client;
use crate::client::Shape;
use crate::group;
use crate::process::Process;
use crate::process::Trail;
use crate::round::Round;
use crate::round::median;
use crate::stage::Stage;

/// The argument that makes this binary such a server; a [`Witnesses`] and a configuration follow.
pub const SERVE: &str = "serve-with";

/// What a server has of audit, metrics and traces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Witnesses {
    /// All, with a tracer that takes no call.
    All,
    /// No audit trail.
    Unaudited,
    /// No metrics of calls, and no tracer.
    Untold,
}

impl Witnesses {
    const ALL: [Self; 3] = [Self::All, Self::Unaudited, Self::Untold];

    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Unaudited => "unaudited",
            Self::Untold => "untold",
        }
    }
}

/// Serves as the arguments say, until it is killed.
pub fn serve(witnesses: &str, config: &Path) -> ExitCode {
    let witnesses = Witnesses::ALL
        .into_iter()
        .find(|one| one.name() == witnesses);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run(witnesses.unwrap(), config));
    ExitCode::SUCCESS
}

async fn run(witnesses: Witnesses, path: &Path) {
    let clock: Arc<dyn Clock> = Arc::new(System);
    let config = Config::load(path).unwrap();
    let state = config.state(path, clock.wall()).unwrap();
    let telemetry = Telemetry::new();
    let provider = SdkTracerProvider::builder().build();
    let (metrics, tracer) = match witnesses {
        Witnesses::All | Witnesses::Unaudited => {
            let made = BoxedTracer::new(Box::new(provider.tracer("keybroker")));
            let never = Sampling::parse(None, Some("0")).unwrap();
            (telemetry.metrics(), Tracer::new(made, never))
        }
        Witnesses::Untold => (Metrics::uncounted(), Tracer::off()),
    };
    let audit = match witnesses {
        Witnesses::All | Witnesses::Untold => {
            let sink = Sink::open(&config.audit, None, metrics.clone()).unwrap();
            Audit::new(sink, Arc::clone(&clock))
        }
        Witnesses::Unaudited => Audit::unkept(Arc::clone(&clock)),
    };
    let directory = Arc::new(state.tenants.unwrap().directory);
    let policy = Policy::new(directory, Arc::new(state.rules)).unwrap();
    let local = config.kms.local.unwrap();
    let sealing_key = SealingKey::load(&local.sealing_key.parse().unwrap(), None).unwrap();
    let keyring = Keyring::open(&local.keyring, Purpose::Production, sealing_key).unwrap();
    let data_keys = DataKeys::new(
        Arc::new(keyring),
        Arc::clone(&clock),
        metrics.clone(),
        &config.cache,
    );
    let quotas = Quotas::new(&config.quota, metrics, Arc::clone(&clock));
    let store = Arc::new(Store::new(&config.store, None).unwrap());
    let key = TokenKey::new(Secret::filled(|cell| cell.fill(7)));
    let grants = Grants::new(store, TokenKeys::new(key, None), Arc::clone(&clock));
    let parts = Parts {
        broker: Arc::new(Broker::new(policy, quotas, data_keys, grants)),
        audit,
        clock,
        tracer,
    };
    let server = Server::bind(parts, &config.listen, config.limits, state.material)
        .await
        .unwrap();
    eprintln!("serving address={}", server.tcp_address().unwrap());
    server.run(std::future::pending()).await;
}

/// The shares of audit and of telemetry in the echo's CPU, for calls of `size` bytes.
pub async fn measure(size: usize, span: Duration) -> [(&'static str, f64); 2] {
    let stage = Stage::set();
    let own = env::current_exe().unwrap();
    let mut echo = Command::new(&own);
    let echo = Process::start(echo.arg(ECHO).arg(stage.folder()));
    let to_echo = Client::connect(echo.address(), stage.folder(), Shape::USUAL).await;
    let nothing = group::echo_of(size);
    let mut servers = Vec::new();
    for witnesses in Witnesses::ALL {
        // Its own: a keyring has one process.
        let stage = Stage::set();
        let mut server = Command::new(&own);
        let server = server.args([SERVE, witnesses.name()]).arg(stage.config());
        let server = Process::start(server);
        let client = Client::connect(server.address(), stage.folder(), Shape::USUAL).await;
        let (encrypt, _) = calls::of(&client, size).await;
        let trail = Trail::new(stage.audit());
        servers.push((server, client, encrypt, trail, stage));
    }
    let [mut audit, mut telemetry] = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let echoed = Round::measure(&echo, &to_echo, &nothing, span)
            .await
            .cpu_us();
        let mut cpu = [0.0; 3];
        // Who goes first changes: the machine is not the same at the end of a round.
        for turn in 0..cpu.len() {
            let at = (round + turn) % cpu.len();
            let (server, client, encrypt, trail, _) = &mut servers[at];
            cpu[at] = Round::measure(server, client, encrypt, span).await.cpu_us();
            if Witnesses::ALL[at] != Witnesses::Unaudited {
                trail.drain();
            }
        }
        // The first warms up.
        if round > 0 {
            let [all, unaudited, untold] = cpu;
            audit.push((all - unaudited) / echoed);
            telemetry.push((all - untold) / echoed);
        }
    }
    let [audit, telemetry] = [audit, telemetry].map(|shares| median(shares.into_iter()));
    [
        ("audit_cpu_share", audit),
        ("telemetry_cpu_share", telemetry),
    ]
}

/// Odd: each has a median of its own.
const ROUNDS: usize = 15;
