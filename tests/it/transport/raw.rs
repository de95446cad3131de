//! An HTTP/2 client that sends what no honest one would, frame by frame.

use std::collections::HashMap;
use std::io;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;

use crate::harness::soon;

/// A connection.
pub struct Raw<IO> {
    io: IO,
    /// Bytes of DATA that the other side takes on the whole connection.
    room: usize,
}

/// A frame that came.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const ENCRYPT: &str = "/keybroker.v1.KeyBrokerService/Encrypt";

impl<IO: AsyncRead + AsyncWrite + Unpin> Raw<IO> {
    /// The stream beneath.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Says nothing yet.
    pub fn silent(io: IO) -> Self {
        Self { io, room: 65_535 }
    }

    /// Sends the preface and empty SETTINGS.
    pub async fn new(io: IO) -> Self {
        let mut raw = Self::silent(io);
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        raw.write(&hello).await.unwrap();
        raw
    }

    /// Sends `bytes`.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// The next frame; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.io.read_exact(&mut header).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
        self.io.read_exact(&mut payload).await.ok()?;
        let frame = Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        };
        if (frame.kind, frame.stream) == (WINDOW_UPDATE, 0) {
            self.room += frame.increment();
        }
        Some(frame)
    }

    /// Sends `body` on `stream` and ends it, as fast as the other side takes it. What comes
    /// meanwhile is dropped.
    pub async fn upload(&mut self, stream: u32, body: &[u8]) {
        let mut room = STREAM_ROOM;
        let mut rest = body;
        while !rest.is_empty() {
            let length = rest.len().min(room).min(self.room).min(LONGEST_FRAME);
            if length == 0 {
                let frame = soon(self.next()).await.expect("room for more");
                if (frame.kind, frame.stream) == (WINDOW_UPDATE, stream) {
                    room += frame.increment();
                }
                continue;
            }
            let (some, more) = rest.split_at(length);
            let flags = if more.is_empty() { END_STREAM } else { 0 };
            self.write(&frame(DATA, flags, stream, some)).await.unwrap();
            rest = more;
            room -= length;
            self.room -= length;
        }
    }

    /// Reads until `count` streams have ended, or the connection has: all that came on each.
    pub async fn answers(&mut self, count: usize) -> HashMap<u32, Answer> {
        let mut open: HashMap<u32, Answer> = HashMap::new();
        let mut ended = HashMap::new();
        while ended.len() < count {
            let Some(next) = soon(self.next()).await else {
                break;
            };
            match next.kind {
                // The answer is whole: the rest of the request is not wanted.
                RST_STREAM if next.code() == NO_ERROR => continue,
                HEADERS | DATA | RST_STREAM => {}
                PING if next.flags == 0 => {
                    // Fails where the other side is gone, which reading will tell.
                    let _ = self.write(&frame(PING, ACK, 0, &next.payload)).await;
                    continue;
                }
                _ => continue,
            }
            let answer = open.entry(next.stream).or_default();
            answer.reset |= next.kind == RST_STREAM;
            if next.kind == DATA {
                answer.body.extend_from_slice(&next.payload);
            }
            if next.kind == RST_STREAM || next.flags & END_STREAM != 0 {
                ended.extend(open.remove_entry(&next.stream));
            }
        }
        ended
    }

    /// The next frame of `kind`, with all pings before it answered; `None` when the connection
    /// has ended.
    pub async fn until(&mut self, kind: u8) -> Option<Frame> {
        soon(async {
            loop {
                let next = self.next().await?;
                if next.kind == kind && !(kind == SETTINGS && next.flags == ACK) {
                    return Some(next);
                }
                if next.kind == PING && next.flags == 0 {
                    // Fails where the other side is gone, which reading will tell.
                    let _ = self.write(&frame(PING, ACK, 0, &next.payload)).await;
                }
            }
        })
        .await
    }

    /// Waits for GOAWAY; its code.
    pub async fn goaway(&mut self) -> Option<u32> {
        let goaway = self.until(GOAWAY).await?;
        Some(u32::from_be_bytes(goaway.payload[4..8].try_into().unwrap()))
    }

    /// Waits for the end of the connection.
    pub async fn ended(&mut self) {
        // No such kind.
        assert_eq!(self.until(u8::MAX).await, None);
    }
}

/// What came on a stream.
#[derive(Debug, Default)]
pub struct Answer {
    /// All of DATA: nothing, where the call was refused.
    pub body: Vec<u8>,
    /// Whether it was reset.
    pub reset: bool,
}

impl Answer {
    /// The message of a call that was served.
    pub fn message<M: prost::Message + Default>(&self) -> M {
        assert!(!self.reset, "reset");
        let message = self.body.get(5..).expect("a message: the call was served");
        M::decode(message).unwrap()
    }
}

impl Frame {
    /// The bytes that WINDOW_UPDATE gives.
    fn increment(&self) -> usize {
        let increment = u32::from_be_bytes(self.payload[..4].try_into().unwrap());
        increment.try_into().unwrap()
    }

    /// The code of RST_STREAM.
    pub fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// SETTINGS that let each stream of the other side send so much.
pub fn stream_room(bytes: u32) -> Vec<u8> {
    let setting = [&[0, 4], bytes.to_be_bytes().as_slice()].concat();
    frame(SETTINGS, 0, 0, &setting)
}

/// All the room that there can be for what the other side sends.
pub fn all_room() -> Vec<u8> {
    let connection = frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    [stream_room(0x7fff_ffff), connection].concat()
}

/// RST_STREAM of a client that has lost interest.
pub fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// The header block of a gRPC request to `path`, without any compression.
pub fn block(path: &str) -> Vec<u8> {
    block_with(path, &[])
}

/// The same with more headers.
pub fn block_with(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    // :method POST and :scheme https from the static table; the other names too, or spelt out.
    let mut block = vec![0x83, 0x87];
    for (name, value) in [
        (&[0x04][..], path),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
        (b"\x00\x02te", "trailers"),
    ] {
        block.extend_from_slice(name);
        string(&mut block, value);
    }
    for (name, value) in headers {
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

fn string(block: &mut Vec<u8>, text: &str) {
    block.push(u8::try_from(text.len()).unwrap());
    block.extend_from_slice(text.as_bytes());
}

/// HEADERS to `path`, whose body is still to come.
pub fn open(stream: u32, path: &str) -> Vec<u8> {
    open_with(stream, path, &[])
}

/// The same with more headers.
pub fn open_with(stream: u32, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block_with(path, headers))
}

/// A whole call to Encrypt, of `request`.
pub fn call(stream: u32, request: &impl prost::Message) -> Vec<u8> {
    let body = crate::harness::framed(&request.encode_to_vec());
    [
        open(stream, ENCRYPT),
        frame(DATA, END_STREAM, stream, &body),
    ]
    .concat()
}

/// Until its SETTINGS are acknowledged, which we never do, the other side takes so much on a stream.
const STREAM_ROOM: usize = 65_535;
const LONGEST_FRAME: usize = 16 << 10;
