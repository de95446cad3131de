//! Batches on the wire: bounded while they are read, and bounded when they are answered.

use prost::DecodeError;
use prost::Message;
use prost::bytes::Buf;
use prost::bytes::BufMut;
use prost::encoding;
use prost::encoding::DecodeContext;
use prost::encoding::WireType;

use crate::audit::Tally;
use crate::broker::Answer;
use crate::broker::Done;
use crate::broker::MAX_ITEMS;
use crate::error::Error;
use crate::grpc::MAX_BATCH;
use crate::grpc::pb;
use crate::grpc::status::item_status;

macro_rules! request {
    ($(#[$doc:meta])* $request:ident of $item:ty) => {
        $(#[$doc])*
        ///
        /// Decoding keeps no more than one item over the most that there may be: an empty item
        /// takes two bytes to send and over a hundred to keep.
        #[derive(Clone, Default, PartialEq)]
        pub struct $request {
            /// What to do, in order.
            pub items: Vec<$item>,
        }

        impl Message for $request {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                encoding::message::encode_repeated(ITEMS, &self.items, buf);
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    ITEMS => merge(&mut self.items, wire_type, buf, ctx),
                    _ => encoding::skip_field(wire_type, tag, buf, ctx),
                }
            }

            fn encoded_len(&self) -> usize {
                encoding::message::encoded_len_repeated(ITEMS, &self.items)
            }

            fn clear(&mut self) {
                self.items.clear();
            }
        }
    };
}

request! {
    /// Asks to encrypt several plaintexts.
    EncryptBatchRequest of pb::EncryptRequest
}
request! {
    /// Asks to decrypt several messages.
    DecryptBatchRequest of pb::DecryptRequest
}

/// Reads an item and keeps it, or notes that there is one too many.
fn merge<I: Message + Default>(
    items: &mut Vec<I>,
    wire_type: WireType,
    buf: &mut impl Buf,
    ctx: DecodeContext,
) -> Result<(), DecodeError> {
    if items.len() < MAX_ITEMS {
        return encoding::message::merge_repeated(wire_type, items, buf, ctx);
    }
    if items.len() == MAX_ITEMS {
        items.push(I::default());
    }
    encoding::skip_field(wire_type, ITEMS, buf, ctx)
}

/// A result on the wire.
pub(super) trait Outcome: Message + Sized {
    /// What a unary call would have answered.
    type Response;

    /// An item that was served.
    fn served(response: Self::Response) -> Self;

    /// An item that failed.
    fn failed(status: pb::Status) -> Self;
}

impl Outcome for pb::EncryptBatchResult {
    type Response = pb::EncryptResponse;

    fn served(response: pb::EncryptResponse) -> Self {
        let outcome = Some(pb::encrypt_batch_result::Outcome::Response(response));
        Self { outcome }
    }

    fn failed(status: pb::Status) -> Self {
        let outcome = Some(pb::encrypt_batch_result::Outcome::Status(status));
        Self { outcome }
    }
}

impl Outcome for pb::DecryptBatchResult {
    type Response = pb::DecryptResponse;

    fn served(response: pb::DecryptResponse) -> Self {
        let outcome = Some(pb::decrypt_batch_result::Outcome::Response(response));
        Self { outcome }
    }

    fn failed(status: pb::Status) -> Self {
        let outcome = Some(pb::decrypt_batch_result::Outcome::Status(status));
        Self { outcome }
    }
}

/// The results of `answers` in their order, and what became of the items. `render` makes the
/// response of an item, given what conversion kept for it.
pub(super) fn results<T, V, R: Outcome>(
    answers: Vec<Answer<T>>,
    kept: Vec<V>,
    request_id: &str,
    render: impl Fn(V, Done<T>) -> R::Response,
) -> (Vec<R>, Tally) {
    let mut reasons = Vec::with_capacity(answers.len());
    let mut results = Vec::with_capacity(answers.len());
    for (Answer { key, outcome }, kept) in answers.into_iter().zip(kept) {
        let (result, reason) = match outcome {
            Ok(done) => (R::served(render(kept, done)), None),
            Err(error) => {
                let status = item_status(&error, request_id);
                (R::failed(status), Some(error.reason()))
            }
        };
        results.push(result);
        reasons.push((key, reason));
    }
    let error = Error::ResponseTooLarge { limit: MAX_BATCH };
    fit(
        &mut results,
        MAX_BATCH,
        || R::failed(item_status(&error, request_id)),
        |at| {
            if let Some((_, reason)) = reasons.get_mut(at) {
                *reason = Some(error.reason());
            }
        },
    );
    let mut tally = Tally::new(results.len());
    for (key, reason) in &reasons {
        tally.count(key.as_ref(), *reason);
    }
    (results, tally)
}

/// Puts `substitute` in the place of results, first come first kept, until all of them fit into a
/// response of `limit` bytes, which must have room for as many substitutes; tells `put` which.
fn fit<R: Message>(
    results: &mut [R],
    limit: usize,
    substitute: impl Fn() -> R,
    mut put: impl FnMut(usize),
) {
    if encoding::message::encoded_len_repeated(RESULTS, results) <= limit {
        return;
    }
    let least = encoding::message::encoded_len(RESULTS, &substitute());
    let mut spent = 0;
    let mut behind = results.len();
    for (at, result) in results.iter_mut().enumerate() {
        behind -= 1;
        let length = encoding::message::encoded_len(RESULTS, result);
        // There always remains room for a substitute of each that follows.
        if spent + length + behind * least <= limit {
            spent += length;
        } else {
            *result = substitute();
            put(at);
            spent += least;
        }
    }
}

/// The tag of a request's items.
const ITEMS: u32 = 1;
/// The tag of a response's results.
const RESULTS: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn served(length: usize) -> pb::EncryptBatchResult {
        Outcome::served(pb::EncryptResponse {
            ciphertext: vec![0; length].into(),
            ..Default::default()
        })
    }

    fn failed() -> pb::EncryptBatchResult {
        Outcome::failed(pb::Status {
            message: "x".repeat(200),
            ..Default::default()
        })
    }

    #[test]
    fn what_fits_stays_and_the_rest_is_replaced() {
        let mut replaced = Vec::new();
        let mut results = [600, 600, 10, 600, 10].map(served);
        fit(&mut results, 1700, failed, |at| replaced.push(at));
        assert_eq!(replaced, [1]);
        let length = encoding::message::encoded_len_repeated(RESULTS, &results);
        assert!(length <= 1700, "{length}");
        fit(&mut results, length, failed, |at| panic!("{at} fits"));
        fit(&mut results, length - 1, failed, |at| replaced.push(at));
        assert_eq!(replaced, [1, 3]);
    }

    #[test]
    fn no_more_items_are_kept_than_tell_that_there_are_too_many() {
        let mut bytes = Vec::new();
        for _ in 0..5000 {
            bytes.extend([0x0a, 0x00]);
        }
        let request = EncryptBatchRequest::decode(bytes.as_slice()).unwrap();
        assert_eq!(request.items.len(), MAX_ITEMS + 1);
        let request = EncryptBatchRequest::decode(&bytes[..2 * MAX_ITEMS]).unwrap();
        assert_eq!(request.items.len(), MAX_ITEMS);
        assert_eq!(request.encode_to_vec(), bytes[..2 * MAX_ITEMS]);
    }
}
