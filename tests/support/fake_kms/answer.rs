//! Answers as they go over the wire: whole, in pieces, or torn.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use hyper::body::SizeHint;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Sleep;
use uuid::Uuid;

use super::calls::Open;
use super::calls::Outcome;

pub type Response = hyper::Response<Body>;

/// What becomes of a request.
pub enum Reply {
    /// An answer, after which the connection goes on.
    Answer(Response),
    /// Some bytes of one, after which the connection ends in order.
    Torn(Bytes),
    /// Nothing: the connection is reset.
    Reset,
}

/// The body of an answer, of a length that its head declares. The call ends before its last byte
/// leaves, so that a client never begins the next one earlier.
pub struct Body {
    content: Content,
    open: Option<(Open, Outcome)>,
}

enum Content {
    /// In one piece, and with the head in one write.
    Whole(Bytes),
    /// One byte each time that the timer fires.
    Drip(Bytes, Duration, Pin<Box<Sleep>>),
    /// So many spaces, of which only few are in memory.
    Spaces(u64),
}

impl Body {
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::of(Content::Whole(bytes.into()))
    }

    /// A byte each time that `pace` has passed.
    pub fn drip(bytes: impl Into<Bytes>, pace: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(pace));
        Self::of(Content::Drip(bytes.into(), pace, timer))
    }

    pub fn spaces(length: u64) -> Self {
        Self::of(Content::Spaces(length))
    }

    /// Ends the call `open` with `outcome` when the last byte leaves.
    pub fn ending(mut self, open: Open, outcome: Outcome) -> Self {
        self.open = Some((open, outcome));
        self.end_call_at_end();
        self
    }

    fn of(content: Content) -> Self {
        Self {
            content,
            open: None,
        }
    }

    fn remaining(&self) -> u64 {
        match &self.content {
            Content::Whole(rest) | Content::Drip(rest, ..) => rest.len() as u64,
            Content::Spaces(rest) => *rest,
        }
    }

    fn end_call_at_end(&mut self) {
        if self.remaining() == 0
            && let Some((open, outcome)) = self.open.take()
        {
            open.end(outcome);
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.remaining() == 0 {
            return Poll::Ready(None);
        }
        let piece = match &mut self.content {
            Content::Whole(rest) => std::mem::take(rest),
            Content::Drip(rest, pace, timer) => {
                std::task::ready!(timer.as_mut().poll(context));
                timer.set(tokio::time::sleep(*pace));
                rest.split_to(1)
            }
            Content::Spaces(rest) => {
                let piece = Bytes::from_static(&SPACES[..SPACES.len().min(*rest as usize)]);
                *rest -= piece.len() as u64;
                piece
            }
        };
        self.end_call_at_end();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining())
    }
}

/// An answer of a server whose clock shows `now`.
pub fn response(status: u16, now: Timestamp, body: Body) -> Response {
    let mut response = hyper::Response::builder().status(status);
    for (name, value) in headers(now) {
        response = response.header(name, value);
    }
    response.body(body).expect("a valid answer")
}

/// The first `part` of a success with `body`.
pub fn torn(body: &str, now: Timestamp, part: Part) -> Bytes {
    let mut head = "HTTP/1.1 200 OK\r\n".to_owned();
    for (name, value) in headers(now) {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    match part {
        Part::HalfHead => head.truncate(head.len() / 2),
        Part::Head => {}
        Part::HalfBody => head += &body[..body.len() / 2],
    }
    head.into()
}

/// How much of an answer leaves.
#[derive(Clone, Copy)]
pub enum Part {
    HalfHead,
    Head,
    HalfBody,
}

/// The body of an error.
pub fn error(code: &str, message: &str) -> String {
    json!({ "__type": code, "message": message }).to_string()
}

fn headers(now: Timestamp) -> [(&'static str, String); 3] {
    [
        ("content-type", "application/x-amz-json-1.1".to_owned()),
        (
            "date",
            now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
        ),
        ("x-amzn-requestid", Uuid::new_v4().to_string()),
    ]
}

/// As many as leave at once.
static SPACES: [u8; 64 << 10] = [b' '; 64 << 10];
