//! What it takes to write a million records, linked and signed, into a file, and to prove them whole.
#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::disallowed_methods, // a benchmark times itself
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub
)]

#[path = "../tests/support/figures.rs"]
mod figures;
#[path = "audit/record.rs"]
mod record;

use std::env;
use std::future::poll_fn;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use keybroker::audit;
use keybroker::audit::Audit;
use keybroker::audit::Sink;
use keybroker::audit::verify;
use keybroker::audit::verify::Known;
use keybroker::audit::verify::Verdict;
use keybroker::clock::System;
use keybroker::metrics::Metrics;

fn main() -> ExitCode {
    if !env::args().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let config = audit::Config {
        file: Some(path.clone()),
        ..audit::Config::default()
    };
    let sink = Sink::open(&config, None, Metrics::unread()).unwrap();
    let trail = Audit::new(sink, Arc::new(System));
    let note = record::record();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let began = Instant::now();
    for _ in 0..RECORDS / TURN {
        let calls = (0..TURN).map(|_| {
            let entry = trail.begin();
            entry.notes().add(|record| *record = note());
            entry.finish_gathered()
        });
        let calls: FuturesUnordered<_> = calls.collect();
        let mut all = pin!(calls.map(Result::unwrap).count());
        runtime.block_on(poll_fn(|cx| {
            let polled = all.as_mut().poll(cx);
            trail.flush();
            polled
        }));
    }
    let micros = began.elapsed().as_secs_f64() * 1e6 / RECORDS as f64;
    drop(trail);

    let began = Instant::now();
    let report = verify::files(&[path], Known::default()).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(report.verdict, Verdict::Whole);
    assert!(report.records > RECORDS as u64, "{report:?}");
    println!("{micros:.2} us to write a record; {seconds:.2} s to prove {RECORDS}");
    figures::record(
        "audit",
        [
            ("record_micros", micros),
            ("verify_million_seconds", seconds),
        ],
    );
    match seconds <= BOUND {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

const RECORDS: usize = 1_000_000;
/// Calls that end in one turn of a connection.
const TURN: usize = 16;
/// Longest time for the proof, in seconds.
const BOUND: f64 = 5.0;
