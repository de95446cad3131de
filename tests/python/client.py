"""A client on gRPC's C core: encrypts and decrypts through a broker, by calls and by streams.

Usage: client.py PROTO_FOLDER TARGET AUTHORITY [CA CERTIFICATE KEY] < JOB

TARGET is a gRPC target. AUTHORITY becomes the channel's `grpc.default_authority`, or, with
certificates, the server's name; empty, it is left out. Its own client code is generated from the
contract in PROTO_FOLDER, into a temporary folder. JOB is JSON, {"sizes": [bytes of plaintext that
make a round trip]}.
"""

import json
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from grpc_tools import protoc

CONTRACT = "keybroker/v1/key_broker.proto"
CONTEXT = {"purpose": "test"}


def generate(protos: str, out: str):
    """Generates the contract's code into `out`, and imports it."""
    needed = [CONTRACT, "google/api/field_behavior.proto", "google/rpc/status.proto"]
    builtin = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{protos}", f"-I{builtin}"]
    outputs = [f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + outputs + needed) != 0:
        sys.exit("the contract does not compile")
    sys.path.insert(0, out)
    from keybroker.v1 import key_broker_pb2 as messages
    from keybroker.v1 import key_broker_pb2_grpc as services

    return messages, services


def channel(target: str, authority: str, files: list[str]) -> grpc.Channel:
    if not files:
        options = [("grpc.default_authority", authority)] if authority else []
        return grpc.insecure_channel(target, options)
    ca, certificate, key = (pathlib.Path(file).read_bytes() for file in files)
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = [("grpc.ssl_target_name_override", authority)] if authority else []
    return grpc.secure_channel(target, credentials, options)


class Broker:
    """Calls unary methods by their names, with fields as the contract names them."""

    def __init__(self, messages, stub):
        self.messages = messages
        self.stub = stub

    def call(self, method: str, **fields):
        request = getattr(self.messages, f"{method}Request")(**fields)
        return getattr(self.stub, method)(request, timeout=10)


def bound(broker: Broker) -> None:
    plaintext = bytes(range(256)) * 4
    sealed = broker.call(
        "Encrypt",
        name="keys/orders",
        plaintext=plaintext,
        encryption_context=CONTEXT,
        associated_data=b"record 42",
    )
    assert sealed.name == "tenants/acme/keys/orders", sealed.name
    assert plaintext not in sealed.ciphertext

    request = {
        "ciphertext": sealed.ciphertext,
        "encryption_context": CONTEXT,
        "associated_data": b"record 42",
        "ciphertext_crc32c": sealed.ciphertext_crc32c,
    }
    opened = broker.call("Decrypt", **request)
    assert opened.plaintext == plaintext
    assert opened.verified_ciphertext_crc32c

    request["associated_data"] = b"record 43"
    try:
        broker.call("Decrypt", **request)
    except grpc.RpcError as error:
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert b"CIPHERTEXT_INVALID" in details, details
    else:
        sys.exit("a message opened with other associated data")


def sized(broker: Broker, size: int) -> None:
    plaintext = bytes([size % 251]) * size
    sealed = broker.call("Encrypt", name="keys/orders", plaintext=plaintext)
    opened = broker.call("Decrypt", ciphertext=sealed.ciphertext)
    assert opened.plaintext == plaintext, f"{size} bytes"


def batch(broker: Broker) -> None:
    plaintexts = [bytes([n]) * (n + 1) for n in range(3)]
    items = [{"name": "keys/orders", "plaintext": plaintext} for plaintext in plaintexts]
    items.insert(1, {"name": "keys/absent", "plaintext": b"x"})
    answer = broker.call("EncryptBatch", items=items)
    denied = answer.results.pop(1)
    assert denied.WhichOneof("outcome") == "status", denied
    assert denied.status.code == grpc.StatusCode.PERMISSION_DENIED.value[0], denied
    assert any(b"POLICY_DENIED" in one.value for one in denied.status.details), denied

    items = [{"ciphertext": result.response.ciphertext} for result in answer.results]
    answer = broker.call("DecryptBatch", items=items)
    opened = [result.response.plaintext for result in answer.results]
    assert opened == plaintexts, opened


def streamed(broker: Broker, size: int) -> None:
    """Encrypts and decrypts a stream, in chunks that are no multiple of anything."""
    messages = broker.messages
    plaintext = bytes([size % 251]) * size
    chunks = [plaintext[at : at + 100_003] for at in range(0, size, 100_003)]

    def encrypt():
        start = messages.EncryptStreamStart(
            name="keys/orders",
            encryption_context=CONTEXT,
            plaintext_length=len(plaintext),
        )
        yield messages.EncryptStreamRequest(start=start)
        for chunk in chunks:
            part = messages.EncryptStreamChunk(plaintext=chunk)
            yield messages.EncryptStreamRequest(chunk=part)

    started, *sealed = broker.stub.EncryptStream(encrypt(), timeout=30)
    assert started.start.name == "tenants/acme/keys/orders", started

    def decrypt():
        start = messages.DecryptStreamStart(encryption_context=CONTEXT)
        yield messages.DecryptStreamRequest(start=start)
        for answer in sealed:
            part = messages.DecryptStreamChunk(
                ciphertext=answer.chunk.ciphertext,
                ciphertext_crc32c=answer.chunk.ciphertext_crc32c,
            )
            yield messages.DecryptStreamRequest(chunk=part)

    started, *opened = broker.stub.DecryptStream(decrypt(), timeout=30)
    assert started.start.used_primary, started
    assert b"".join(answer.chunk.plaintext for answer in opened) == plaintext


def main() -> None:
    protos, target, authority, *files = sys.argv[1:]
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as out:
        messages, services = generate(protos, out)
        with channel(target, authority, files) as connected:
            broker = Broker(messages, services.KeyBrokerServiceStub(connected))
            bound(broker)
            batch(broker)
            for size in job["sizes"]:
                sized(broker, size)
                streamed(broker, size)
            streamed(broker, 3 << 20)


if __name__ == "__main__":
    main()
