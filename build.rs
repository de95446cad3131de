//! Compiles the protobuf contract with protox, so that no `protoc` is needed, and keeps the
//! descriptors for reflection.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(CONTRACTS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".keybroker.v1")
        // Their generated Debug would print plaintexts, keys, tokens and context values.
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

const CONTRACTS: [&str; 3] = [
    "proto/keybroker/v1/admin.proto",
    "proto/keybroker/v1/grant.proto",
    "proto/keybroker/v1/key_broker.proto",
];

const SECRETIVE: [&str; 36] = [
    ".keybroker.v1.ApplyRequest",
    ".keybroker.v1.ExplainRequest",
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
    ".keybroker.v1.DescribeKeyRequest",
    ".keybroker.v1.Grant",
    ".keybroker.v1.GrantConstraints",
    ".keybroker.v1.CreateGrantRequest",
    ".keybroker.v1.CreateGrantResponse",
    ".keybroker.v1.CreateKmsGrantRequest",
    ".keybroker.v1.CreateKmsGrantResponse",
    ".keybroker.v1.ListGrantsResponse",
    ".keybroker.v1.ListRetirableGrantsResponse",
    ".keybroker.v1.RetireGrantRequest",
    ".keybroker.v1.RenewGrantResponse",
    ".keybroker.v1.GenerateRandomResponse",
];
