//! Programs in Python that we did not write: gRPC's C core and the AWS Encryption SDK, both
//! against a broker over a KMS server that is not ours either.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use keybroker::grpc::listener::UnixConfig;
use keybroker::grpc::pb;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::harness::Broker;
use crate::harness::RULES;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt_start;
use crate::sizes::SHORT;
use crate::streams::decrypt_whole;
use crate::streams::encrypt_whole;
use crate::support::moto::Moto;
use crate::support::moto::venv;

const REGION: &str = "eu-central-1";
const FAR: &str = "us-east-1";

#[tokio::test]
async fn a_python_client_works_over_mutual_tls() {
    let moto = Moto::start().await;
    let (broker, _) = broker(&moto).await;
    let identity = broker.authority.client(WEB);
    for (name, pem) in [
        ("ca.pem", broker.server_authority.pem()),
        ("client.pem", identity.chain_pem()),
        ("client.key", identity.key_pem()),
    ] {
        broker.write(name, &pem);
    }
    let target = format!("ipv4:{}", broker.address());
    let file = |name| broker.folder().join(name).to_str().unwrap().to_owned();
    let files = [file("ca.pem"), file("client.pem"), file("client.key")];
    client(&target, "localhost", &files).await;
    // Five calls; for each size two, and two streams with two records each, which have a size more.
    let streams = 4 * (SHORT.len() + 1);
    assert_eq!(broker.records().len(), 5 + 2 * SHORT.len() + streams);
    broker.stop().await;
}

