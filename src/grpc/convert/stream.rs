//! The messages of streams: a start, then chunks, both ways.

use bytes::Bytes;

use crate::broker::Binding;
use crate::broker::stream::Begun;
use crate::error::Error;
use crate::grpc::convert::Verified;
use crate::grpc::convert::binding;
use crate::grpc::convert::verify;
use crate::grpc::pb;
use crate::grpc::pb::decrypt_stream_request;
use crate::grpc::pb::decrypt_stream_response;
use crate::grpc::pb::encrypt_stream_request;
use crate::grpc::pb::encrypt_stream_response;

/// How a streaming method's messages are read and written.
pub(in crate::grpc) trait Stream: 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    type Start;

    /// Reads the first message.
    fn start(request: Self::Request) -> Result<Self::Start, Error>;

    /// Reads any later one.
    fn chunk(request: Self::Request) -> Result<Bytes, Error>;

    /// Writes the first answer.
    fn started(begun: &Begun, verified: Verified) -> Self::Response;

    /// Writes any later one.
    fn output(bytes: Bytes) -> Self::Response;
}

pub(in crate::grpc) struct EncryptStream;

/// What an EncryptStream begins with.
pub(in crate::grpc) struct EncryptStart {
    pub(in crate::grpc) to: Binding,
    pub(in crate::grpc) declared: Option<u64>,
    pub(in crate::grpc) verified: Verified,
}

impl Stream for EncryptStream {
    type Request = pb::EncryptStreamRequest;
    type Response = pb::EncryptStreamResponse;
    type Start = EncryptStart;

    fn start(request: Self::Request) -> Result<EncryptStart, Error> {
        use encrypt_stream_request::Part;
        let pb::EncryptStreamRequest { part } = request;
        let start = match part {
            Some(Part::Start(start)) => start,
            Some(Part::Chunk(_)) | None => return Err(not_start()),
        };
        let pb::EncryptStreamStart {
            name,
            encryption_context,
            associated_data,
            associated_data_crc32c,
            plaintext_length,
            grant_tokens,
        } = start;
        let verified = verify("associated_data", &associated_data, associated_data_crc32c)?;
        Ok(EncryptStart {
            to: binding(name, encryption_context, associated_data, grant_tokens),
            declared: plaintext_length,
            verified,
        })
    }

    fn chunk(request: Self::Request) -> Result<Bytes, Error> {
        use encrypt_stream_request::Part;
        let pb::EncryptStreamRequest { part } = request;
        let chunk = match part {
            Some(Part::Chunk(chunk)) => chunk,
            Some(Part::Start(_)) | None => return Err(not_chunk()),
        };
        let pb::EncryptStreamChunk {
            plaintext,
            plaintext_crc32c,
        } = chunk;
        verify("plaintext", &plaintext, plaintext_crc32c)?;
        Ok(plaintext)
    }

    fn started(begun: &Begun, verified: Verified) -> Self::Response {
        use encrypt_stream_response::Part;
        let start = pb::EncryptStreamStarted {
            name: begun.name.to_string(),
            key_version: begun.version.name.to_string(),
            verified_associated_data_crc32c: verified.0,
        };
        pb::EncryptStreamResponse {
            part: Some(Part::Start(start)),
        }
    }

    fn output(bytes: Bytes) -> Self::Response {
        use encrypt_stream_response::Part;
        let chunk = pb::EncryptStreamOutput {
            ciphertext_crc32c: crc32c::crc32c(&bytes),
            ciphertext: bytes,
        };
        pb::EncryptStreamResponse {
            part: Some(Part::Chunk(chunk)),
        }
    }
}

pub(in crate::grpc) struct DecryptStream;

/// What a DecryptStream begins with.
pub(in crate::grpc) struct DecryptStart {
    pub(in crate::grpc) from: Binding,
    pub(in crate::grpc) verified: Verified,
}

impl Stream for DecryptStream {
    type Request = pb::DecryptStreamRequest;
    type Response = pb::DecryptStreamResponse;
    type Start = DecryptStart;

    fn start(request: Self::Request) -> Result<DecryptStart, Error> {
        use decrypt_stream_request::Part;
        let pb::DecryptStreamRequest { part } = request;
        let start = match part {
            Some(Part::Start(start)) => start,
            Some(Part::Chunk(_)) | None => return Err(not_start()),
        };
        let pb::DecryptStreamStart {
            name,
            encryption_context,
            associated_data,
            associated_data_crc32c,
            grant_tokens,
        } = start;
        let verified = verify("associated_data", &associated_data, associated_data_crc32c)?;
        Ok(DecryptStart {
            from: binding(name, encryption_context, associated_data, grant_tokens),
            verified,
        })
    }

    fn chunk(request: Self::Request) -> Result<Bytes, Error> {
        use decrypt_stream_request::Part;
        let pb::DecryptStreamRequest { part } = request;
        let chunk = match part {
            Some(Part::Chunk(chunk)) => chunk,
            Some(Part::Start(_)) | None => return Err(not_chunk()),
        };
        let pb::DecryptStreamChunk {
            ciphertext,
            ciphertext_crc32c,
        } = chunk;
        verify("ciphertext", &ciphertext, ciphertext_crc32c)?;
        Ok(ciphertext)
    }

    fn started(begun: &Begun, verified: Verified) -> Self::Response {
        use decrypt_stream_response::Part;
        let start = pb::DecryptStreamStarted {
            name: begun.name.to_string(),
            key_version: begun.version.name.to_string(),
            used_primary: begun.version.primary,
            verified_associated_data_crc32c: verified.0,
        };
        pb::DecryptStreamResponse {
            part: Some(Part::Start(start)),
        }
    }

    fn output(bytes: Bytes) -> Self::Response {
        use decrypt_stream_response::Part;
        let chunk = pb::DecryptStreamOutput {
            plaintext_crc32c: crc32c::crc32c(&bytes),
            plaintext: bytes,
        };
        pb::DecryptStreamResponse {
            part: Some(Part::Chunk(chunk)),
        }
    }
}

/// Also what a stream without any message fails with.
pub(in crate::grpc) fn not_start() -> Error {
    Error::Invalid {
        field: "start",
        why: "the first message of a stream must be its start".into(),
    }
}

fn not_chunk() -> Error {
    Error::Invalid {
        field: "chunk",
        why: "every message after the first must be a chunk".into(),
    }
}
