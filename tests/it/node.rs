//! A program in JavaScript that we did not write: grpc-js, the gRPC of Node.js.

use std::env;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::harness::Broker;
use crate::harness::WEB;
use crate::sizes::SHORT;

#[tokio::test]
async fn a_node_client_works_over_mutual_tls() {
    let broker = Broker::start().await;
    let identity = broker.authority.client(WEB);
    let files = [
        ("ca.pem", broker.server_authority.pem()),
        ("client.pem", identity.chain_pem()),
        ("client.key", identity.key_pem()),
    ];
    let files = files.map(|(name, pem)| {
        broker.write(name, &pem);
        broker.folder().join(name).to_str().unwrap().to_owned()
    });
    client(&format!("ipv4:{}", broker.address()), "localhost", &files).await;
    assert_eq!(broker.records().len(), RECORDS);
    broker.stop().await;
}

#[tokio::test]
async fn a_node_client_works_over_a_unix_socket() {
    let mut socket = PathBuf::new();
    let broker = Broker::start().with(|setup| socket = setup.local()).await;
    // Without an authority of its own: it sends one that HTTP/2 libraries take.
    client(&format!("unix:{}", socket.display()), "", &[]).await;
    assert_eq!(broker.records().len(), RECORDS);
    broker.stop().await;
}

/// Of three calls and two batches; for each size of two calls, and of two streams with two records
/// each, which have a size more.
const RECORDS: usize = 3 + 2 + 2 * SHORT.len() + 4 * (SHORT.len() + 1);

/// Runs tests/node/client.js.
async fn client(target: &str, authority: &str, files: &[String]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let packages = packages.join("node/node_modules");
    assert!(
        packages.exists(),
        "no {}: tests/run makes it",
        packages.display()
    );
    let mut child = Command::new("node")
        .args([root.join("tests/node/client.js"), root.join("proto")])
        .args([target, authority])
        .args(files)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("NODE_PATH", packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let job = json!({ "sizes": SHORT }).to_string();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(job.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "client.js: {errors}");
}
