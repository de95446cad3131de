//! Nothing that a server writes or answers shows a secret, however much it is asked to log.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use keybroker::crypto::random;
use keybroker::grpc::pb;
use keybroker::kms::Arn;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use tonic::IntoRequest as _;
use tonic::Response;
use tonic::Status;

use super::house::House;
use super::house::KEYBROKER;
use super::scan::Secrets;
use super::site::Running;
use crate::harness::Client;
use crate::harness::Connection;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::framed;
use crate::harness::rpcs;
use crate::support::collector::Collector;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::http1;

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_logs_records_metrics_spans_or_errors() {
    let mut canaries = Canaries::new();
    let kms = FakeKms::start().await;
    let keys = KEYS.map(|id| (id, kms.key("eu-central-1")));
    let house = House::new(&keys[0].1);
    house.use_kms(&kms);
    let listen = "[listen]\nadmin = \"127.0.0.1:0\"";
    house.site.edit("keybroker.toml", "[listen]", listen);
    let fixed = canaries.text("a pair of the tenant");
    let mut tenants = format!("[[tenant]]\nid = \"acme\"\ncontext = {{ stage = \"{fixed}\" }}\n");
    for (id, arn) in &keys {
        // Of the locked one, the caller is no user.
        let list = if *id == "locked" {
            "administrators"
        } else {
            "users"
        };
        tenants +=
            &format!("[[tenant.key]]\nid = \"{id}\"\nkms = \"{arn}\"\n{list} = [\"{WEB}\"]\n");
    }
    house.site.write("tenants.toml", &tenants);
    let served = fs::read(house.site.path("server.key")).unwrap();
    canaries.private_key(
        "the server's key",
        &PrivateKeyDer::from_pem_slice(&served).unwrap(),
    );
    let identity = house.authority.client(WEB);
    canaries.private_key("the client's key", &identity.key());

    let collector = Collector::start().await;
    let header = format!("x-token={}", canaries.text("the collector's token"));
    let mut command = house.equip(Command::new(KEYBROKER));
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .env("OTEL_EXPORTER_OTLP_HEADERS", header)
        .env("OTEL_METRICS_EXPORTER", "otlp")
        .env("RUST_LOG", LOUD)
        .env("AWS_SECRET_ACCESS_KEY", canaries.text("the secret key"))
        .env("AWS_SESSION_TOKEN", canaries.text("the session token"));
    let out = File::create(house.site.path("out")).unwrap();
    let server = Running::logging_beside(command, out);
    let connection = house.connect_as(&server, &identity).await;
    let admin = server.await_line("serving metrics and readiness in plain text address=");
    let admin: SocketAddr = admin.parse().unwrap();

    let mut answers = Answers::default();
    let mut client = connection.client();
    let opening = succeed(&mut client, &mut canaries, &mut answers).await;
    be_refused(&connection, opening, &mut canaries, &mut answers).await;
    meet_faults_of_kms(&mut client, (&kms, &keys), &mut canaries, &mut answers).await;
    reload_broken_files(&house, &server, &fixed);

    for path in ["/metrics", "/readyz"] {
        let answer = http1::get(admin, path).await;
        assert!(!answer.body.is_empty());
        answers.0.extend(answer.body.as_bytes());
    }
    drop(client);
    connection.cut();
    let (code, log) = server.finish();
    assert_eq!(code, Some(0));
    for key in kms.plaintexts() {
        canaries.add("a data key", &key);
    }
    let audit = fs::read(house.site.path("audit.jsonl")).unwrap();
    let out = fs::read(house.site.path("out")).unwrap();

    let places = [
        ("log", &log),
        ("output", &out),
        ("audit", &audit),
        ("answers", &answers.0),
        ("spans and metrics", &collector.bytes()),
    ];
    let leaks = places.map(|(place, bytes)| canaries.find_in(bytes, place));
    assert!(leaks.concat().is_empty(), "{leaks:#?}");
    // What may be there is: the search has seen all that it should.
    let holds = |bytes: &[u8], mark: &str| {
        let mut windows = bytes.windows(mark.len());
        windows.any(|window| window == mark.as_bytes())
    };
    for mark in [
        "aws-crypto-a", // the name of a pair
        "tenants.toml",
        "received frame=Headers", // h2
        "checkout waiting",       // the client of KMS
    ] {
        assert!(holds(&log, mark), "no {mark} in the log");
    }
    for mark in ["keys/orders", PLACE, "ReEncrypt"] {
        assert!(holds(&audit, mark), "no {mark} in the records");
    }
    for mark in ["CIPHERTEXT_INVALID", "stage", "keybroker_build_info"] {
        assert!(holds(&answers.0, mark), "no {mark} in the answers");
    }
    for mark in ["try_attempt", "orchestrator", "invoke{"] {
        assert!(!holds(&log, mark), "{mark} is the AWS SDK's");
    }
    for mark in [
        "keybroker.v1.KeyBrokerService/ReEncrypt",
        "tenants/acme/keys/orders",
        "KMS/GenerateDataKey",
        "keybroker_kms_requests",
    ] {
        assert!(
            holds(&collector.bytes(), mark),
            "no {mark} in the telemetry"
        );
    }
    for planted in [&log, &audit, &answers.0, &collector.bytes()] {
        let planted = [planted, fixed.as_bytes()].concat();
        assert!(!canaries.find_in(&planted, "planted").is_empty());
    }
}

