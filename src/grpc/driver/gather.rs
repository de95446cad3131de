//! One write for all that a connection has to say when it wakes up.
//!
//! h2 flushes after every DATA frame of 256 bytes and more, which is a TLS record and a system call
//! for each answer. Here what it writes gathers, and the connection's own task sends it at the end
//! of its turn. There are plaintexts in it, which are wiped as soon as they are sent.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use crate::crypto::Plaintext;
use crate::crypto::plaintext::wipe;

/// `io` in two halves: what hyper reads and writes, and what sends.
pub(super) fn gather<IO>(io: IO) -> (Gathered<IO>, Outlet<IO>) {
    let shared = Arc::new(Mutex::new(Shared {
        io,
        out: Plaintext::default(),
        sent: 0,
        unsent: false,
    }));
    (Gathered(Arc::clone(&shared)), Outlet(shared))
}

/// A stream whose flush does nothing. It holds [`FULL`] bytes and one write more, then it waits
/// for its reader.
pub(super) struct Gathered<IO>(Arc<Mutex<Shared<IO>>>);

/// Sends what gathers.
pub(super) struct Outlet<IO>(Arc<Mutex<Shared<IO>>>);

/// Both halves are polled by the connection's task alone, so the lock is never contended.
struct Shared<IO> {
    io: IO,
    out: Plaintext,
    /// How many bytes of `out` are sent: those are zeros, and so is what it holds beyond its length.
    sent: usize,
    /// Something was written since the last flush that came to its end.
    unsent: bool,
}

impl<IO: AsyncWrite + Unpin> Outlet<IO> {
    /// Sends what was written. Ready when nothing of it is left, or with the error that ends the
    /// connection.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_send(cx)
    }
}

impl<IO> Outlet<IO> {
    /// Lends what is sent through.
    pub(super) fn with(&self, look: impl FnOnce(&IO)) {
        look(&lock(&self.0).io);
    }
}

impl<IO: AsyncWrite + Unpin> Shared<IO> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unsent {
            return Poll::Ready(Ok(()));
        }
        while let Some(rest) = self
            .out
            .get_mut(self.sent..)
            .filter(|rest| !rest.is_empty())
        {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let (sent, _) = rest.split_at_mut(written);
            wipe(sent);
            self.sent += written;
        }
        // A connection with little to say keeps little memory; one that is busy would only have it
        // made anew, and grown step by step.
        if self.sent <= KEPT {
            self.out.shrink_to(KEPT);
        }
        self.sent = 0;
        self.out.clear();
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unsent = false;
        Poll::Ready(Ok(()))
    }

    /// Makes room for a write.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() < FULL {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(cx)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.0);
        ready!(shared.poll_room(cx))?;
        let length = slices.iter().map(|slice| slice.len()).sum();
        shared.out.reserve(length);
        for slice in slices {
            shared.out.extend_from_slice(slice);
        }
        shared.unsent = true;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        ready!(shared.poll_send(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

fn lock<IO>(shared: &Mutex<Shared<IO>>) -> MutexGuard<'_, Shared<IO>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reader that is so far behind makes h2 wait: what a TLS session buffers itself.
const FULL: usize = 64 << 10;
/// What a connection keeps between writes: a few answers.
const KEPT: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::future::poll_fn;
    use std::pin::pin;
    use tokio::io::AsyncReadExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::io::DuplexStream;
    use tokio::io::duplex;

    /// Counts how often it is written to.
    struct Counted(DuplexStream, Arc<Mutex<usize>>);

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            *self.1.lock().unwrap() += 1;
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// Runs `serving`, and sends what it wrote whenever it has been polled, until either ends.
    async fn run(outlet: Outlet<Counted>, serving: impl Future) {
        let mut serving = pin!(serving);
        poll_fn(|cx| {
            let served = serving.as_mut().poll(cx).map(drop);
            match outlet.poll_send(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(()),
                Poll::Ready(Ok(())) | Poll::Pending => served,
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_flushed_in_pieces_leaves_in_one_write() {
        let (near, mut far) = duplex(1 << 10);
        let writes = Arc::default();
        let (mut io, outlet) = gather(Counted(near, Arc::clone(&writes)));
        let serving = async move {
            for piece in [b"one ", b"two ", b"six."] {
                io.write_all(piece).await.unwrap();
                io.flush().await.unwrap();
            }
            pending::<()>().await
        };
        let server = tokio::spawn(run(outlet, serving));
        let mut heard = [0; 12];
        far.read_exact(&mut heard).await.unwrap();
        server.abort();
        assert_eq!(&heard, b"one two six.");
        assert_eq!(*writes.lock().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_writer_and_gets_every_byte() {
        let (near, mut far) = duplex(100);
        let (mut io, outlet) = gather(Counted(near, Arc::default()));
        let shared = Arc::clone(&outlet.0);
        let all: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0]).collect();
        let expected = all.clone();
        let server = tokio::spawn(run(outlet, async move {
            for piece in all.chunks(16 << 10) {
                io.write_all(piece).await.unwrap();
            }
            io.shutdown().await.unwrap();
        }));
        let mut heard = Vec::new();
        let mut some = [0; 4096];
        loop {
            let read = far.read(&mut some).await.unwrap();
            if read == 0 {
                break;
            }
            heard.extend_from_slice(&some[..read]);
            assert!(lock(&shared).out.len() <= FULL + (16 << 10));
        }
        server.await.unwrap();
        assert!(heard == expected, "{} bytes arrived", heard.len());
    }

    #[tokio::test]
    async fn what_is_sent_is_wiped_while_the_rest_waits() {
        let (near, mut far) = duplex(100);
        let (mut io, outlet) = gather(Counted(near, Arc::default()));
        io.write_all(&[7; 250]).await.unwrap();
        let mut heard = [0; 100];
        for sent in [100, 200] {
            let all = poll_fn(|cx| Poll::Ready(outlet.poll_send(cx))).await;
            assert!(all.is_pending());
            let kept = lock(&outlet.0).out.iter().position(|byte| *byte != 0);
            assert_eq!(kept, Some(sent));
            far.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, [7; 100]);
        }
    }

    #[tokio::test]
    async fn memory_for_much_is_given_back_when_there_is_little_to_say() {
        let (near, _far) = duplex(1 << 20);
        let (mut io, outlet) = gather(Counted(near, Arc::default()));
        let shared = Arc::clone(&outlet.0);
        let kept = || lock(&shared).out.capacity();
        run(outlet, async {
            for (length, enough) in [(FULL, FULL), (1, KEPT)] {
                io.write_all(&vec![7; length]).await.unwrap();
                // Another poll: what was written is sent.
                tokio::task::yield_now().await;
                assert!((length..=enough).contains(&kept()), "{} bytes", kept());
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_ends_the_connection() {
        let (near, far) = duplex(100);
        drop(far);
        let (mut io, outlet) = gather(Counted(near, Arc::default()));
        run(outlet, async move {
            io.write_all(b"anybody there?").await.unwrap();
            pending::<()>().await
        })
        .await;
    }
}
