//! How much of its requests and answers a connection may have in memory at once, so that a peer
//! who sends much, or does not read what it asked for, holds no more of ours than that.
//!
//! A large call waits for its place before its request is read, and gives it back when its answer
//! has left HTTP/2's buffers. It takes its whole place at once, so calls can't wait for each other.
//! A request of several frames is put together here, in one buffer that the codec takes over: what
//! grows piece by piece is copied, and the copies wiped.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use bytes::BytesMut;
use http_body::Body as HttpBody;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tonic::body::Body;

/// The room of one connection.
pub(super) struct Room(Arc<Semaphore>);

/// The place of one large call.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Room {
    /// Room for [`WHOLE`] bytes of large calls, and for any number of small ones: streams are
    /// counted elsewhere.
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(WHOLE >> GRAIN)))
    }

    /// Resolves when there is room for `request`, whose message has at most `limit` bytes, and for
    /// an answer that is longer by at most `answer` bytes. No place is taken by a call that needs
    /// but little.
    pub(super) async fn admit(
        &self,
        request: http::Request<Incoming>,
        limit: usize,
        answer: usize,
    ) -> (http::Request<Body>, Option<Place>) {
        let (parts, mut rest) = request.into_parts();
        let mut first = rest.frame().await;
        let data = first
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref());
        let (length, here) = data.map_or((0, 0), |data| (announced(data), data.len()));
        let place = match length.saturating_mul(2).saturating_add(answer) {
            0..=SMALL => None,
            bytes => self.take(bytes.min(WHOLE)).await,
        };
        if here < length && length <= limit {
            first = match first {
                Some(Ok(frame)) => Some(together(frame, length, &mut rest).await),
                other => other,
            };
        }
        let body = Body::new(Resumed { first, rest });
        (http::Request::from_parts(parts, body), place)
    }

    async fn take(&self, bytes: usize) -> Option<Place> {
        let grains = u32::try_from((bytes >> GRAIN) + 1).unwrap_or(u32::MAX);
        let grains = grains.min(u32::try_from(WHOLE >> GRAIN).unwrap_or(u32::MAX));
        // Err: nobody closes it.
        let permit = Arc::clone(&self.0).acquire_many_owned(grains).await;
        Some(Place {
            _permit: permit.ok()?,
        })
    }
}

impl Place {
    /// `response`, whose body keeps this place until its bytes are dropped.
    pub(super) fn hold(self, response: http::Response<Body>) -> http::Response<Body> {
        let place = Arc::new(self);
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                frame.map_data(|bytes| {
                    let place = Arc::clone(&place);
                    Bytes::from_owner(Held {
                        bytes,
                        _place: place,
                    })
                })
            }))
        })
    }
}

/// Bytes with a place.
struct Held {
    bytes: Bytes,
    _place: Arc<Place>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body of which a first part was looked at.
struct Resumed {
    first: Option<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// The frame that `first` and those after it come to, when they are `length` bytes or there are no
/// more.
async fn together(
    first: Frame<Bytes>,
    length: usize,
    rest: &mut Incoming,
) -> Result<Frame<Bytes>, hyper::Error> {
    let data = match first.into_data() {
        Ok(data) => data,
        Err(other) => return Ok(other),
    };
    // Not by a length alone that the peer announces. Twice that, because the codec wants room for a
    // whole message when it has read the prefix, and without it moves all that is here.
    let mut whole = BytesMut::with_capacity(length.saturating_mul(2).min(AHEAD));
    whole.extend_from_slice(&data);
    drop(data);
    while whole.len() < length
        && let Some(frame) = rest.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Ok(Frame::data(whole.freeze()))
}

/// The length of the gRPC message that begins with `data`, its prefix of a flag and an `u32`
/// included. One that comes in so small pieces that this is not there yet may be of any length.
pub(super) fn announced(data: &[u8]) -> usize {
    match data {
        [_, a, b, c, d, ..] => usize::try_from(u32::from_be_bytes([*a, *b, *c, *d]))
            .unwrap_or(usize::MAX)
            .saturating_add(PREFIX),
        _ => usize::MAX,
    }
}

/// What stands before a gRPC message, in bytes.
pub(super) const PREFIX: usize = 5;
/// How much is allocated before it is there, in bytes.
const AHEAD: usize = 256 << 10;
/// The room of a connection for large calls, in bytes: the largest batch and its answer.
const WHOLE: usize = 8 << 20;
/// A call that needs no more than this, in bytes, takes no place.
const SMALL: usize = 64 << 10;
/// Places are counted in units of 2^10 bytes.
const GRAIN: usize = 10;