#[tokio::test]
async fn a_python_client_works_over_a_unix_socket() {
    let moto = Moto::start().await;
    let (broker, socket) = broker(&moto).await;
    // C core sends the path as the authority, which HTTP/2 libraries refuse, unless told otherwise.
    client(&format!("unix:{socket}"), "localhost", &[]).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_python_client_works_over_an_abstract_socket() {
    let moto = Moto::start().await;
    let (broker, socket) = broker(&moto).await;
    client(
        &format!("unix-abstract:{}", abstract_name(&socket)),
        "",
        &[],
    )
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn the_aws_encryption_sdk_reads_what_the_broker_wrote() {
    let moto = Moto::start().await;
    let (broker, _) = broker(&moto).await;
    let mut web = broker.caller(WEB).await;
    let plaintext = vec![7; 10_000];
    let sealed = web
        .encrypt(pb::EncryptRequest {
            name: "keys/orders".into(),
            plaintext: plaintext.clone().into(),
            encryption_context: own_pairs(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();

    let (output, context) = esdk("decrypt", &moto, &key(&mut web).await, &sealed.ciphertext).await;

    assert_eq!(output, plaintext);
    assert_eq!(context, json!(context_of_orders()));
    broker.stop().await;
}

#[tokio::test]
async fn the_broker_reads_what_the_aws_encryption_sdk_wrote() {
    let moto = Moto::start().await;
    let (broker, _) = broker(&moto).await;
    let mut web = broker.caller(WEB).await;
    // More than one frame of the SDK's usual 4 KiB.
    let plaintext = vec![9; 10_000];
    let (message, _) = esdk("encrypt", &moto, &key(&mut web).await, &plaintext).await;

    let request = pb::DecryptRequest {
        ciphertext: message.into(),
        encryption_context: own_pairs(),
        ..Default::default()
    };
    let opened = web.decrypt(request.clone()).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, plaintext);
    assert_eq!(opened.name, "tenants/acme/keys/orders");
    assert!(opened.used_primary);

    let others = pb::DecryptRequest {
        encryption_context: BTreeMap::new(),
        ..request
    };
    let refused = web.decrypt(others).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    broker.stop().await;
}

#[tokio::test]
async fn streams_are_the_aws_encryption_sdks_messages_too() {
    let moto = Moto::start().await;
    let (broker, _) = broker(&moto).await;
    let mut web = broker.caller(WEB).await;
    let key = key(&mut web).await;
    // The last one is of whole frames, behind which the SDK writes an empty one.
    for size in [0, 10_000, 40_960] {
        let plaintext = Bytes::from(vec![7; size]);
        let start = pb::EncryptStreamStart {
            encryption_context: own_pairs(),
            ..encrypt_start("keys/orders")
        };
        let sealed = encrypt_whole(&mut web, start, &plaintext, 999)
            .await
            .whole();
        let (output, context) = esdk("decrypt", &moto, &key, &sealed).await;
        assert_eq!(output, plaintext);
        assert_eq!(context, json!(context_of_orders()));

        let (message, _) = esdk("encrypt", &moto, &key, &plaintext).await;
        let start = pb::DecryptStreamStart {
            encryption_context: own_pairs(),
            ..Default::default()
        };
        let opened = decrypt_whole(&mut web, start, &message.into(), 999).await;
        assert_eq!(opened.whole(), plaintext);
    }
    broker.stop().await;
}

#[tokio::test]
async fn either_of_two_kms_keys_alone_lets_the_aws_encryption_sdk_read() {
    let moto = Moto::start().await;
    let keys = [(REGION, moto.key(REGION).await), (FAR, moto.key(FAR).await)];
    let [near, far] = keys.each_ref().map(|(_, arn)| arn);
    let kms = format!("{{ key = \"{near}\", additional_key = \"{far}\" }}");
    let (broker, _) = broker_with(&moto, &kms).await;
    let mut web = broker.caller(WEB).await;
    let sealed = web
        .encrypt(pb::EncryptRequest {
            name: "keys/orders".into(),
            plaintext: Bytes::from_static(b"either"),
            encryption_context: own_pairs(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    for (region, arn) in &keys {
        let sdk = Sdk {
            moto: &moto,
            region,
            key: arn.as_str(),
        };
        let (output, context) = sdk.run("decrypt", &sealed.ciphertext).await;
        assert_eq!(output, b"either", "{region}");
        assert_eq!(context, json!(context_of_orders()));
    }
    broker.stop().await;
}

/// A broker whose keys are in `moto`, and the path of its Unix socket. It has an abstract name too.
async fn broker(moto: &Moto) -> (Broker, String) {
    let arn = moto.key(REGION).await;
    broker_with(moto, &format!("\"{arn}\"")).await
}

/// The same with `kms` as the tenants file has it.
async fn broker_with(moto: &Moto, kms: &str) -> (Broker, String) {
    let uid = fs::metadata("/proc/self").unwrap().uid();
    let mut socket = String::new();
    let broker = Broker::start()
        .with(|setup| {
            setup.kms = Some(Arc::new(moto.aws()));
            setup.rules =
                format!("{RULES}\n[[rule]]\nmatch = \"unix:uid={uid}\"\ntenant = \"acme\"\n");
            setup.tenants = format!(
                r#"
[[tenant]]
id = "acme"
context = {{ stage = "test" }}

[[tenant.key]]
id = "orders"
kms = {kms}
users = ["{WEB}", "unix:uid={uid}"]
"#
            );
            let path = setup.file("keybroker.sock", "");
            fs::remove_file(&path).unwrap();
            socket = path.to_str().unwrap().to_owned();
            setup.listen.unix = Some(UnixConfig {
                path,
                mode: "600".into(),
                abstract_name: Some(abstract_name(&socket)),
            });
        })
        .await;
    (broker, socket)
}

/// As unlike others' as the folder of the path.
fn abstract_name(socket: &str) -> String {
    socket.replace('/', "-")
}

/// The KMS key of `keys/orders`, as the broker tells those who may see it.
async fn key(web: &mut crate::harness::Client) -> String {
    let request = pb::DescribeKeyRequest {
        name: "keys/orders".into(),
        ..Default::default()
    };
    let described = web.describe_key(request).await.unwrap().into_inner();
    described.key.unwrap().kms_keys.remove(0)
}

/// The caller's own pairs.
fn own_pairs() -> BTreeMap<String, String> {
    BTreeMap::from([("purpose".into(), "test".into())])
}

/// With those that the broker adds.
fn context_of_orders() -> BTreeMap<String, String> {
    let added = [
        ("keybroker:tenant", "acme"),
        ("keybroker:key", "orders"),
        ("stage", "test"),
    ];
    let added = added.map(|(name, value)| (name.to_owned(), value.to_owned()));
    own_pairs().into_iter().chain(added).collect()
}

async fn client(target: &str, authority: &str, files: &[String]) {
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let arguments = [protos, target, authority].map(str::to_owned);
    let job = json!({ "sizes": SHORT }).to_string();
    python("client.py", &[&arguments, files].concat(), &job).await;
}

async fn esdk(operation: &str, moto: &Moto, key: &str, input: &[u8]) -> (Vec<u8>, Value) {
    let region = REGION;
    Sdk { moto, region, key }.run(operation, input).await
}

/// The SDK with one KMS key, and no other.
struct Sdk<'a> {
    moto: &'a Moto,
    region: &'a str,
    key: &'a str,
}

impl Sdk<'_> {
    /// What it makes of `input` with all pairs of `keys/orders`: its output, and the context that
    /// the message holds.
    async fn run(&self, operation: &str, input: &[u8]) -> (Vec<u8>, Value) {
        let job = json!({
            "endpoint": self.moto.endpoint(),
            "region": self.region,
            "key": self.key,
            "context": context_of_orders(),
            "input": BASE64_STANDARD.encode(input),
        });
        let answer = python("esdk.py", &[operation.to_owned()], &job.to_string()).await;
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        let output = BASE64_STANDARD.decode(answer["output"].as_str().unwrap());
        let mut context = answer["context"].take();
        // The SDK's own pair, of suites that sign; ours does not.
        assert!(
            context
                .as_object_mut()
                .unwrap()
                .remove("aws-crypto-public-key")
                .is_none()
        );
        (output.unwrap(), context)
    }
}

/// Runs a script of tests/python with `input`, and returns what it printed.
async fn python(script: &str, arguments: &[String], input: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let program = venv().join("bin/python");
    assert!(
        program.exists(),
        "no {}: tests/run makes it",
        program.display()
    );
    let mut child = Command::new(program)
        // Compiled files belong to nobody's tree, and proxies to the world outside.
        .args(["-B".as_ref(), folder.join(script).as_os_str()])
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
