//! What an item of a batch costs over a call of its own, in one run on one real server.
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

use keybroker::grpc::pb;
use keybroker::grpc::pb::decrypt_batch_result;
use keybroker::grpc::pb::encrypt_batch_result;
use prost::Message as _;

use client::Call;
use client::Client;
use client::Shape;
use process::Process;
use process::Trail;
use round::Round;
use round::median;
use round::span;
use stage::Stage;

fn main() -> ExitCode {
    if !env::args().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run())
}

async fn run() -> ExitCode {
    let stage = Stage::set();
    let server = Process::start(
        Command::new(env!("CARGO_BIN_EXE_keybroker"))
            .args(["serve", "--config"])
            .arg(stage.config()),
    );
    let client = Client::connect(server.address(), stage.folder(), Shape::USUAL).await;
    let few = Client::connect(server.address(), stage.folder(), FEW).await;
    let mut trail = Trail::new(stage.audit());
    let (encrypt, decrypt) = calls::of(&client, SIZE).await;
    let encrypts = encrypt_batch(&client, &encrypt).await;
    let decrypts = decrypt_batch(&client, &decrypt).await;

    let mut excess = Vec::new();
    println!("call      unary µs    item µs      ratio    deep µs      ratio");
    for (name, figure, deep_figure, bound, unary, batch) in [
        (
            "encrypt",
            "item_cpu_ratio",
            "deep_item_cpu_ratio",
            Some(RATIO_BOUND),
            &encrypt,
            &encrypts,
        ),
        (
            "decrypt",
            "decrypt_item_cpu_ratio",
            "deep_decrypt_item_cpu_ratio",
            None,
            &decrypt,
            &decrypts,
        ),
    ] {
        let ways = [
            (&client, unary, 1),
            (&few, batch, ITEMS),
            (&client, batch, ITEMS),
        ];
        let mut rounds = Vec::new();
        for round in 0..=ROUNDS {
            let mut cpu = [0.0; 3];
            // Who goes first changes: what one leaves behind must not weigh on another alone.
            for turn in 0..ways.len() {
                let way = (round + turn) % ways.len();
                let (client, call, items) = ways[way];
                let measured = Round::measure(&server, client, call, span(USUAL_SPAN)).await;
                cpu[way] = measured.cpu_us() / items as f64;
                trail.drain();
            }
            // The first is for warming up.
            if round > 0 {
                rounds.push(cpu);
            }
        }
        let [alone, item, deep] = [0, 1, 2].map(|way| median(rounds.iter().map(|cpu| cpu[way])));
        let [ratio, deep_ratio] =
            [1, 2].map(|way| median(rounds.iter().map(|cpu| cpu[way] / cpu[0])));
        println!("{name:8} {alone:9.2} {item:10.2} {ratio:10.3} {deep:10.2} {deep_ratio:10.3}");
        figures::record("batch", [(figure, ratio), (deep_figure, deep_ratio)]);
        let micros: &'static str = format!("{name}_item_cpu_us").leak();
        figures::record("batch", [(micros, item)]);
        if let Some(bound) = bound.filter(|bound| ratio > *bound) {
            excess.push(format!(
                "an item of a batch to {name} takes {ratio:.3} times the CPU of a call of its own, \
                 {bound} is the bound"
            ));
        }
    }
    match excess.as_slice() {
        [] => ExitCode::SUCCESS,
        excess => {
            eprintln!("{}", excess.join("; "));
            ExitCode::FAILURE
        }
    }
}

/// A batch of what `unary` asks for, which is checked once.
async fn encrypt_batch(client: &Client, unary: &Call) -> Call {
    let item = pb::EncryptRequest::decode(unary.message.clone()).unwrap();
    let items = vec![item; ITEMS];
    let call = Call {
        path: "/keybroker.v1.KeyBrokerService/EncryptBatch",
        message: pb::EncryptBatchRequest { items }.encode_to_vec().into(),
    };
    let answer = pb::EncryptBatchResponse::decode(client.call(&call).await).unwrap();
    let served = answer.results.into_iter().filter(|result| {
        let outcome = result.outcome.as_ref();
        matches!(outcome, Some(encrypt_batch_result::Outcome::Response(_)))
    });
    assert_eq!(served.count(), ITEMS);
    call
}

/// As [`encrypt_batch`], of messages that are all different.
async fn decrypt_batch(client: &Client, unary: &Call) -> Call {
    let item = pb::DecryptRequest::decode(unary.message.clone()).unwrap();
    let opened = pb::DecryptResponse::decode(client.call(unary).await).unwrap();
    let encrypt = pb::EncryptRequest {
        name: item.name.clone(),
        plaintext: opened.plaintext,
        encryption_context: item.encryption_context.clone(),
        ..Default::default()
    };
    let items = vec![encrypt; ITEMS];
    let seal = Call {
        path: "/keybroker.v1.KeyBrokerService/EncryptBatch",
        message: pb::EncryptBatchRequest { items }.encode_to_vec().into(),
    };
    let sealed = pb::EncryptBatchResponse::decode(client.call(&seal).await).unwrap();
    let items = sealed.results.into_iter().map(|result| {
        let Some(encrypt_batch_result::Outcome::Response(response)) = result.outcome else {
            panic!("every item is sealed");
        };
        pb::DecryptRequest {
            ciphertext: response.ciphertext,
            ..item.clone()
        }
    });
    let items = items.collect();
    let call = Call {
        path: "/keybroker.v1.KeyBrokerService/DecryptBatch",
        message: pb::DecryptBatchRequest { items }.encode_to_vec().into(),
    };
    let answer = pb::DecryptBatchResponse::decode(client.call(&call).await).unwrap();
    let served = answer.results.into_iter().filter(|result| {
        let outcome = result.outcome.as_ref();
        matches!(outcome, Some(decrypt_batch_result::Outcome::Response(_)))
    });
    assert_eq!(served.count(), ITEMS);
    call
}

/// As many connections as usual, and on each one batch after the other.
const FEW: Shape = Shape {
    connections: 4,
    in_flight: 1,
};
/// Bytes of plaintext.
const SIZE: usize = 1 << 10;
/// Items of a batch.
const ITEMS: usize = 100;
/// The most that an item may cost, in calls of its own.
const RATIO_BOUND: f64 = 0.2;
const ROUNDS: usize = 21;
/// Short, and often. Two calls, three ways, 21 rounds and one of warming up: about 70 seconds.
const USUAL_SPAN: Duration = Duration::from_millis(500);
