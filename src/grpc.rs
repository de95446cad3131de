//! gRPC: the one room that knows tonic, hyper and the generated types.
//!
//! From the socket inwards: [`listener`] accepts, [`tls`] proves who the peer is, `driver` runs
//! one connection, `backlog` watches whether they all get their turn, `witness` opens the audit record and guards the call, `service` turns wire
//! messages into broker calls, `unary` reads and writes those messages that come most, `stream` runs those that go on for long, and `status` turns errors
//! into statuses. [`client`] is the other side, for our own command line.

mod admin;
mod backlog;
mod batch;
pub mod client;
pub(crate) mod codec;
mod connection;
mod convert;
mod driver;
mod grants;
pub mod listener;
mod room;
mod server;
mod service;
mod status;
mod stream;
pub mod tls;
mod trace;
mod unary;
mod witness;

pub use driver::Deadlines;
pub use server::Handle;
pub use server::Limits;
pub use server::Parts;
pub use server::Server;
pub use status::DOMAIN;

/// Generated from `proto/keybroker/v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::restriction
)]
pub mod pb {
    tonic::include_proto!("keybroker.v1");

    pub use super::batch::DecryptBatchRequest;
    pub use super::batch::EncryptBatchRequest;
    pub use tonic_types::Status;

    /// The descriptors of the contract, for reflection and for tests that enumerate it.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

    macro_rules! redact {
        ($($message:ident),+ $(,)?) => {
            $(impl std::fmt::Debug for $message {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.debug_struct(stringify!($message)).finish_non_exhaustive()
                }
            })+
        };
    }

    redact!(
        ApplyRequest,
        ExplainRequest,
        EncryptRequest,
        EncryptResponse,
        DecryptRequest,
        DecryptResponse,
        EncryptBatchRequest,
        EncryptBatchResponse,
        EncryptBatchResult,
        DecryptBatchRequest,
        DecryptBatchResponse,
        DecryptBatchResult,
        ReEncryptRequest,
        ReEncryptResponse,
        GenerateDataKeyRequest,
        GenerateDataKeyResponse,
        GenerateDataKeyWithoutPlaintextRequest,
        GenerateDataKeyWithoutPlaintextResponse,
        EncryptStreamStart,
        EncryptStreamChunk,
        EncryptStreamOutput,
        DecryptStreamStart,
        DecryptStreamChunk,
        DecryptStreamOutput,
        DescribeKeyRequest,
        Grant,
        GrantConstraints,
        CreateGrantRequest,
        CreateGrantResponse,
        CreateKmsGrantRequest,
        CreateKmsGrantResponse,
        ListGrantsResponse,
        ListRetirableGrantsResponse,
        RetireGrantRequest,
        RenewGrantResponse,
        GenerateRandomResponse,
    );

    impl std::fmt::Debug for encrypt_batch_result::Outcome {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self {
                Self::Response(response) => response.fmt(f),
                Self::Status(status) => status.fmt(f),
            }
        }
    }

    impl std::fmt::Debug for decrypt_batch_result::Outcome {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self {
                Self::Response(response) => response.fmt(f),
                Self::Status(status) => status.fmt(f),
            }
        }
    }
}

/// Longest request or response, in bytes: a plaintext of 1 MiB with room for header, tags, context
/// and associated data, so that every ciphertext of ours fits.
pub const MAX_MESSAGE: usize = (1 << 20) + (128 << 10);

/// Longest request or response of a batch, in bytes.
pub const MAX_BATCH: usize = 4 << 20;
