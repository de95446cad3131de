//! What a call costs over doing nothing: a real server process under load, beside a no-op echo on
//! stock tonic in another process, in one run.
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

#[path = "load/allocations.rs"]
mod allocations;
#[path = "load/calls.rs"]
mod calls;
#[path = "load/client.rs"]
mod client;
#[path = "load/echo.rs"]
mod echo;
#[path = "../tests/support/figures.rs"]
mod figures;
#[path = "load/group.rs"]
mod group;
#[path = "load/process.rs"]
mod process;
#[path = "load/round.rs"]
mod round;
#[path = "load/shares.rs"]
mod shares;
#[path = "load/sidecar.rs"]
mod sidecar;
#[path = "load/stage.rs"]
mod stage;

use std::env;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::time::Duration;

use client::Shape;
use group::Group;
use group::HEADING;
use group::Servers;
use process::Process;
use process::Trail;
use stage::Stage;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(ECHO) => {
            echo::serve(Path::new(&arguments[1]));
            return ExitCode::SUCCESS;
        }
        Some(allocations::SERVE) => return allocations::serve(),
        Some(shares::SERVE) => return shares::serve(&arguments[1], Path::new(&arguments[2])),
        Some(_) | None => {}
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|one| *one != "--bench").collect();
    let known = || PARTS.into_iter().chain(GROUPS.map(|(label, ..)| label));
    if let Some(unknown) = wanted
        .iter()
        .find(|one| !known().any(|known| known == **one))
    {
        let known: Vec<&str> = known().collect();
        eprintln!("{unknown} is none of {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|one| *one == part);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let figures = runtime.block_on(measure(wants));

    let past: Vec<String> = BOUNDS
        .iter()
        .filter_map(|(name, bound)| {
            let (_, value) = figures.iter().find(|(figure, _)| figure == name)?;
            (value > bound).then(|| format!("{name} is {value:.3}, {bound} is the bound"))
        })
        .collect();
    // Leaked: a name is to be static, and the process ends soon.
    let figures = figures
        .into_iter()
        .map(|(name, value)| (&*name.leak(), value));
    figures::record("load", figures);
    match past.as_slice() {
        [] => ExitCode::SUCCESS,
        past => {
            eprintln!("{}", past.join("\n"));
            ExitCode::FAILURE
        }
    }
}

async fn measure(wants: impl Fn(&str) -> bool) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    let groups: Vec<_> = GROUPS
        .into_iter()
        .filter(|(label, ..)| wants(label))
        .collect();
    if !groups.is_empty() {
        figures.extend(press(groups).await);
    }
    if wants(ALLOCATIONS) {
        let [encrypt, decrypt] = allocations::measure(1 << 10, round::span(USUAL_SPAN)).await;
        println!("allocations a call of 1024 bytes: Encrypt {encrypt:.1}, Decrypt {decrypt:.1}");
        figures.push(("allocations_encrypt_1024".to_owned(), encrypt));
        figures.push(("allocations_decrypt_1024".to_owned(), decrypt));
    }
    if wants(SHARES) {
        for (figure, share) in shares::measure(1 << 10, round::span(USUAL_SPAN)).await {
            println!("{figure}: {share:.3} of the echo");
            figures.push((figure.to_owned(), share));
        }
    }
    if wants(SIDECAR) {
        let found = sidecar::measure().await;
        let (memory, start) = (found.idle_rss_mib, found.start_ms);
        println!("a sidecar: {memory:.1} MiB when idle, {start:.1} ms to its first answer");
        figures.push(("idle_rss_mib".to_owned(), memory));
        figures.push(("start_ms".to_owned(), start));
    }
    figures
}

/// Measures `groups` round by round, in turn.
async fn press(groups: Vec<(&str, usize, Shape)>) -> Vec<(String, f64)> {
    let stage = Stage::set();
    let mut echo = Command::new(env::current_exe().unwrap());
    let mut broker = Command::new(env!("CARGO_BIN_EXE_keybroker"));
    let servers = Servers {
        echo: Process::start(echo.arg(ECHO).arg(stage.folder())),
        broker: Process::start(broker.args(["serve", "--config"]).arg(stage.config())),
    };
    let mut calls = 0;
    let mut columns = Vec::new();
    for (label, size, shape) in groups {
        columns.push(Group::new(label, size, shape, &servers, &stage).await);
        calls += 2;
    }
    for group in &mut columns {
        calls += group.measure(&servers, WARM_UP).await;
        group.forget();
    }
    let span = round::span(USUAL_SPAN);
    let mut trail = Trail::new(stage.audit());
    for _ in 0..ROUNDS {
        for group in &mut columns {
            calls += group.measure(&servers, span).await;
            trail.drain();
        }
    }
    assert_eq!(trail.records, calls, "one audit record a call");

    println!("{HEADING}");
    let mut figures: Vec<_> = columns.iter().flat_map(Group::report).collect();
    println!("{} KMS calls for {calls} calls", trail.kms_calls);
    figures.push(("kms_calls".to_owned(), trail.kms_calls as f64));
    figures
}

/// The argument that makes this binary the echo server.
const ECHO: &str = "serve-echo";
/// What stands side by side: what follows the call in the names of figures, bytes, and the shape.
const GROUPS: [(&str, usize, Shape); 5] = [
    ("64", 64, Shape::USUAL),
    ("1024", 1 << 10, Shape::USUAL),
    ("16384", 16 << 10, Shape::USUAL),
    ("1024_wide", 1 << 10, Shape::WIDE),
    ("1024_single", 1 << 10, Shape::SINGLE),
];
/// What else there is to measure.
const PARTS: [&str; 3] = [ALLOCATIONS, SHARES, SIDECAR];
const ALLOCATIONS: &str = "allocations";
const SHARES: &str = "shares";
const SIDECAR: &str = "sidecar";
/// The most that these may be.
const BOUNDS: [(&str, f64); 7] = [
    ("audit_cpu_share", 0.12),
    ("telemetry_cpu_share", 0.06),
    ("encrypt_1024_cpu_ratio", 1.1),
    ("decrypt_1024_cpu_ratio", 1.1),
    ("encrypt_16384_cpu_ratio", 1.15),
    ("encrypt_1024_wide_cpu_ratio", 1.1),
    ("encrypt_1024_single_p50_ratio", 1.1),
];
const ROUNDS: usize = 5;
/// Fifteen measurements a round, five rounds: about two minutes.
const USUAL_SPAN: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(200);
