//! What wiping freed memory costs: the shipped server beside one without it, in one run.
#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::disallowed_methods, // a benchmark times itself
    clippy::disallowed_types,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub
)]

#[allow(dead_code, reason = "the load benchmark uses the rest")]
#[path = "load/calls.rs"]
mod calls;
#[allow(dead_code, reason = "the load benchmark uses the rest")]
#[path = "load/client.rs"]
mod client;
#[path = "../tests/support/figures.rs"]
mod figures;
#[allow(dead_code, reason = "the load benchmark uses the rest")]
#[path = "load/process.rs"]
mod process;
#[allow(dead_code, reason = "the load benchmark uses the rest")]
#[path = "load/round.rs"]
mod round;
#[path = "load/stage.rs"]
mod stage;

use std::env;
use std::process::Command;
use std::process::ExitCode;
use std::time::Duration;

use client::Call;
use client::Client;
use client::Shape;
use mimalloc::MiMalloc;
use process::Process;
use process::Trail;
use round::Round;
use round::median;
use stage::Stage;

/// What the shipped binary has, but for the wiping.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    // This binary is the product as well, but for the allocator, which main.rs puts in.
    if arguments.next().as_deref() == Some(SERVE) {
        return keybroker::cli::main();
    }
    if !env::args().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run())
}

async fn run() -> ExitCode {
    let shipped = Side::start(Command::new(env!("CARGO_BIN_EXE_keybroker"))).await;
    let plain = Side::start(Command::new(env::current_exe().unwrap())).await;
    let mut sides = [shipped, plain];
    let mut excess = None;
    println!("  bytes call    wiping µs   plain µs      ratio");
    for size in SIZES {
        let mut calls = Vec::new();
        for side in &sides {
            let (encrypt, decrypt) = calls::of(&side.client, size).await;
            calls.push([encrypt, decrypt]);
        }
        for (place, name) in ["encrypt", "decrypt"].into_iter().enumerate() {
            let mut rounds = Vec::new();
            for round in 0..=rounds_of(size) {
                let mut cpu = [0.0; 2];
                // Who goes first changes: what one leaves behind must not weigh on the other alone.
                for turn in [round % 2, 1 - round % 2] {
                    cpu[turn] = sides[turn].measure(&calls[turn][place]).await;
                }
                // The first is for warming up.
                if round > 0 {
                    rounds.push((cpu[0], cpu[1], cpu[0] / cpu[1]));
                }
            }
            let wiping = median(rounds.iter().map(|round| round.0));
            let plain = median(rounds.iter().map(|round| round.1));
            let ratio = median(rounds.iter().map(|round| round.2));
            println!("{size:7} {name:8} {wiping:9.2} {plain:10.2} {ratio:10.3}");
            let figure: &'static str = format!("zero_on_free_{name}_{size}_cpu_ratio").leak();
            figures::record("memory", [(figure, ratio)]);
            if (name, size) == ("encrypt", 1024) {
                figures::record("memory", [("zero_on_free_cpu_ratio", ratio)]);
                excess = (ratio > RATIO_BOUND).then_some(ratio);
            }
        }
    }
    match excess {
        None => ExitCode::SUCCESS,
        Some(ratio) => {
            eprintln!(
                "an Encrypt of 1024 bytes takes {ratio:.3} times the CPU that it takes without \
                 wiping, {RATIO_BOUND} is the bound"
            );
            ExitCode::FAILURE
        }
    }
}

/// A server and what it needs.
struct Side {
    server: Process,
    client: Client,
    trail: Trail,
    _stage: Stage,
}

impl Side {
    async fn start(mut command: Command) -> Self {
        let stage = Stage::set();
        let server = Process::start(command.args([SERVE, "--config"]).arg(stage.config()));
        let client = Client::connect(server.address(), stage.folder(), Shape::USUAL).await;
        Self {
            server,
            client,
            trail: Trail::new(stage.audit()),
            _stage: stage,
        }
    }

    /// The CPU time that the server takes for a call, in microseconds.
    async fn measure(&mut self, call: &Call) -> f64 {
        let span = round::span(USUAL_SPAN);
        let round = Round::measure(&self.server, &self.client, call, span).await;
        self.trail.drain();
        round.cpu_us()
    }
}

/// The figure that has a name of its own is measured more often.
fn rounds_of(size: usize) -> usize {
    if size == 1024 { 41 } else { 9 }
}

const SERVE: &str = "serve";
const SIZES: [usize; 3] = [64, 1 << 10, 16 << 10];
/// The most that wiping may cost an Encrypt of 1 KiB, over doing without.
const RATIO_BOUND: f64 = 1.1;
/// Short, and often: what else the machine does then weighs on both sides alike. Two servers, two
/// calls, 59 rounds and 3 of warming up: about two minutes.
const USUAL_SPAN: Duration = Duration::from_millis(500);
