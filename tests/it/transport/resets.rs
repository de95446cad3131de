//! Calls that their client resets while they are under way.

use std::collections::HashMap;

use keybroker::grpc::pb;
use prost::Message as _;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::raw::ACK;
use super::raw::DATA;
use super::raw::ENCRYPT;
use super::raw::END_STREAM;
use super::raw::PING;
use super::raw::Raw;
use super::raw::all_room;
use super::raw::cancel;
use super::raw::frame;
use super::raw::open;
use super::raw::open_with;
use crate::harness::Broker;
use crate::harness::Identity;
use crate::harness::WEB;
use crate::harness::framed;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::dice::Dice;
use crate::support::scale::scaled;

/// Fewer than may be reset before they are looked at: more would cost the connection.
const AT_ONCE: u32 = 8;
const IN_FLIGHT: u32 = 64;
/// Of one connection, which HTTP/2 ends when too many of its streams were reset.
const ROUNDS: u32 = 80;

/// A connection that takes all answers.
async fn roomy(broker: &Broker, identity: &Identity) -> Raw<TlsStream<TcpStream>> {
    let mut raw = Raw::new(broker.tls(Some(identity)).await.unwrap()).await;
    raw.write(&all_room()).await.unwrap();
    raw
}

/// Sends a ping, and reads until it is answered: all before it has been read.
async fn settle(raw: &mut Raw<impl AsyncRead + AsyncWrite + Unpin>) {
    raw.write(&frame(PING, 0, 0, b"settled?")).await.unwrap();
    soon(async {
        loop {
            let next = raw.next().await.expect("the connection goes on");
            if (next.kind, next.flags) == (PING, ACK) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_reset_at_any_moment_leave_nothing_but_their_records() {
    let seed = 7;
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.in_flight = IN_FLIGHT as usize;
            setup.cache.waiters = 4 * u64::from(IN_FLIGHT);
        })
        .await;
    let mut honest = broker.caller(WEB).await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let web = broker.authority.client(WEB);
    let mut raw = roomy(&broker, &web).await;

    // Calls with a key that is not cached wait for KMS, and are still there when they are reset.
    let held = broker.kms.hold().await;
    let rounds: u32 = scaled(80, 10_000);
    let mut stream = 1;
    let mut sent = Vec::new();
    for round in 0..rounds {
        if round % ROUNDS == ROUNDS - 1 {
            raw = roomy(&broker, &web).await;
            stream = 1;
        }
        let mut waiting = Vec::new();
        for _ in 0..AT_ONCE {
            let kind = dice.below(5);
            let key = if kind == 4 {
                "keys/invoices"
            } else {
                "keys/orders"
            };
            let size = usize::try_from(dice.size(8 << 10)).unwrap();
            let body = framed(&encrypt(key, vec![7; size]).encode_to_vec());
            let id = format!("call-{round}-{stream}");
            let head = open_with(stream, ENCRYPT, &[("x-request-id", &id)]);
            let half = usize::try_from(dice.below(body.len() as u64)).unwrap();
            let (first, rest) = body.split_at(half);
            let data = [
                frame(DATA, 0, stream, first),
                frame(DATA, END_STREAM, stream, rest),
            ];
            // Before the body, in the middle of it, at once after it, while it is answered, or
            // while it waits.
            let pieces = match kind {
                0 => vec![[head, cancel(stream)].concat()],
                1 => vec![[head, data[0].clone()].concat(), cancel(stream)],
                2 => vec![[head, data.concat(), cancel(stream)].concat()],
                3 => vec![[head, data.concat()].concat(), cancel(stream)],
                _ => {
                    waiting.extend(cancel(stream));
                    vec![[head, data.concat()].concat()]
                }
            };
            for piece in pieces {
                raw.write(&piece).await.unwrap();
                for _ in 0..dice.below(4) {
                    tokio::task::yield_now().await;
                }
            }
            sent.push(id);
            stream += 2;
        }
        settle(&mut raw).await;
        raw.write(&waiting).await.unwrap();
        if round % 10 == 0 {
            honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        }
    }

    let others = 1 + rounds.div_ceil(10);
    broker.trail.reached(sent.len() + others as usize).await;
    // As many places as ever, on this very connection, and not one more.
    let last: Vec<u32> = (0..IN_FLIGHT).map(|n| stream + 2 * n).collect();
    let waiting = broker.kms_calls();
    let in_table = |table: u32| {
        let mut request = encrypt("keys/invoices", "x");
        request.encryption_context = [("table".to_owned(), table.to_string())].into();
        request
    };
    for stream in &last {
        let body = framed(&in_table(*stream).encode_to_vec());
        let end = frame(DATA, END_STREAM, *stream, &body);
        raw.write(&[open(*stream, ENCRYPT), end].concat())
            .await
            .unwrap();
    }
    broker.kms.reached(waiting + last.len()).await;
    let refused = honest.encrypt(in_table(0)).await;
    assert_eq!(reason(refused), "OVERLOADED");
    drop(held);
    let answers = raw.answers(last.len()).await;
    for stream in &last {
        answers[stream].message::<pb::EncryptResponse>();
    }

    let mut records: HashMap<String, usize> = HashMap::new();
    for record in broker.records() {
        if let Some(id) = record["requestID"].as_str() {
            *records.entry(id.to_owned()).or_default() += 1;
        }
    }
    for id in &sent {
        assert_eq!(records.get(id), Some(&1), "{id}");
    }
}
