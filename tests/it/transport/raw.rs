//! An HTTP/2 client that sends what no honest one would, frame by frame.

use std::io;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;

use crate::harness::soon;

/// A connection.
pub struct Raw<IO>(IO);

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
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const ENCRYPT: &str = "/keybroker.v1.KeyBrokerService/Encrypt";

impl<IO: AsyncRead + AsyncWrite + Unpin> Raw<IO> {
    /// The stream beneath.
    pub fn into_inner(self) -> IO {
        self.0
    }

    /// Says nothing yet.
    pub fn silent(io: IO) -> Self {
        Self(io)
    }

    /// Sends the preface and empty SETTINGS.
    pub async fn new(io: IO) -> Self {
        let mut raw = Self(io);
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        raw.write(&hello).await.unwrap();
        raw
    }

    /// Sends `bytes`.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// The next frame; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.0.read_exact(&mut header).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
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

impl Frame {
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

/// The header block of a gRPC request to `path`, without any compression.
pub fn block(path: &str) -> Vec<u8> {
    // :method POST and :scheme https from the static table; the other names too, or spelt out.
    let mut block = vec![0x83, 0x87];
    for (name, value) in [
        (&[0x04][..], path),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
        (b"\x00\x02te", "trailers"),
    ] {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// HEADERS to `path`, whose body is still to come.
pub fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(path))
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
