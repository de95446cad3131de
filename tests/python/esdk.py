"""The AWS Encryption SDK for Python, without any code of ours.

Usage: esdk.py decrypt|encrypt

Reads one JSON object: `endpoint` (of KMS), `region`, `key` (an ARN), `context`, and `input`, which
is base64. Writes one: `output` in base64, and `context`, as the message's header has it.
"""

import base64
import json
import sys

import boto3
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsKeyringInput
from aws_encryption_sdk import CommitmentPolicy
from aws_encryption_sdk import EncryptionSDKClient
from aws_encryption_sdk.identifiers import AlgorithmSuite

SUITE = AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY


def keyring(job: dict):
    kms = boto3.client(
        "kms",
        region_name=job["region"],
        endpoint_url=job["endpoint"],
        aws_access_key_id="AKIAESDK",
        aws_secret_access_key="unchecked",
    )
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    return providers.create_aws_kms_keyring(
        CreateAwsKmsKeyringInput(kms_key_id=job["key"], kms_client=kms)
    )


def main() -> None:
    job = json.load(sys.stdin)
    client = EncryptionSDKClient(
        commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
    )
    common = {
        "source": base64.b64decode(job["input"]),
        "keyring": keyring(job),
        "encryption_context": job["context"],
    }
    match sys.argv[1]:
        case "decrypt":
            output, header = client.decrypt(**common)
        case "encrypt":
            output, header = client.encrypt(algorithm=SUITE, **common)
        case other:
            sys.exit(f"{other}: neither decrypt nor encrypt")
    assert header.algorithm.algorithm_id == 0x0478, header.algorithm
    answer = {
        "output": base64.b64encode(output).decode(),
        "context": dict(header.encryption_context),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
