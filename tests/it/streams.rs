//! Messages of any length, through EncryptStream and DecryptStream.

mod bounds;
mod messages;
mod records;
mod rights;

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use keybroker::grpc::pb;
use keybroker::grpc::pb::decrypt_stream_request;
use keybroker::grpc::pb::decrypt_stream_response;
use keybroker::grpc::pb::encrypt_stream_request;
use keybroker::grpc::pb::encrypt_stream_response;
use tokio::sync::mpsc;
use tonic::Request;
use tonic::Status;
use tonic::Streaming;

use crate::harness::Client;
use crate::harness::rpcs::decrypt_parts;
use crate::harness::rpcs::encrypt_parts;
use crate::harness::rpcs::encrypt_start;
use crate::harness::soon;

/// What came of a stream: its start, all bytes, and how it ended.
pub struct Outcome<S> {
    start: Option<S>,
    bytes: Vec<u8>,
    /// The lengths of its chunks.
    chunks: Vec<usize>,
    pub ended: Result<(), Status>,
}

impl<S> Outcome<S> {
    fn refused(status: Status) -> Self {
        Self {
            start: None,
            bytes: Vec::new(),
            chunks: Vec::new(),
            ended: Err(status),
        }
    }

    /// The bytes of a stream that must have ended well.
    pub fn whole(self) -> Vec<u8> {
        self.ended.unwrap();
        self.bytes
    }
}

/// A stream whose requests a test sends one by one.
pub struct Open<Q, P> {
    requests: Option<mpsc::Sender<Q>>,
    answers: Streaming<P>,
}

pub type Encrypting = Open<pb::EncryptStreamRequest, pb::EncryptStreamResponse>;
type Decrypting = Open<pb::DecryptStreamRequest, pb::DecryptStreamResponse>;

fn requests<Q: Send + 'static>() -> (
    mpsc::Sender<Q>,
    impl futures_util::Stream<Item = Q> + Send + 'static,
) {
    let (sender, receiver) = mpsc::channel(1);
    let requests = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Q>| {
        let request = receiver.recv().await?;
        Some((request, receiver))
    });
    (sender, Box::pin(requests))
}

impl Encrypting {
    pub async fn begin(client: &mut Client, start: pb::EncryptStreamStart) -> Result<Self, Status> {
        Self::begin_within(client, start, None).await
    }

    async fn begin_within(
        client: &mut Client,
        start: pb::EncryptStreamStart,
        timeout: Option<Duration>,
    ) -> Result<Self, Status> {
        let (sender, requests) = requests();
        for request in encrypt_parts(start, []) {
            sender.send(request).await.unwrap();
        }
        let mut request = Request::new(requests);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let answers = soon(client.encrypt_stream(request)).await?.into_inner();
        Ok(Self {
            requests: Some(sender),
            answers,
        })
    }

    /// Sends a chunk, if the broker still takes any.
    pub async fn send(&self, plaintext: impl Into<Bytes>) -> bool {
        let chunk = pb::EncryptStreamChunk {
            plaintext: plaintext.into(),
            plaintext_crc32c: None,
        };
        let request = pb::EncryptStreamRequest {
            part: Some(encrypt_stream_request::Part::Chunk(chunk)),
        };
        let requests = self.requests.as_ref().unwrap();
        soon(requests.send(request)).await.is_ok()
    }

    /// The rest of the answers; the requests end, if they have not.
    async fn finish(mut self) -> Outcome<pb::EncryptStreamStarted> {
        self.requests = None;
        self.rest().await
    }

    /// The rest of the answers, while the requests stay open.
    pub async fn rest(&mut self) -> Outcome<pb::EncryptStreamStarted> {
        use encrypt_stream_response::Part;
        collected(&mut self.answers, |answer| match answer.part.unwrap() {
            Part::Start(start) => Ok(start),
            Part::Chunk(chunk) => Err((chunk.ciphertext, chunk.ciphertext_crc32c)),
        })
        .await
    }
}

