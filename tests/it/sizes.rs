//! Round trips at every size where something in between may count wrongly: frames of messages,
//! HTTP/2 and TLS, buffers, and windows.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use prost::Message as _;
use tokio::net::UnixStream;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Connection;
use crate::harness::WEB;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::support::scale::scaled;

/// The most interesting ones, for clients of others.
pub const SHORT: [usize; 21] = [
    1, 4_095, 4_096, 4_097, 8_191, 8_192, 8_193, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537,
    131_072, 262_144, 409_599, 409_600, 409_601, 524_288, 1_048_575, 1_048_576,
];

const LIMIT: usize = 1 << 20;

/// Multiples of a frame of messages, among them buffers (8 and 64 KiB) and the longest frames of
/// TLS and HTTP/2 (16 KiB); windows and HTTP/2's own buffer beyond.
fn boundaries() -> impl Iterator<Item = usize> {
    let windows = [128 << 10, 256 << 10, 400 << 10, 512 << 10, LIMIT];
    (1..=16).map(|frames| frames * 4096).chain(windows)
}

/// Encrypts and decrypts so many bytes; the lengths of requests and answers with their prefixes.
async fn round_trip(client: &mut Client, size: usize) -> [usize; 4] {
    let plaintext: Bytes = (0..size).map(|n| (n % 251) as u8).collect();
    let request = encrypt("keys/orders", plaintext.clone());
    let asked = request.encoded_len();
    let sealed = client.encrypt(request).await.unwrap().into_inner();
    let request = decrypt(&sealed.ciphertext);
    let asked_back = request.encoded_len();
    let opened = client.decrypt(request).await.unwrap().into_inner();
    assert!(opened.plaintext == plaintext, "{size} bytes");
    let lengths = [
        asked,
        sealed.encoded_len(),
        asked_back,
        opened.encoded_len(),
    ];
    lengths.map(|length| length + 5)
}

async fn at_every_boundary(client: &mut Client) {
    let mut sizes = BTreeSet::from([1, 2]);
    for boundary in boundaries() {
        sizes.extend(boundary - 1..=boundary + 1);
        // Messages of just that length: what they add differs a little with the size itself.
        for length in round_trip(client, boundary).await {
            let size = 2 * boundary - length;
            sizes.extend(size - 2..=size + 2);
        }
    }
    // What headers and frames add before a buffer is full, by chance.
    for boundary in [8 << 10, 16 << 10, 64 << 10] {
        sizes.extend((boundary - 700..boundary).step_by(scaled(13, 1)));
    }
    for size in sizes.into_iter().filter(|size| *size <= LIMIT) {
        round_trip(client, size).await;
    }
}

#[tokio::test]
async fn messages_at_every_boundary_come_back_over_tls() {
    let broker = Broker::start().await;
    at_every_boundary(&mut broker.caller(WEB).await).await;
}

#[tokio::test]
async fn messages_at_every_boundary_come_back_over_a_unix_socket() {
    let mut socket = PathBuf::new();
    let _broker = Broker::start().with(|setup| socket = setup.local()).await;
    let stream = UnixStream::connect(socket).await.unwrap();
    let connection = Connection::new(stream).await.unwrap();
    at_every_boundary(&mut connection.client()).await;
}
