//! A call of one message and one answer, for the methods that are called most: what tonic does by
//! way of streams of one, without copies of what has arrived in one piece or is long.

use std::convert::Infallible;
use std::future::pending;
use std::mem;

use bytes::Buf as _;
use bytes::BufMut as _;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::stream;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use http_body::Body as HttpBody;
use http_body::Frame;
use http_body_util::BodyExt as _;
use http_body_util::StreamBody;
use prost::Message;
use prost::encoding::WireType;
use prost::encoding::encode_key;
use prost::encoding::encode_varint;
use prost::encoding::encoded_len_varint;
use prost::encoding::key_len;
use tonic::body::Body;

use crate::error::Error;
use crate::grpc::pb;
use crate::grpc::room::PREFIX;
use crate::grpc::room::announced;

/// The message of `request`, of up to `limit` bytes.
///
/// # Errors
/// [`Error::MessageTooLarge`], as soon as it says so itself, or [`Error::Malformed`]: it is
/// compressed, not whole, not alone, or none of the method's type.
pub(super) async fn message<Q: Message + Default>(
    request: http::Request<impl HttpBody<Data = Bytes> + Unpin>,
    limit: usize,
) -> Result<Q, Error> {
    if request
        .headers()
        .get(&ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return Err(Error::Malformed);
    }
    let mut data = whole(request.into_body(), limit).await?;
    // Of the flag's values, the one for a message as it is.
    if data.first() != Some(&0) || announced(&data) != data.len() {
        return Err(Error::Malformed);
    }
    data.advance(PREFIX);
    if data.len() < LITTLE {
        // Small ones would keep the whole buffer of their connection for as long as they wait.
        data = Bytes::copy_from_slice(&data);
    }
    Q::decode(data).map_err(|_| Error::Malformed)
}

/// All of `body`, if that is one message of up to `limit` bytes: as it came if it came in one piece.
async fn whole(
    mut body: impl HttpBody<Data = Bytes> + Unpin,
    limit: usize,
) -> Result<Bytes, Error> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            // The caller is gone, and with it, in a moment, this call.
            return pending().await;
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&mem::take(&mut first));
            all.extend_from_slice(&data);
        }
        let here = if first.is_empty() { &*all } else { &*first };
        if here.len() >= PREFIX {
            let length = announced(here);
            if length - PREFIX > limit {
                return Err(Error::MessageTooLarge { limit });
            }
            if here.len() > length {
                return Err(Error::Malformed);
            }
        }
    }
    Ok(if first.is_empty() {
        all.freeze()
    } else {
        first
    })
}

/// What an answer is about, in a field of its own.
pub(super) trait Payload: Message {
    /// The field's number.
    const FIELD: u32;

    /// The field's bytes, which it then has no more.
    fn take(&mut self) -> Bytes;
}

impl Payload for pb::EncryptResponse {
    const FIELD: u32 = 3;

    fn take(&mut self) -> Bytes {
        mem::take(&mut self.ciphertext)
    }
}

impl Payload for pb::DecryptResponse {
    const FIELD: u32 = 4;

    fn take(&mut self) -> Bytes {
        mem::take(&mut self.plaintext)
    }
}

/// The answer that is `message`. Its payload comes last, where the order of fields is free, so that
/// a long one need not be copied.
pub(super) fn answer<P: Payload>(mut message: P) -> http::Response<Body> {
    let payload = message.take();
    let prefix = u64::try_from(payload.len()).unwrap_or(u64::MAX);
    let (here, after) = match payload.len() {
        0..LITTLE => (payload, None),
        LITTLE.. => (Bytes::new(), Some(payload)),
    };
    let own = message.encoded_len();
    let field = key_len(P::FIELD) + encoded_len_varint(prefix);
    let length = own + field + here.len() + after.as_ref().map_or(0, Bytes::len);
    let mut data = BytesMut::with_capacity(PREFIX + own + field + here.len());
    data.put_u8(0);
    // No answer has 4 GiB.
    data.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut data);
    encode_key(P::FIELD, WireType::LengthDelimited, &mut data);
    encode_varint(prefix, &mut data);
    data.put(here);
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS.clone(), OK);
    let frames = [
        Some(Frame::data(data.freeze())),
        after.map(Frame::data),
        Some(Frame::trailers(trailers)),
    ];
    let frames = frames.into_iter().flatten().map(Ok::<_, Infallible>);
    let mut response = http::Response::new(Body::new(StreamBody::new(stream::iter(frames))));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// Up to so many bytes what is in a message is copied.
