//! Protobuf as tonic wants it, with two differences: bytes that are no message get an answer of
//! our own, where tonic's would be INTERNAL with the decoder's text; and buffers are as large as
//! the message in them, since all that is allocated is wiped when it is freed.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::BufferSettings;
use tonic::codec::DecodeBuf;
use tonic::codec::Decoder;
use tonic::codec::EncodeBuf;
use tonic::codec::Encoder;

/// The codec of every method of ours.
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Exact<T>;
    type Decoder = Strict<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Exact(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Strict(PhantomData)
    }
}

/// An encoder that makes room for the message once.
pub(crate) struct Exact<T>(PhantomData<T>);

impl<T: Message> Encoder for Exact<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        message.encode_raw(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(USUAL_ANSWER, YIELD)
    }
}

/// A decoder whose failure is [`undecodable`].
pub(crate) struct Strict<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for Strict<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(bytes).map(Some).map_err(|_| undecodable())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // Nothing ahead of time: what has arrived says how much there is.
        BufferSettings::new(0, YIELD)
    }
}

/// What the layer around the routes knows as REQUEST_MALFORMED: no call of ours answers this code.
fn undecodable() -> Status {
    Status::data_loss("undecodable")
}

/// Room for an answer with 1 KiB of payload, in bytes.
const USUAL_ANSWER: usize = 2 << 10;
/// A stream's messages leave together until they are so many bytes: tonic's own figure.
const YIELD: usize = 32 << 10;