/// Makes every call with success; the Decrypt.
async fn succeed(
    client: &mut Client,
    canaries: &mut Canaries,
    answers: &mut Answers,
) -> pb::DecryptRequest {
    let sealing = canaries.encrypt("orders", "encrypt");
    let sealed = client.encrypt(sealing.clone()).await.unwrap();
    let sealed = answers.good(sealed).ciphertext;
    let opening = pb::DecryptRequest {
        name: sealing.name,
        ciphertext: sealed.clone(),
        encryption_context: sealing.encryption_context,
        associated_data: sealing.associated_data,
        ..Default::default()
    };
    answers.good(client.decrypt(opening.clone()).await.unwrap());
    let items = vec![canaries.encrypt("orders", "encrypt among others")];
    let sealing = pb::EncryptBatchRequest { items };
    answers.good(client.encrypt_batch(sealing).await.unwrap());
    let items = vec![opening.clone()];
    let several = pb::DecryptBatchRequest { items };
    answers.good(client.decrypt_batch(several).await.unwrap());
    let moving = pb::ReEncryptRequest {
        source_name: opening.name.clone(),
        ciphertext: sealed.clone(),
        source_encryption_context: opening.encryption_context.clone(),
        source_associated_data: opening.associated_data.clone(),
        destination_name: opening.name.clone(),
        destination_encryption_context: canaries.context("another context"),
        destination_associated_data: canaries.bytes("other associated data"),
        ..Default::default()
    };
    answers.good(client.re_encrypt(moving).await.unwrap());
    let making = pb::GenerateDataKeyRequest {
        name: "keys/orders".into(),
        encryption_context: canaries.context("the context of a made key"),
        associated_data: canaries.bytes("the associated data of a made key"),
        ..Default::default()
    };
    let made = answers.good(client.generate_data_key(making.clone()).await.unwrap());
    canaries.add("a made key", &made.plaintext);
    let withholding = pb::GenerateDataKeyWithoutPlaintextRequest {
        name: making.name,
        encryption_context: making.encryption_context.clone(),
        associated_data: making.associated_data.clone(),
        ..Default::default()
    };
    let withheld = client
        .generate_data_key_without_plaintext(withholding)
        .await;
    let withheld = answers.good(withheld.unwrap()).ciphertext;
    let revealing = pb::DecryptRequest {
        ciphertext: withheld,
        encryption_context: making.encryption_context,
        associated_data: making.associated_data,
        ..Default::default()
    };
    let revealed = answers.good(client.decrypt(revealing).await.unwrap());
    canaries.add("a withheld key", &revealed.plaintext);
    let request = pb::GenerateRandomRequest {
        number_of_bytes: 48,
    };
    let random = answers.good(client.generate_random(request).await.unwrap());
    canaries.add("random bytes", &random.plaintext);
    stream(client, canaries, answers).await;
    let ciphertext = sealed.clone();
    for rpc in ["DescribeKey", "ListKeys"] {
        let called = rpcs::call(client, rpc, "keys/orders", &ciphertext).await;
        called.unwrap();
    }
    assert_eq!(rpcs::names().len(), 12, "one is not called here");
    opening
}

