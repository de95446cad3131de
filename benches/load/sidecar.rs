//! What `keybroker serve` takes as a sidecar: one tenant, a Unix socket, the embedded keyring.

use std::fs;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use crate::calls;
use crate::client::Client;
use crate::round::median;
use crate::stage::Stage;

/// What was found.
pub struct Sidecar {
    /// From its start to the answer of the first Encrypt, in milliseconds: the median.
    pub start_ms: f64,
    /// Memory that is resident when it idles after some calls, in MiB: the median.
    pub idle_rss_mib: f64,
}

/// Starts one after the other.
pub async fn measure() -> Sidecar {
    let stage = Stage::sidecar();
    let mut starts = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..STARTS {
        // A dead process's socket would refuse us all the same.
        let _ = fs::remove_file(stage.socket());
        let began = Instant::now();
        let mut sidecar = Running::start(&stage);
        let client = sidecar.client(&stage).await;
        let encrypt = calls::encrypt(SIZE);
        client.call(&encrypt).await;
        starts.push(began.elapsed().as_secs_f64() * 1e3);
        for _ in 0..SOME_CALLS {
            client.call(&encrypt).await;
        }
        memory.push(sidecar.resident_mib());
    }
    Sidecar {
        start_ms: median(starts.into_iter()),
        idle_rss_mib: median(memory.into_iter()),
    }
}

/// A sidecar, killed when dropped.
struct Running(Child);

impl Running {
    fn start(stage: &Stage) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_keybroker"))
            .args(["serve", "--config"])
            .arg(stage.config())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// Connects as soon as it listens.
    async fn client(&mut self, stage: &Stage) -> Client {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        loop {
            if let Ok(client) = Client::local(stage.socket()).await {
                return client;
            }
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none(), "the sidecar does not start");
            ticks.tick().await;
        }
    }

    fn resident_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SIZE: usize = 1 << 10;
const STARTS: usize = 11;
const SOME_CALLS: usize = 20;
