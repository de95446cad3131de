//! A stream whose peer must keep pace: the HTTP/2 preface with the first SETTINGS, and every frame
//! or header block once begun, must arrive whole within a time, and some of what waits to be sent
//! must get through within another.
//!
//! hyper has no such deadlines, not even with keepalive: a peer that stops in the middle of a frame
//! would hold its connection for ever, and so would one that reads nothing, not even the GOAWAY
//! that its silence earns it. A peer that is merely silent between frames is idle, which is the
//! driver's matter.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Sleep;

use crate::grpc::driver::busy::Socket;

/// Wraps a decrypted stream.
pub(super) struct Paced<IO> {
    io: IO,
    frames: Frames,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<IO> Paced<IO> {
    /// A stream that gives up when something begun is not whole after `limit`, or when the peer
    /// takes nothing for as long as `stall`.
    pub(super) fn new(io: IO, limit: Duration, stall: Duration) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(limit)));
        Self {
            io,
            frames: Frames::default(),
            limit,
            deadline,
            stall,
            stalled: None,
        }
    }

    /// `written`, or the end when there has been no progress for too long.
    fn progress(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.stall)));
        stalled
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<IO: Socket> Socket for Paced<IO> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.io.socket()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Paced<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let finished = this
                    .frames
                    .advance(buf.filled().get(before..).unwrap_or_default());
                if this.frames.between() {
                    this.deadline = None;
                } else if finished || this.deadline.is_none() {
                    this.deadline = Some(Box::pin(tokio::time::sleep(this.limit)));
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match &mut this.deadline {
                Some(deadline) => match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                },
                None => Poll::Pending,
            },
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Paced<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.progress(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Where in the sequence of frames the bytes read so far end (RFC 9113, sections 3.4, 4.1, 4.3).
struct Frames {
    /// The frame header's bytes read so far.
    header: [u8; HEADER],
    filled: usize,
    /// Bytes of the preface or of the frame's payload that are still to come.
    left: usize,
    /// The first frame, SETTINGS, belongs to the preface.
    preface: bool,
    /// Between HEADERS and END_HEADERS.
    block: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            header: [0; HEADER],
            filled: 0,
            left: PREFACE,
            preface: true,
            block: false,
        }
    }
}

impl Frames {
    /// Whether nothing is begun: the preface is in, and no frame or header block is open.
    fn between(&self) -> bool {
        !self.preface && !self.block && self.left == 0 && self.filled == 0
    }

    /// Takes the next bytes; whether something begun was finished by them.
    fn advance(&mut self, mut bytes: &[u8]) -> bool {
        let mut finished = false;
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if self.left > 0 || bytes.is_empty() {
                break;
            }
            let wanted = (HEADER - self.filled).min(bytes.len());
            let (taken, rest) = bytes.split_at(wanted);
            if let Some(target) = self.header.get_mut(self.filled..self.filled + wanted) {
                target.copy_from_slice(taken);
            }
            self.filled += wanted;
            bytes = rest;
            if self.filled == HEADER {
                finished |= self.begin();
            }
        }
        finished
    }

    /// Reads a whole frame header; whether the frame before it ended something.
    fn begin(&mut self) -> bool {
        let [a, b, c, kind, flags, ..] = self.header;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.filled = 0;
        self.preface = false;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block = flags & END_HEADERS == 0;
        }
        !self.block
    }
}

/// The length of `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`.
const PREFACE: usize = 24;
/// The length of a frame header.
const HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.extend(vec![0; usize::from(length)]);
        bytes
    }

    #[test]
    fn the_preface_is_whole_with_its_settings() {
        let mut frames = Frames::default();
        frames.advance(&[0; PREFACE]);
        assert!(!frames.between(), "SETTINGS are missing");
        frames.advance(&frame(4, 0, 6));
        assert!(frames.between());
    }

    #[test]
    fn a_frame_is_open_until_its_last_byte_however_it_is_cut() {
        let mut all = vec![0; PREFACE];
        all.extend(frame(4, 0, 6));
        all.extend(frame(0, 0, 20));
        for cut in 1..all.len() {
            let mut frames = Frames::default();
            frames.advance(&all[..cut]);
            assert_eq!(frames.between(), cut == PREFACE + 15, "cut at {cut}");
            frames.advance(&all[cut..]);
            assert!(frames.between(), "cut at {cut}");
        }
    }

    #[test]
    fn a_header_block_is_open_until_end_headers() {
        let mut frames = Frames::default();
        frames.advance(&[0; PREFACE]);
        frames.advance(&frame(4, 0, 0));
        frames.advance(&frame(HEADERS, 0, 3));
        assert!(!frames.between());
        frames.advance(&frame(CONTINUATION, 0, 3));
        assert!(!frames.between());
        frames.advance(&frame(CONTINUATION, END_HEADERS, 3));
        assert!(frames.between());
    }
}
