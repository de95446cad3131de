//! No wake-up is lost: requests in ragged pieces over several connections, all answered.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::task::JoinSet;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Connection;
use crate::harness::WEB;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::support::dice::Dice;
use crate::support::scale::scaled;

const CONNECTIONS: u64 = 4;
const CALLERS: u64 = 24;
const LARGEST: u64 = 64 << 10;

/// A stream that takes and gives as much at a time as chance has it, now and then nothing.
struct Ragged<IO> {
    io: IO,
    dice: Dice,
}

impl<IO> Ragged<IO> {
    /// How much now; nothing: in another turn, which comes by itself.
    fn some(&mut self, cx: &Context<'_>) -> Option<usize> {
        match self.dice.below(4) {
            0 => {
                cx.waker().wake_by_ref();
                None
            }
            _ => Some(usize::try_from(self.dice.size(LARGEST)).unwrap()),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Ragged<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(most) = self.some(cx) else {
            return Poll::Pending;
        };
        let mut part = vec![0; most.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut part);
        let read = Pin::new(&mut self.io).poll_read(cx, &mut part);
        buf.put_slice(part.filled());
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Ragged<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(most) = self.some(cx) else {
            return Poll::Pending;
        };
        let some = &bytes[..most.min(bytes.len())];
        Pin::new(&mut self.io).poll_write(cx, some)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Encrypts, and decrypts what it got, until there is nothing left to do.
async fn work(mut client: Client, mut dice: Dice, left: Arc<AtomicUsize>) {
    let take = |left: usize| left.checked_sub(2);
    while left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
    {
        for _ in 0..dice.below(8) {
            tokio::task::yield_now().await;
        }
        let size = usize::try_from(dice.size(LARGEST)).unwrap();
        let byte = u8::try_from(dice.below(256)).unwrap();
        let plaintext = Bytes::from(vec![byte; size]);
        let request = encrypt("keys/orders", plaintext.clone());
        let sealed = client.encrypt(request).await.unwrap().into_inner();
        let opened = client.decrypt(decrypt(&sealed.ciphertext)).await.unwrap();
        assert!(opened.into_inner().plaintext == plaintext, "{size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_many_in_ragged_pieces_is_answered() {
    let calls: usize = scaled(20_000, 1_000_000);
    let patience = Duration::from_secs(scaled(300, 7_200));
    let seed = 11;
    println!("seed {seed}");
    let broker = Broker::start().await;
    broker.trail.forget();
    let left = Arc::new(AtomicUsize::new(calls));
    let mut workers = JoinSet::new();
    let web = broker.authority.client(WEB);
    for n in 0..CONNECTIONS {
        let ragged = Ragged {
            io: broker.tls(Some(&web)).await.unwrap(),
            dice: Dice::new(seed + n),
        };
        let connection = Connection::new(ragged).await.unwrap();
        for m in 0..CALLERS {
            let dice = Dice::new(seed + 1_000 * (n + 1) + m);
            workers.spawn(work(connection.client(), dice, Arc::clone(&left)));
        }
    }
    let mut finished = 0;
    let all = async {
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
            finished += 1;
        }
    };
    if tokio::time::timeout(patience, all).await.is_err() {
        let answered = broker.trail.count();
        panic!(
            "hangs after {answered} of {calls} answers: {} of {} callers wait",
            CONNECTIONS * CALLERS - finished,
            CONNECTIONS * CALLERS
        );
    }
    broker.trail.reached(calls).await;
    assert_eq!(broker.trail.count(), calls);
}
