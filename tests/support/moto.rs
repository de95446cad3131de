//! moto, a KMS server that we did not write: the witness of our wire compatibility.
//!
//! It ignores key states, policies and the boundaries of encryption contexts, so it takes part in
//! no test of those.

use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use aws_config::Region;
use aws_sdk_kms::types::GrantListEntry;
use aws_sdk_kms::types::KeyUsageType;
use keybroker::kms::Arn;
use keybroker::kms::aws::Aws;
use keybroker::kms::aws::Config;
use tokio::io::AsyncBufReadExt;
use tokio::io::BufReader;
use tokio::process::Child;
use tokio::process::Command;

use super::fake_kms::BROKER;
use super::fake_kms::sdk_config;

/// A running `moto_server`. Killed when dropped.
pub struct Moto {
    endpoint: String,
    _server: Child,
}

impl Moto {
    /// Starts the server and returns once it listens.
    pub async fn start() -> Self {
        let program = venv().join("bin/moto_server");
        assert!(
            program.exists(),
            "{} is missing: tests/run installs it",
            program.display()
        );
        let mut server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("moto_server starts");
        let mut lines = BufReader::new(server.stderr.take().expect("piped")).lines();
        let mut said = Vec::new();
        // The line that names the port comes when the socket listens; the end of the output, when
        // the server has failed.
        let endpoint = loop {
            let line = lines.next_line().await.expect("readable output");
            let line = line.unwrap_or_else(|| panic!("moto_server ended: {said:?}"));
            if let Some((_, url)) = line.split_once("Running on ") {
                break url.trim().to_owned();
            }
            said.push(line);
        };
        // It writes a line for each request, and would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self {
            endpoint,
            _server: server,
        }
    }

    /// Where it listens, for clients of others.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Our client, aimed at this server.
    pub fn aws(&self) -> Aws {
        let config = Config {
            endpoint: Some(self.endpoint.clone()),
            ..Config::default()
        };
        Aws::new(&sdk_config(BROKER), config).expect("a valid configuration")
    }

    /// Makes a symmetric key in `region`.
    pub async fn key(&self, region: &str) -> Arn {
        let answer = self
            .client(region)
            .create_key()
            // Left out, it would be null in the key's description, which AWS's never is.
            .key_usage(KeyUsageType::EncryptDecrypt)
            .send()
            .await
            .expect("a new key");
        let key = answer.key_metadata().and_then(|key| key.arn());
        key.expect("an ARN").parse().expect("a valid ARN")
    }

    /// The living grants of `key`.
    pub async fn grants(&self, key: &Arn) -> Vec<GrantListEntry> {
        let listing = self.client(key.region()).list_grants().key_id(key.as_str());
        let answer = listing.send().await.expect("a list");
        answer.grants.unwrap_or_default()
    }

    /// A client of nobody's but the tests'.
    fn client(&self, region: &str) -> aws_sdk_kms::Client {
        let plan = aws_sdk_kms::config::Builder::from(&sdk_config(BROKER))
            .region(Region::new(region.to_owned()))
            .endpoint_url(&self.endpoint);
        aws_sdk_kms::Client::from_conf(plan.build())
    }
}

/// The Python environment of the tests, made from `tests/python/requirements.txt`.
pub fn venv() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    target.expect("a target folder").join("venv")
}
