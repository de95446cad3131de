//! Compiles the protobuf contract with protox, so that no `protoc` is needed, and keeps the
//! descriptors for reflection.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/keybroker/v1/key_broker.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".keybroker.v1")
        // Their generated Debug would print plaintexts, keys and context values.
        .skip_debug(SECRETIVE)
        .btree_map(".keybroker.v1")
        // Written by hand, to be bounded while they are read.
        .extern_path(
            ".keybroker.v1.EncryptBatchRequest",
            "crate::grpc::batch::EncryptBatchRequest",
        )
        .extern_path(
            ".keybroker.v1.DecryptBatchRequest",
            "crate::grpc::batch::DecryptBatchRequest",
        )
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .codec_path("crate::grpc::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}

const SECRETIVE: [&str; 23] = [
    ".keybroker.v1.EncryptRequest",
    ".keybroker.v1.EncryptResponse",
    ".keybroker.v1.DecryptRequest",
    ".keybroker.v1.DecryptResponse",
    ".keybroker.v1.EncryptBatchResponse",
    ".keybroker.v1.EncryptBatchResult",
    ".keybroker.v1.EncryptBatchResult.outcome",
    ".keybroker.v1.DecryptBatchResponse",
    ".keybroker.v1.DecryptBatchResult",
    ".keybroker.v1.DecryptBatchResult.outcome",
    ".keybroker.v1.ReEncryptRequest",
    ".keybroker.v1.ReEncryptResponse",
    ".keybroker.v1.GenerateDataKeyRequest",
    ".keybroker.v1.GenerateDataKeyResponse",
    ".keybroker.v1.GenerateDataKeyWithoutPlaintextRequest",
    ".keybroker.v1.GenerateDataKeyWithoutPlaintextResponse",
    ".keybroker.v1.EncryptStreamStart",
    ".keybroker.v1.EncryptStreamChunk",
    ".keybroker.v1.EncryptStreamOutput",
    ".keybroker.v1.DecryptStreamStart",
    ".keybroker.v1.DecryptStreamChunk",
    ".keybroker.v1.DecryptStreamOutput",
    ".keybroker.v1.GenerateRandomResponse",
];
