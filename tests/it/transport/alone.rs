//! Tests that need a process to themselves: they measure memory or processor time, or use up file
//! descriptors.

use std::env;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// Whether this is the process of the one test `name` (of `module`, with `files` descriptors at
/// most). If not, runs it in such a process and fails if that fails.
pub fn alone(module: &str, name: &str, files: u32) -> bool {
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, module) = module.split_once("::").unwrap();
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -n {files}; exec \"$0\" \"$@\""))
        .arg(env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "no such test: {text}");
    false
}

/// The memory of this process that is resident, in bytes.
pub fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kibibytes: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap();
    kibibytes << 10
}

/// The processor time of this process so far; asking takes no file descriptor.
pub fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

const ALONE: &str = "KEYBROKER_TEST_ALONE";
