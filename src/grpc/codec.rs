//! Prost's codec with our own answer to bytes that are no message: tonic's would be INTERNAL with
//! the decoder's text.

use prost::Message;
use tonic::Status;
use tonic::codec::BufferSettings;
use tonic::codec::DecodeBuf;
use tonic::codec::Decoder;
use tonic_prost::ProstCodec;
use tonic_prost::ProstEncoder;

/// The codec of every method of ours.
pub(crate) struct Codec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Strict<<ProstCodec<T, U> as tonic::codec::Codec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        tonic::codec::Codec::encoder(&mut self.0)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Strict(tonic::codec::Codec::decoder(&mut self.0))
    }
}

/// A decoder whose failure is [`undecodable`].
pub(crate) struct Strict<D>(D);

impl<D: Decoder<Error = Status>> Decoder for Strict<D> {
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        self.0.decode(bytes).map_err(|_| undecodable())
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// What the layer around the routes knows as REQUEST_MALFORMED: no call of ours answers this code.
fn undecodable() -> Status {
    Status::data_loss("undecodable")
}