/// Encrypts a stream, decrypts it, and breaks off another.
async fn stream(client: &mut Client, canaries: &mut Canaries, answers: &mut Answers) {
    use pb::encrypt_stream_response::Part;
    let start = pb::EncryptStreamStart {
        encryption_context: canaries.context("the context of a stream"),
        associated_data: canaries.bytes("the associated data of a stream"),
        ..rpcs::encrypt_start("keys/orders")
    };
    let plaintext = canaries.bytes("the plaintext of a stream");
    let parts = rpcs::encrypt_parts(start.clone(), vec![plaintext; 200]);
    let sealed = client.encrypt_stream(futures_util::stream::iter(parts));
    let mut sealed = answers.good(sealed.await.unwrap());
    let mut message = Vec::new();
    while let Some(answer) = sealed.message().await.unwrap() {
        answers.add(&answer);
        match answer.part.unwrap() {
            Part::Start(_) => {}
            Part::Chunk(chunk) => message.extend(chunk.ciphertext),
        }
    }
    let start = pb::DecryptStreamStart {
        encryption_context: start.encryption_context,
        associated_data: start.associated_data,
        ..Default::default()
    };
    let whole = Bytes::from(message);
    for message in [whole.clone(), whole.slice(..whole.len() - 1)] {
        let good = message == whole;
        let parts = rpcs::decrypt_parts(start.clone(), [message]);
        let opened = client.decrypt_stream(futures_util::stream::iter(parts));
        let mut opened = answers.good(opened.await.unwrap());
        let ended = loop {
            match opened.message().await {
                Ok(Some(answer)) => answers.add(&answer),
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            }
        };
        match good {
            true => ended.unwrap(),
            false => answers.bad("CIPHERTEXT_INVALID", ended),
        }
    }
}

/// Makes the calls that the broker refuses; `opening` is one that it serves.
async fn be_refused(
    connection: &Connection,
    opening: pb::DecryptRequest,
    canaries: &mut Canaries,
    answers: &mut Answers,
) {
    let mut client = connection.client();
    let sealed = opening.ciphertext.clone();
    let moving = pb::ReEncryptRequest {
        source_name: opening.name.clone(),
        ciphertext: sealed.clone(),
        source_encryption_context: opening.encryption_context.clone(),
        destination_name: opening.name.clone(),
        ..Default::default()
    };
    for key in ["locked", "absent"] {
        let request = canaries.encrypt(key, "denied");
        answers.bad("POLICY_DENIED", client.encrypt(request).await);
    }
    let mut damaged = sealed.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let refused = [
        pb::DecryptRequest {
            ciphertext: damaged.into(),
            ..opening.clone()
        },
        pb::DecryptRequest {
            ciphertext: canaries.bytes("no ciphertext"),
            ..opening.clone()
        },
        pb::DecryptRequest {
            encryption_context: canaries.context("a wrong context"),
            ..opening.clone()
        },
        pb::DecryptRequest {
            associated_data: canaries.bytes("wrong associated data"),
            ..opening.clone()
        },
    ];
    for request in refused {
        answers.bad("CIPHERTEXT_INVALID", client.decrypt(request).await);
    }
    let request = pb::ReEncryptRequest {
        source_associated_data: canaries.bytes("wrong associated data of a source"),
        ..moving
    };
    answers.bad("CIPHERTEXT_INVALID", client.re_encrypt(request).await);
    let request = pb::EncryptRequest {
        plaintext_crc32c: Some(0),
        ..canaries.encrypt("orders", "miscounted")
    };
    answers.bad("CHECKSUM_MISMATCH", client.encrypt(request).await);
    let long = canaries.bytes("a long plaintext").repeat(22_000);
    let request = rpcs::encrypt("keys/orders", long);
    answers.bad("PLAINTEXT_TOO_LARGE", client.encrypt(request).await);
    for (name, value) in [
        ("stage", canaries.text("a fixed pair")),
        ("aws-crypto-x", canaries.text("a reserved pair")),
        ("wide", canaries.text("a wide pair").repeat(100)),
    ] {
        let request = pb::EncryptRequest {
            encryption_context: rpcs::pairs([(name, &value)]),
            ..rpcs::encrypt("keys/orders", "x")
        };
        answers.bad("CONTEXT_INVALID", client.encrypt(request).await);
    }
    // What stands in the wrong field, and what is in none.
    let request = rpcs::encrypt(&canaries.text("a plaintext as a name"), "x");
    answers.bad("FIELD_INVALID", client.encrypt(request).await);
    let request = pb::ListKeysRequest {
        parent: canaries.text("a plaintext as a parent"),
        ..Default::default()
    };
    answers.bad("FIELD_INVALID", client.list_keys(request).await);
    let request = pb::ListKeysRequest {
        page_token: canaries.text("a plaintext as a page") + "!",
        ..Default::default()
    };
    answers.bad("FIELD_INVALID", client.list_keys(request).await);
    let path = "/keybroker.v1.KeyBrokerService/Encrypt";
    let garbage = canaries.bytes("an undecodable body");
    let mut torn = prost::Message::encode_to_vec(&canaries.encrypt("orders", "torn"));
    torn.truncate(torn.len() - 3);
    for body in [framed(&[&[0xff], garbage.as_ref()].concat()), framed(&torn)] {
        let answer = connection.wire.send(path, &[], body).await;
        answers.add(&answer.head);
        answers.0.extend(&answer.body);
        answers.bad("REQUEST_MALFORMED", Err::<(), _>(answer.status));
    }
}