impl Decrypting {
    async fn begin(
        client: &mut Client,
        start: pb::DecryptStreamStart,
        first: Bytes,
    ) -> Result<Self, Status> {
        let (sender, requests) = requests();
        let parts = decrypt_parts(start, [first]);
        let feeding = sender.clone();
        tokio::spawn(async move {
            for request in parts {
                // Err: refused before it was read.
                let _ = feeding.send(request).await;
            }
        });
        let answers = soon(client.decrypt_stream(requests)).await?.into_inner();
        Ok(Self {
            requests: Some(sender),
            answers,
        })
    }

    async fn send(&self, ciphertext: impl Into<Bytes>) -> bool {
        let chunk = pb::DecryptStreamChunk {
            ciphertext: ciphertext.into(),
            ciphertext_crc32c: None,
        };
        let request = pb::DecryptStreamRequest {
            part: Some(decrypt_stream_request::Part::Chunk(chunk)),
        };
        let requests = self.requests.as_ref().unwrap();
        soon(requests.send(request)).await.is_ok()
    }

    async fn finish(mut self) -> Outcome<pb::DecryptStreamStarted> {
        self.requests = None;
        self.rest().await
    }

    async fn rest(&mut self) -> Outcome<pb::DecryptStreamStarted> {
        use decrypt_stream_response::Part;
        collected(&mut self.answers, |answer| match answer.part.unwrap() {
            Part::Start(start) => Ok(start),
            Part::Chunk(chunk) => Err((chunk.plaintext, chunk.plaintext_crc32c)),
        })
        .await
    }
}

async fn collected<P, S>(
    answers: &mut Streaming<P>,
    part: impl Fn(P) -> Result<S, (Bytes, u32)>,
) -> Outcome<S> {
    let mut outcome = Outcome {
        start: None,
        bytes: Vec::new(),
        chunks: Vec::new(),
        ended: Ok(()),
    };
    loop {
        match soon(answers.message()).await {
            Ok(Some(answer)) => match part(answer) {
                Ok(start) => {
                    assert!(outcome.start.replace(start).is_none(), "one start");
                    assert!(outcome.chunks.is_empty(), "the start comes first");
                }
                Err((bytes, sum)) => {
                    assert_eq!(sum, crc32c::crc32c(&bytes));
                    outcome.chunks.push(bytes.len());
                    outcome.bytes.extend_from_slice(&bytes);
                }
            },
            Ok(None) => return outcome,
            Err(status) => {
                outcome.ended = Err(status);
                return outcome;
            }
        }
    }
}

/// Encrypts `plaintext` in chunks of `length`.
pub async fn encrypt_whole(
    client: &mut Client,
    start: pb::EncryptStreamStart,
    plaintext: &Bytes,
    length: usize,
) -> Outcome<pb::EncryptStreamStarted> {
    let parts = encrypt_parts(start, cut(plaintext, length));
    match soon(client.encrypt_stream(stream::iter(parts))).await {
        Ok(answers) => {
            let open = Encrypting {
                requests: None,
                answers: answers.into_inner(),
            };
            open.finish().await
        }
        Err(status) => Outcome::refused(status),
    }
}

/// Decrypts `ciphertext` in chunks of `length`.
pub async fn decrypt_whole(
    client: &mut Client,
    start: pb::DecryptStreamStart,
    ciphertext: &Bytes,
    length: usize,
) -> Outcome<pb::DecryptStreamStarted> {
    let parts = decrypt_parts(start, cut(ciphertext, length));
    match soon(client.decrypt_stream(stream::iter(parts))).await {
        Ok(answers) => {
            let open = Decrypting {
                requests: None,
                answers: answers.into_inner(),
            };
            open.finish().await
        }
        Err(status) => Outcome::refused(status),
    }
}

/// `bytes` in chunks of `length`.
fn cut(bytes: &Bytes, length: usize) -> Vec<Bytes> {
    bytes
        .chunks(length)
        .map(|chunk| bytes.slice_ref(chunk))
        .collect()
}

/// Bytes that differ from their neighbors.
fn text(length: usize) -> Bytes {
    (0..=250).cycle().take(length).collect()
}

/// Under the key `orders`, with the length declared.
fn declared(length: u64) -> pb::EncryptStreamStart {
    pb::EncryptStreamStart {
        plaintext_length: Some(length),
        ..encrypt_start("keys/orders")
    }
}
