//! One measurement of a server under load, and what many of them come to.

use std::env;
use std::time::Duration;

use crate::client::Call;
use crate::client::Client;
use crate::process::Process;

/// How a server stood the load for a while.
pub struct Round {
    /// Calls answered.
    pub calls: usize,
    /// Calls answered a second.
    pub rps: f64,
    /// The latency of half of the calls, in microseconds.
    pub p50_us: f64,
    /// The latency of 99 in 100, in microseconds.
    pub p99_us: f64,
    /// What a call took of the server's own CPU time, in microseconds.
    pub user_us: f64,
    /// What it took of the kernel's for the server.
    pub system_us: f64,
}

impl Round {
    /// Presses `server` with `call` for `span`.
    pub async fn measure(server: &Process, client: &Client, call: &Call, span: Duration) -> Self {
        let before = server.cpu();
        let stood = client.press(call, span).await;
        let after = server.cpu();
        let a_call = |spent: Duration| spent.as_secs_f64() * 1e6 / stood.calls() as f64;
        Self {
            calls: stood.calls(),
            rps: stood.rate(),
            p50_us: stood.percentile(50),
            p99_us: stood.percentile(99),
            user_us: a_call(after.user - before.user),
            system_us: a_call(after.system - before.system),
        }
    }

    /// What a call took of the CPU, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }
}

/// The middle one of `figures`, or the one above the middle.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// How long one measurement takes: `usual`, or what the caller wants.
pub fn span(usual: Duration) -> Duration {
    match env::var("KEYBROKER_BENCH_SECONDS") {
        Ok(seconds) => Duration::from_secs_f64(seconds.parse().expect("a number of seconds")),
        Err(_) => usual,
    }
}