/// Makes the calls that fail for what KMS answers.
async fn meet_faults_of_kms(
    client: &mut Client,
    (kms, keys): (&FakeKms, &[(&str, Arn)]),
    canaries: &mut Canaries,
    answers: &mut Answers,
) {
    let arn = |id| &keys.iter().find(|(one, _)| *one == id).unwrap().1;
    let generate = Operation::GenerateDataKey;
    let said = canaries.text("an answer of KMS");
    let sentence = format!("{{\"Plaintext\":\"{said}\",\"CiphertextBlob\":\"{said}\"");
    let echo = Fault::EchoContext("AccessDeniedException");
    for (key, fault, reason) in [
        ("refused", echo, "KMS_ACCESS_DENIED"),
        (
            "unknown",
            Fault::EchoContext("NotFoundException"),
            "KMS_ACCESS_DENIED",
        ),
        (
            "stateless",
            Fault::EchoContext("KMSInvalidStateException"),
            "KEY_PENDING_DELETION",
        ),
        ("strange", Fault::EchoContext("ANewException"), "INTERNAL"),
        (
            "invalid",
            Fault::EchoContext("ValidationException"),
            "INTERNAL",
        ),
        (
            "down",
            Fault::EchoContext("KMSInternalException"),
            "KMS_UNAVAILABLE",
        ),
        (
            "unsigned",
            Fault::EchoHead("InvalidSignatureException"),
            "KMS_UNAVAILABLE",
        ),
        ("garbled", Fault::Body(200, sentence.clone()), "INTERNAL"),
        (
            "paged",
            Fault::Body(502, sentence.clone()),
            "KMS_UNAVAILABLE",
        ),
        (
            "short",
            Fault::Body(200, format!("{sentence}}}")),
            "INTERNAL",
        ),
    ] {
        kms.fail_key(arn(key), generate, fault);
        let request = canaries.encrypt(key, reason);
        answers.bad(reason, client.encrypt(request).await);
    }
    let held = kms.hold();
    let mut request = canaries.encrypt("orders", "late").into_request();
    request.set_timeout(Duration::from_millis(100));
    answers.bad("DEADLINE_EXCEEDED", client.encrypt(request).await);
    drop(held);
}

/// Has the server read files that are wrong where secrets and the value `fixed` are.
fn reload_broken_files(house: &House, server: &Running, fixed: &str) {
    let tenants = fs::read_to_string(house.site.path("tenants.toml")).unwrap();
    let key = fs::read_to_string(house.site.path("server.key")).unwrap();
    let pair = format!("stage = \"{fixed}\"");
    for broken in [
        format!("stage = \"{fixed}"),
        format!("stage = [\"{fixed}\"]"),
        format!("stage = \"{}\"", fixed.repeat(100)),
        format!("{pair}, stage = \"{fixed}\""),
        format!("stage = {fixed}"),
        format!("\"aws-crypto-a\" = \"{fixed}\""),
    ] {
        let text = tenants.replacen(&pair, &broken, 1);
        house.site.write("tenants.toml", &text);
        server.await_line("configuration not reloaded");
    }
    let text = tenants.replacen(&format!("{{ {pair} }}"), &format!("\"{fixed}\""), 1);
    house.site.write("tenants.toml", &text);
    server.await_line("configuration not reloaded");
    house.site.write("tenants.toml", &tenants);
    for broken in [
        key.replace("PRIVATE KEY", "CERTIFICATE"),
        key.replace('-', ""),
    ] {
        house.site.write("server.key", &broken);
        server.signal("HUP");
        server.await_line("configuration not reloaded");
    }
}

