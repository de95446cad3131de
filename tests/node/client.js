// A client on grpc-js: encrypts and decrypts through a broker.
//
// Usage: node client.js PROTO_FOLDER TARGET AUTHORITY [CA CERTIFICATE KEY] < JOB
//
// The same as tests/python/client.py: TARGET is a gRPC target; AUTHORITY becomes the channel's
// `grpc.default_authority`, or, with certificates, the server's name; empty, it is left out. JOB is
// JSON, {"sizes": [bytes of plaintext that make a round trip, in a call and in a stream]}.

"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const CONTRACT = "keybroker/v1/key_broker.proto";
const CONTEXT = { purpose: "test" };
// Bytes of plaintext in a message of a stream.
const CHUNK = 64 << 10;

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

async function batch(broker) {
  const plaintexts = [0, 1, 2].map((n) => Buffer.alloc(n + 1, n));
  const items = plaintexts.map((plaintext) => ({ name: "keys/orders", plaintext }));
  items.splice(1, 0, { name: "keys/absent", plaintext: Buffer.from("x") });
  const sealed = await call(broker, "EncryptBatch", { items });
  const [denied] = sealed.results.splice(1, 1);
  assert.ok(!denied.response);
  assert.equal(denied.status.code, grpc.status.PERMISSION_DENIED);

  const ciphertexts = sealed.results.map(({ response }) => ({ ciphertext: response.ciphertext }));
  const opened = await call(broker, "DecryptBatch", { items: ciphertexts });
  assert.deepEqual(opened.results.map(({ response }) => response.plaintext), plaintexts);
}

// Sends `start` and `chunks`, as fast as they are taken, and returns the chunks that come back.
function stream(broker, method, start, chunks) {
  return new Promise((resolve, reject) => {
    const call = broker[method]({ deadline: Date.now() + 10_000 });
    const answers = [];
    call.on("data", (answer) => answers.push(answer));
    call.on("error", reject);
    call.on("end", () => {
      const [first, ...rest] = answers;
      assert.equal(first.start.name, "tenants/acme/keys/orders");
      resolve(rest.map((answer) => answer.chunk));
    });
    const requests = [{ start }, ...chunks.map((chunk) => ({ chunk }))];
    const send = () => {
      while (requests.length > 0) {
        if (!call.write(requests.shift())) {
          call.once("drain", send);
          return;
        }
      }
      call.end();
    };
    send();
  });
}

async function streamed(broker, size) {
  const plaintext = Buffer.alloc(size, size % 251);
  const chunks = [];
  for (let at = 0; at < size; at += CHUNK) {
    chunks.push({ plaintext: plaintext.subarray(at, at + CHUNK) });
  }
  const start = { name: "keys/orders", plaintext_length: size };
  const sealed = await stream(broker, "EncryptStream", start, chunks);
  const ciphertexts = sealed.map(({ ciphertext }) => ({ ciphertext }));
  const opened = await stream(broker, "DecryptStream", {}, ciphertexts);
  const whole = Buffer.concat(opened.map((chunk) => chunk.plaintext));
  assert.ok(whole.equals(plaintext), `${size} bytes in a stream`);
}

async function main() {
  const [protos, target, authority, ...files] = process.argv.slice(2);
  const job = JSON.parse(fs.readFileSync(0, "utf8"));
  const broker = connect(protos, target, authority, files);
  await bound(broker);
  await batch(broker);
  await streamed(broker, 0);
  for (const size of job.sizes) {
    await sized(broker, size);
    await streamed(broker, size);
  }
  broker.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