const LITTLE: usize = 4 << 10;
static ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
static STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use proptest::prelude::*;

    use crate::grpc::pb::EncryptRequest;

    type Outcome = Result<EncryptRequest, Error>;

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag], &length[..], message].concat()
    }

    fn request() -> EncryptRequest {
        EncryptRequest {
            name: "tenants/acme/keys/orders".into(),
            plaintext: vec![7; 10_000].into(),
            ..EncryptRequest::default()
        }
    }

    /// What is read of `body` when it comes in `pieces`.
    async fn read(pieces: Vec<&[u8]>, limit: usize) -> Outcome {
        let frames = pieces.into_iter().map(Bytes::copy_from_slice);
        let frames = frames.map(|data| Ok::<_, std::io::Error>(Frame::data(data)));
        let body = StreamBody::new(stream::iter(frames));
        message(http::Request::new(body), limit).await
    }

    fn malformed(outcome: Outcome) -> bool {
        matches!(outcome, Err(Error::Malformed))
    }

    #[tokio::test]
    async fn a_message_is_read_however_it_is_cut() {
        let body = framed(0, &request().encode_to_vec());
        for size in [1, 4, 5, 6, 1000, body.len() - 1, body.len()] {
            let read = read(body.chunks(size).collect(), 1 << 20).await.unwrap();
            assert!(read == request(), "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn a_large_message_in_one_piece_is_not_copied() {
        let body = Bytes::from(framed(0, &request().encode_to_vec()));
        let frames = stream::iter([Ok::<_, std::io::Error>(Frame::data(body.clone()))]);
        let read: EncryptRequest = message(http::Request::new(StreamBody::new(frames)), 1 << 20)
            .await
            .unwrap();
        assert!(body.as_ptr_range().contains(&read.plaintext.as_ptr()));
    }

    #[tokio::test]
    async fn what_is_not_one_message_is_malformed() {
        let message = request().encode_to_vec();
        let whole = framed(0, &message);
        let (short, _) = whole.split_at(whole.len() - 1);
        assert!(malformed(read(vec![], 1 << 20).await), "nothing");
        assert!(
            malformed(read(vec![&[0, 0]], 1 << 20).await),
            "half a prefix"
        );
        assert!(malformed(read(vec![short], 1 << 20).await), "not whole");
        assert!(malformed(read(vec![&whole, &whole], 1 << 20).await), "two");
        assert!(
            malformed(read(vec![&framed(1, &message)], 1 << 20).await),
            "compressed"
        );
        assert!(
            malformed(read(vec![&framed(0, &[0xff; 9])], 1 << 20).await),
            "no message"
        );
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_before_it_is_here() {
        let mut prefix = framed(0, &[0; 101]);
        prefix.truncate(PREFIX);
        let first = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from(prefix)))]);
        let body = StreamBody::new(futures_util::StreamExt::chain(first, stream::pending()));
        let read: Outcome = message(http::Request::new(body), 100).await;
        assert!(matches!(read, Err(Error::MessageTooLarge { limit: 100 })));
    }

    #[tokio::test]
    async fn an_encoding_is_refused() {
        for (encoding, taken) in [("identity", true), ("gzip", false)] {
            let body = Bytes::from(framed(0, &request().encode_to_vec()));
            let request = http::Request::builder().header("grpc-encoding", encoding);
            let request = request.body(Full::new(body)).unwrap();
            let read: Outcome = message(request, 1 << 20).await;
            assert_eq!(read.is_ok(), taken, "{encoding}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_a_message_and_a_status() {
        for length in [0, 1, 127, 128, LITTLE - 1, LITTLE, 100_000] {
            let encrypted = pb::EncryptResponse {
                name: "tenants/acme/keys/orders".into(),
                ciphertext: vec![7; length].into(),
                ciphertext_crc32c: 7,
                ..pb::EncryptResponse::default()
            };
            let read: pb::EncryptResponse = read_back(answer(encrypted.clone())).await;
            assert!(read == encrypted, "{length}");
            let decrypted = pb::DecryptResponse {
                used_primary: true,
                plaintext: vec![7; length].into(),
                verified_associated_data_crc32c: true,
                ..pb::DecryptResponse::default()
            };
            let read: pb::DecryptResponse = read_back(answer(decrypted.clone())).await;
            assert!(read == decrypted, "{length}");
        }
    }

    async fn read_back<P: Message + Default>(response: http::Response<Body>) -> P {
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        let body = Full::new(body.to_bytes());
        message(http::Request::new(body), 1 << 20).await.unwrap()
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0..200_usize,
        ) {
            let (one, other) = bytes.split_at(cut.min(bytes.len()));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let outcome = runtime.block_on(read(vec![one, other], 100));
            if let Ok(message) = outcome {
                prop_assert!(message.encoded_len() <= 100);
            }
        }
    }
}
