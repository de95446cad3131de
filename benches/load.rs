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

#[path = "load/calls.rs"]
mod calls;
#[path = "load/client.rs"]
mod client;
#[path = "load/echo.rs"]
mod echo;
#[path = "../tests/support/figures.rs"]
mod figures;
#[path = "load/process.rs"]
mod process;
#[path = "load/stage.rs"]
mod stage;

use std::env;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::time::Duration;

use prost::Message as _;

use client::Call;
use client::Client;
use echo::Payload;
use process::Process;
use process::Trail;
use stage::Stage;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [mode, folder] = arguments.as_slice()
        && mode == ECHO
    {
        echo::serve(Path::new(folder));
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run())
}

async fn run() -> ExitCode {
    let stage = Stage::set();
    let echo = Process::start(
        Command::new(env::current_exe().unwrap())
            .arg(ECHO)
            .arg(stage.folder()),
    );
    let broker = Process::start(
        Command::new(env!("CARGO_BIN_EXE_keybroker"))
            .args(["serve", "--config"])
            .arg(stage.config()),
    );
    let to_echo = Client::connect(echo.address(), stage.folder()).await;
    let to_broker = Client::connect(broker.address(), stage.folder()).await;

    let mut pairs = Vec::new();
    let mut calls = 0;
    for size in SIZES {
        let (encrypt, decrypt) = calls::of(&to_broker, size).await;
        calls += 2;
        pairs.push((size, echo_of(size), encrypt, decrypt));
    }
    let mut trail = Trail::new(stage.audit());
    let mut columns: Vec<Column<'_>> = pairs
        .iter()
        .flat_map(|(size, echo_call, encrypt, decrypt)| {
            [
                Column::new("echo", *size, &echo, &to_echo, echo_call),
                Column::new("encrypt", *size, &broker, &to_broker, encrypt),
                Column::new("decrypt", *size, &broker, &to_broker, decrypt),
            ]
        })
        .collect();
    for column in &mut columns {
        calls += column.measure(WARM_UP).await;
        column.rounds.clear();
    }
    let span = span();
    for _ in 0..ROUNDS {
        for column in &mut columns {
            calls += column.measure(span).await;
            trail.drain();
        }
    }
    assert_eq!(trail.records, calls, "one audit record a call");
    report(&columns, trail.kms_calls, calls)
}

/// One kind of call with one size of payload, measured once a round.
struct Column<'a> {
    name: &'static str,
    size: usize,
    server: &'a Process,
    client: &'a Client,
    call: &'a Call,
    rounds: Vec<Round>,
}

struct Round {
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

impl<'a> Column<'a> {
    fn new(
        name: &'static str,
        size: usize,
        server: &'a Process,
        client: &'a Client,
        call: &'a Call,
    ) -> Self {
        Self {
            name,
            size,
            server,
            client,
            call,
            rounds: Vec::new(),
        }
    }

    /// Measures one round and returns how many calls the broker served in it.
    async fn measure(&mut self, span: Duration) -> usize {
        let before = self.server.cpu();
        let stood = self.client.press(self.call, span).await;
        let cpu = self.server.cpu() - before;
        self.rounds.push(Round {
            rps: stood.rate(),
            p50_us: stood.percentile(50),
            p99_us: stood.percentile(99),
            cpu_us: cpu.as_secs_f64() * 1e6 / stood.calls() as f64,
        });
        match self.name {
            "echo" => 0,
            _ => stood.calls(),
        }
    }

    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }

    /// The CPU time of a call over that of an echo, round by round.
    fn ratio(&self, echo: &Self) -> f64 {
        let rounds = self.rounds.iter().zip(&echo.rounds);
        median(rounds.map(|(own, echo)| own.cpu_us / echo.cpu_us))
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints the table, leaves the figures, and says whether they are within the bound.
fn report(columns: &[Column<'_>], kms_calls: usize, calls: usize) -> ExitCode {
    let mut figures = vec![("kms_calls", kms_calls as f64)];
    let mut excess = Vec::new();
    println!("  bytes call     calls/s    p50 µs    p99 µs    CPU µs   × echo");
    for column in columns {
        let (name, size) = (column.name, column.size);
        let rps = column.median(|round| round.rps);
        let p50 = column.median(|round| round.p50_us);
        let p99 = column.median(|round| round.p99_us);
        let cpu = column.median(|round| round.cpu_us);
        let echo = columns
            .iter()
            .find(|one| one.name == "echo" && one.size == size);
        let ratio = column.ratio(echo.unwrap());
        println!("{size:7} {name:8} {rps:7.0} {p50:9.0} {p99:9.0} {cpu:9.2} {ratio:8.3}");
        for (figure, value) in [
            ("rps", rps),
            ("p50_us", p50),
            ("p99_us", p99),
            ("cpu_us", cpu),
            ("cpu_ratio", ratio),
        ] {
            if (name, figure) != ("echo", "cpu_ratio") {
                // Leaked: a name is to be static, and the process ends soon.
                figures.push((format!("{name}_{size}_{figure}").leak(), value));
            }
        }
        if size == 1024 && ratio > RATIO_BOUND {
            excess.push(format!(
                "{name} of {size} bytes takes {ratio:.2} times the CPU of an echo, \
                 {RATIO_BOUND} is the bound"
            ));
        }
    }
    println!("{kms_calls} KMS calls for {calls} calls");
    figures::record("load", figures);
    match excess.as_slice() {
        [] => ExitCode::SUCCESS,
        excess => {
            eprintln!("{}", excess.join("; "));
            ExitCode::FAILURE
        }
    }
}

fn echo_of(size: usize) -> Call {
    let data = vec![0x5a; size].into();
    Call {
        path: echo::PATH,
        message: Payload { data }.encode_to_vec().into(),
    }
}

/// How long one measurement takes.
fn span() -> Duration {
    match env::var("KEYBROKER_BENCH_SECONDS") {
        Ok(seconds) => Duration::from_secs_f64(seconds.parse().expect("a number of seconds")),
        Err(_) => USUAL_SPAN,
    }
}

/// The argument that makes this binary the echo server.
const ECHO: &str = "serve-echo";
const SIZES: [usize; 3] = [64, 1 << 10, 16 << 10];
/// The most that an Encrypt or Decrypt of 1 KiB may cost, in echoes.
const RATIO_BOUND: f64 = 2.0;
const ROUNDS: usize = 5;
/// Nine measurements a round, five rounds: about 70 seconds.
const USUAL_SPAN: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(200);
