//! What streams cost: memory of the server, and the frame writer beside the AEAD that it uses.
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
#[path = "load/client.rs"]
mod client;
#[path = "../tests/support/figures.rs"]
mod figures;
#[allow(dead_code, reason = "the load benchmark uses the rest")]
#[path = "load/process.rs"]
mod process;
#[path = "load/stage.rs"]
mod stage;
#[path = "stream/wire.rs"]
mod wire;
#[path = "stream/writer.rs"]
mod writer;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    if !env::args().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let aead_ratio = writer::aead_ratio();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let wire = runtime.block_on(wire::measure());
    println!("aead_ratio                  {aead_ratio:8.2}  (bound {LEAST_AEAD_RATIO})");
    println!(
        "rss_growth_mib              {:8.2}  (bound {MOST_GROWTH_MIB})",
        wire.rss_growth_mib
    );
    println!(
        "stream_mib_per_second       {:8.0}",
        wire.sealed_mib_per_second
    );
    println!(
        "stream_both_mib_per_second  {:8.0}",
        wire.both_mib_per_second
    );
    figures::record(
        "stream",
        [
            ("aead_ratio", aead_ratio),
            ("rss_growth_mib", wire.rss_growth_mib),
            ("stream_mib_per_second", wire.sealed_mib_per_second),
            ("stream_both_mib_per_second", wire.both_mib_per_second),
        ],
    );
    match aead_ratio < LEAST_AEAD_RATIO || wire.rss_growth_mib > MOST_GROWTH_MIB {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// Of the AEAD's throughput, the frame writer keeps so much.
const LEAST_AEAD_RATIO: f64 = 0.6;
/// What a stream of 1 GiB may add to the server's memory.
const MOST_GROWTH_MIB: f64 = 16.0;
