"""Encrypts and decrypts through `keybroker dev`.

    pip install grpcio grpcio-tools
    python3 client.py localhost:PORT
"""

import pathlib
import sys

import grpc

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE / "proto"))
PROTO = "keybroker/v1/key_broker.proto"
messages, services = grpc.protos_and_services(PROTO)

credentials = grpc.ssl_channel_credentials(
    root_certificates=(HERE / "ca.pem").read_bytes(),
    private_key=(HERE / "acme.key").read_bytes(),
    certificate_chain=(HERE / "acme.pem").read_bytes(),
)
with grpc.secure_channel(sys.argv[1], credentials) as channel:
    broker = services.KeyBrokerServiceStub(channel)
    sealed = broker.Encrypt(
        messages.EncryptRequest(
            name="keys/orders",
            plaintext=b"attack at dawn",
            encryption_context={"region": "eu"},
        ),
        timeout=2,
    )
    print(f"{len(sealed.ciphertext)} bytes under {sealed.key_version}")
    opened = broker.Decrypt(
        messages.DecryptRequest(
            ciphertext=sealed.ciphertext,
            encryption_context={"region": "eu"},
        ),
        timeout=2,
    )
    print(opened.plaintext.decode())