/// Secrets to look for, each random and of a name of its own.
struct Canaries {
    secrets: Secrets,
    names: Vec<String>,
}

impl Canaries {
    fn new() -> Self {
        Self {
            secrets: Secrets::new(),
            names: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, secret: &[u8]) {
        self.secrets.add(secret);
        self.names.push(name.to_owned());
    }

    fn bytes(&mut self, name: &str) -> Bytes {
        let mut bytes = vec![0; 48];
        random::fill(&mut bytes).unwrap();
        self.add(name, &bytes);
        bytes.into()
    }

    fn text(&mut self, name: &str) -> String {
        let mut bytes = [0; 24];
        random::fill(&mut bytes).unwrap();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.add(name, text.as_bytes());
        text
    }

    fn context(&mut self, name: &str) -> BTreeMap<String, String> {
        rpcs::pairs([(PLACE, &self.text(name))])
    }

    fn encrypt(&mut self, key: &str, what: &str) -> pb::EncryptRequest {
        pb::EncryptRequest {
            name: format!("keys/{key}"),
            plaintext: self.bytes(&format!("the plaintext of {key}, {what}")),
            encryption_context: self.context(&format!("the context of {key}, {what}")),
            associated_data: self.bytes(&format!("the associated data of {key}, {what}")),
            ..Default::default()
        }
    }

    /// A key of P-256, whose secret is a number of 32 bytes.
    fn private_key(&mut self, name: &str, key: &PrivateKeyDer<'_>) {
        let der = key.secret_der();
        let mark = [2, 1, 1, 4, 32];
        let at = der.windows(mark.len()).position(|window| window == mark);
        let at = at.unwrap() + mark.len();
        self.add(name, &der[at..at + 32]);
    }

    /// Which of them, and in which form, is in `bytes`, with what stands around it.
    fn find_in(&self, bytes: &[u8], place: &str) -> Vec<String> {
        let found = self.secrets.find_in_text(bytes, place);
        let around = |address: u64| {
            let at = usize::try_from(address).unwrap();
            let around = &bytes[at.saturating_sub(200)..bytes.len().min(at + 80)];
            String::from_utf8_lossy(around).into_owned()
        };
        found
            .iter()
            .map(|found| {
                let name = &self.names[found.secret];
                format!("{place}: {name}, {}: {}", found.form, around(found.address))
            })
            .collect()
    }
}

/// All that the client was told, but what it asked for.
#[derive(Default)]
struct Answers(Vec<u8>);

impl Answers {
    fn add(&mut self, shown: &impl Debug) {
        self.0.extend(format!("{shown:?}\n").bytes());
    }

    fn good<T>(&mut self, response: Response<T>) -> T {
        self.add(response.metadata());
        response.into_inner()
    }

    fn bad<T>(&mut self, reason: &str, outcome: Result<T, Status>) {
        let status = outcome.err().expect(reason);
        self.add(&status);
        self.0.extend(status.message().bytes());
        self.0.extend(status.details());
        assert_eq!(Refusal::of(&status).reason, reason, "{status:?}");
    }
}

/// All keys that are there.
const KEYS: [&str; 12] = [
    "orders",
    "locked",
    "refused",
    "unknown",
    "stateless",
    "strange",
    "invalid",
    "down",
    "unsigned",
    "garbled",
    "paged",
    "short",
];
/// The name of the callers' pairs, which may be seen.
const PLACE: &str = "place-of-canaries";
/// Everything, and what has to be asked for by name or may not be had at all.
const LOUD: &str = "trace,h2=trace,hyper_util=trace,aws_smithy_runtime::client=trace,\
    aws_sigv4=trace,aws_config::profile=trace,aws_credential_types=trace";
