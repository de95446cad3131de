// A client on grpc-js: encrypts and decrypts through a broker.
//
// Usage: node client.js PROTO_FOLDER TARGET AUTHORITY [CA CERTIFICATE KEY] < JOB
//
// The same as tests/python/client.py: TARGET is a gRPC target; AUTHORITY becomes the channel's
// `grpc.default_authority`, or, with certificates, the server's name; empty, it is left out. JOB is
// JSON, {"sizes": [bytes of plaintext that make a round trip]}.

"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const CONTRACT = "keybroker/v1/key_broker.proto";
const CONTEXT = { purpose: "test" };

function connect(protos, target, authority, files) {
  const contract = loader.loadSync(CONTRACT, { includeDirs: [protos], keepCase: true, defaults: true });
  const { KeyBrokerService } = grpc.loadPackageDefinition(contract).keybroker.v1;
  if (files.length === 0) {
    const options = authority ? { "grpc.default_authority": authority } : {};
    return new KeyBrokerService(target, grpc.credentials.createInsecure(), options);
  }
  const [ca, certificate, key] = files.map((file) => fs.readFileSync(file));
  const credentials = grpc.credentials.createSsl(ca, key, certificate);
  const options = authority ? { "grpc.ssl_target_name_override": authority } : {};
  return new KeyBrokerService(target, credentials, options);
}

// Calls a unary method by its name, with fields as the contract names them.
function call(broker, method, fields) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + 10_000;
    broker[method](fields, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function bound(broker) {
  const plaintext = Buffer.from(Array.from({ length: 1024 }, (_, n) => n % 256));
  const sealed = await call(broker, "Encrypt", {
    name: "keys/orders",
    plaintext,
    encryption_context: CONTEXT,
    associated_data: Buffer.from("record 42"),
  });
  assert.equal(sealed.name, "tenants/acme/keys/orders");
  assert.ok(!sealed.ciphertext.includes(plaintext));

  const request = {
    ciphertext: sealed.ciphertext,
    encryption_context: CONTEXT,
    associated_data: Buffer.from("record 42"),
    ciphertext_crc32c: sealed.ciphertext_crc32c,
  };
  const opened = await call(broker, "Decrypt", request);
  assert.ok(opened.plaintext.equals(plaintext));
  assert.ok(opened.verified_ciphertext_crc32c);

  request.associated_data = Buffer.from("record 43");
  await assert.rejects(call(broker, "Decrypt", request), (error) => {
    assert.equal(error.code, grpc.status.INVALID_ARGUMENT);
    const [details] = error.metadata.get("grpc-status-details-bin");
    assert.ok(details.includes("CIPHERTEXT_INVALID"));
    return true;
  });
}

async function sized(broker, size) {
  const plaintext = Buffer.alloc(size, size % 251);
  const { ciphertext } = await call(broker, "Encrypt", { name: "keys/orders", plaintext });
  const opened = await call(broker, "Decrypt", { ciphertext });
  assert.ok(opened.plaintext.equals(plaintext), `${size} bytes`);
}

async function main() {
  const [protos, target, authority, ...files] = process.argv.slice(2);
  const job = JSON.parse(fs.readFileSync(0, "utf8"));
  const broker = connect(protos, target, authority, files);
  await bound(broker);
  for (const size of job.sizes) {
    await sized(broker, size);
  }
  broker.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
