//! One connection of a crowd: calls at a rate of its own, whether those before are answered or not,
//! made of bytes that are laid out once. What its client does shall cost next to nothing.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::harness::framed;
use crate::transport::raw;

/// A connection.
pub(super) struct Lane {
    io: TlsStream<TcpStream>,
    request: [Vec<u8>; 2],
    stream: u32,
    under_way: HashMap<u32, Call>,
    input: Vec<u8>,
}

struct Call {
    began: Instant,
    served: bool,
}

/// What became of calls.
#[derive(Default)]
pub(super) struct Fate {
    pub(super) served: Vec<Served>,
    /// When those that were refused came back.
    pub(super) refused: Vec<Instant>,
    /// Calls that were left out: as many were under way as may be.
    pub(super) unsent: usize,
}

pub(super) struct Served {
    pub(super) began: Instant,
    pub(super) took: Duration,
}

impl Fate {
    pub(super) fn add(&mut self, other: Self) {
        self.served.extend(other.served);
        self.refused.extend(other.refused);
        self.unsent += other.unsent;
    }

    /// How long those took that began between.
    pub(super) fn served_between(
        &self,
        from: Instant,
        to: Instant,
    ) -> impl Iterator<Item = Duration> {
        let served = self.served.iter();
        let between = served.filter(move |call| call.began >= from && call.began < to);
        between.map(|call| call.took)
    }
}

impl Lane {
    /// Calls `path` with `request` over `io`.
    pub(super) async fn new(
        mut io: TlsStream<TcpStream>,
        path: &str,
        request: &impl prost::Message,
    ) -> Self {
        let hello = [raw::PREFACE, &raw::all_room()].concat();
        io.write_all(&hello).await.unwrap();
        let body = framed(&request.encode_to_vec());
        Self {
            io,
            request: [
                raw::open(0, path),
                raw::frame(raw::DATA, raw::END_STREAM, 0, &body),
            ],
            stream: 1,
            under_way: HashMap::new(),
            input: Vec::new(),
        }
    }

    /// Makes a call every `pause` from `begin` to `end`, or leaves it out when `most` are under way.
    pub(super) async fn run(
        &mut self,
        pause: Duration,
        most: usize,
        begin: Instant,
        end: Instant,
    ) -> Fate {
        let mut fate = Fate::default();
        let mut next = begin;
        let mut input = vec![0; 16 << 10];
        while next < end {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    let mut due = 0;
                    while next <= Instant::now() && next < end {
                        next += pause;
                        due += 1;
                    }
                    self.send(due, most, &mut fate).await.unwrap();
                }
                read = self.io.read(&mut input) => {
                    self.take(&input[..read.unwrap()], &mut fate).await.unwrap();
                }
            }
        }
        fate
    }

    /// Waits for what is under way.
    pub(super) async fn settle(&mut self) -> Fate {
        let mut fate = Fate::default();
        let mut input = vec![0; 16 << 10];
        while !self.under_way.is_empty() {
            let read = self.io.read(&mut input).await.unwrap();
            self.take(&input[..read], &mut fate).await.unwrap();
        }
        fate
    }

    async fn send(&mut self, calls: usize, most: usize, fate: &mut Fate) -> io::Result<()> {
        let sent = calls.min(most.saturating_sub(self.under_way.len()));
        fate.unsent += calls - sent;
        if sent == 0 {
            return Ok(());
        }
        let mut output = Vec::new();
        let began = Instant::now();
        for _ in 0..sent {
            for frame in &self.request {
                let start = output.len();
                output.extend_from_slice(frame);
                output[start + 5..start + 9].copy_from_slice(&self.stream.to_be_bytes());
            }
            let served = false;
            self.under_way.insert(self.stream, Call { began, served });
            self.stream += 2;
        }
        self.io.write_all(&output).await?;
        self.io.flush().await
    }

    /// Takes `input`, and of that and what came before the frames that are whole.
    async fn take(&mut self, input: &[u8], fate: &mut Fate) -> io::Result<()> {
        assert!(!input.is_empty(), "the connection ended");
        self.input.extend_from_slice(input);
        let mut pongs = Vec::new();
        let mut rest = &self.input[..];
        while let Some(([a, b, c, kind, flags, stream @ ..], after)) = rest.split_first_chunk::<9>()
        {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some((payload, after)) = after.split_at_checked(length) else {
                break;
            };
            rest = after;
            let stream = u32::from_be_bytes(*stream);
            match *kind {
                raw::PING if *flags == 0 => {
                    pongs.extend(raw::frame(raw::PING, raw::ACK, 0, payload));
                }
                raw::SETTINGS if *flags == 0 => {
                    pongs.extend(raw::frame(raw::SETTINGS, raw::ACK, 0, &[]));
                }
                raw::GOAWAY => panic!("{payload:?}"),
                raw::DATA | raw::HEADERS => {
                    let Some(call) = self.under_way.get_mut(&stream) else {
                        continue;
                    };
                    call.served |= *kind == raw::DATA;
                    if flags & raw::END_STREAM != 0 {
                        match call.served {
                            true => fate.served.push(Served {
                                began: call.began,
                                took: call.began.elapsed(),
                            }),
                            false => fate.refused.push(Instant::now()),
                        }
                        self.under_way.remove(&stream);
                    }
                }
                // The answer is whole: the rest of the request is not wanted.
                raw::RST_STREAM => {
                    assert!(!self.under_way.contains_key(&stream), "{payload:?}");
                }
                _ => {}
            }
        }
        let left = rest.len();
        self.input.drain(..self.input.len() - left);
        if !pongs.is_empty() {
            self.io.write_all(&pongs).await?;
            self.io.flush().await?;
        }
        Ok(())
    }
}
