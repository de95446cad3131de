//! A large plaintext through a real server process, and what that takes of its memory.

use std::env;
use std::fs;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future;
use futures_util::stream;
use keybroker::grpc::MAX_MESSAGE;
use keybroker::grpc::pb;
use keybroker::grpc::pb::decrypt_stream_request;
use keybroker::grpc::pb::decrypt_stream_response;
use keybroker::grpc::pb::encrypt_stream_request;
use keybroker::grpc::pb::encrypt_stream_response;
use keybroker::grpc::pb::key_broker_service_client::KeyBrokerServiceClient;
use tonic::transport::Channel;

use crate::client;
use crate::process::Process;
use crate::stage::Stage;

/// How a server did.
pub struct Wire {
    /// The most memory that it had in the end, over what it had after warming up.
    pub rss_growth_mib: f64,
    /// Of plaintext, through EncryptStream.
    pub sealed_mib_per_second: f64,
    /// Of plaintext, through EncryptStream and from there through DecryptStream.
    pub both_mib_per_second: f64,
}

type Client = KeyBrokerServiceClient<Channel>;

pub async fn measure() -> Wire {
    let stage = Stage::set();
    let server = Process::start(
        Command::new(env!("CARGO_BIN_EXE_keybroker"))
            .args(["serve", "--config"])
            .arg(stage.config()),
    );
    let endpoint = client::endpoint(server.address(), stage.folder());
    let channel = endpoint.connect().await.unwrap();
    let mut client = Client::new(channel).max_decoding_message_size(MAX_MESSAGE);

    seal(&mut client, WARM_UP_MIB).await;
    both(&mut client, WARM_UP_MIB).await;
    let before = status(&server, "VmRSS:");
    let size = size_mib();
    let sealed_mib_per_second = rate(size, seal(&mut client, size)).await;
    let both_mib_per_second = rate(size, both(&mut client, size)).await;
    let growth = status(&server, "VmHWM:").saturating_sub(before);
    Wire {
        rss_growth_mib: growth as f64 / 1024.0,
        sealed_mib_per_second,
        both_mib_per_second,
    }
}

async fn rate(size: usize, run: impl Future<Output = ()>) -> f64 {
    let began = Instant::now();
    run.await;
    size as f64 / began.elapsed().as_secs_f64()
}

/// Encrypts so many MiB, and throws away what comes.
async fn seal(client: &mut Client, size: usize) {
    let mut sealed = sealed(client, size).await;
    let mut length = 0;
    while let Some(chunk) = sealed.next().await {
        length += chunk.len();
    }
    assert!(length > size << 20);
}

/// Encrypts so many MiB, and decrypts what comes at the same time.
async fn both(client: &mut Client, size: usize) {
    let sealed = sealed(client, size).await;
    let start = decrypt_stream_request::Part::Start(pb::DecryptStreamStart::default());
    let chunks = sealed.map(|ciphertext| {
        decrypt_stream_request::Part::Chunk(pb::DecryptStreamChunk {
            ciphertext,
            ciphertext_crc32c: None,
        })
    });
    let parts = stream::once(future::ready(start)).chain(chunks);
    let requests = parts.map(|part| pb::DecryptStreamRequest { part: Some(part) });
    let mut answers = client.decrypt_stream(requests).await.unwrap().into_inner();
    let mut length = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.part.unwrap() {
            decrypt_stream_response::Part::Start(_) => {}
            decrypt_stream_response::Part::Chunk(chunk) => length += chunk.plaintext.len(),
        }
    }
    assert_eq!(length, size << 20);
}

/// The ciphertext of so many MiB.
async fn sealed(
    client: &mut Client,
    size: usize,
) -> impl futures_util::Stream<Item = Bytes> + Send + Unpin + use<> {
    let start = pb::EncryptStreamStart {
        name: "keys/orders".into(),
        ..Default::default()
    };
    let start = encrypt_stream_request::Part::Start(start);
    let plaintext = Bytes::from(vec![0x5a; CHUNK]);
    let chunk = move |_| {
        encrypt_stream_request::Part::Chunk(pb::EncryptStreamChunk {
            plaintext: plaintext.clone(),
            plaintext_crc32c: None,
        })
    };
    let chunks = (0..(size << 20) / CHUNK).map(chunk);
    let parts = stream::iter(std::iter::once(start).chain(chunks));
    let requests = parts.map(|part| pb::EncryptStreamRequest { part: Some(part) });
    let answers = client.encrypt_stream(requests).await.unwrap().into_inner();
    let chunks = answers.filter_map(|answer| {
        future::ready(match answer.unwrap().part.unwrap() {
            encrypt_stream_response::Part::Start(_) => None,
            encrypt_stream_response::Part::Chunk(chunk) => Some(chunk.ciphertext),
        })
    });
    chunks.boxed()
}

/// A line of the server's `/proc/{pid}/status`, in KiB.
fn status(server: &Process, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

/// How much is sent.
fn size_mib() -> usize {
    match env::var("KEYBROKER_BENCH_MIB") {
        Ok(size) => size.parse().expect("a number of MiB"),
        Err(_) => USUAL_MIB,
    }
}

const USUAL_MIB: usize = 1024;
const WARM_UP_MIB: usize = 64;
/// Bytes in a request.
const CHUNK: usize = 256 << 10;
