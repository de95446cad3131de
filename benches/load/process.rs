//! Server processes and what they leave: CPU time and audit records.

use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// A server that runs, killed when dropped.
pub struct Process {
    child: Child,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
}

/// CPU time of a process.
#[derive(Clone, Copy)]
pub struct Cpu {
    /// Its own.
    pub user: Duration,
    /// The kernel's for it.
    pub system: Duration,
}

impl Process {
    /// Starts a server that names its address on standard error.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("a server that starts").unwrap();
            match line.split_once("address=") {
                Some((_, address)) => break address.trim().parse().unwrap(),
                None => eprintln!("{line}"),
            }
        };
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("{line}");
            }
        });
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            answers,
            address,
        }
    }

    /// Sends a line to a server that answers with a number.
    pub fn ask(&mut self) -> u64 {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().parse().unwrap()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time that it has used so far.
    pub fn cpu(&self) -> Cpu {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // The second field, the name in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let spent = |n| {
            let ticks: u64 = fields.split_whitespace().nth(n).unwrap().parse().unwrap();
            Duration::from_millis(ticks * TICK_MILLIS)
        };
        Cpu {
            user: spent(11),
            system: spent(12),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The audit file, read and emptied between measurements.
pub struct Trail {
    path: PathBuf,
    /// Records seen so far.
    pub records: usize,
    /// Those among them whose call made a KMS call.
    pub kms_calls: usize,
}

impl Trail {
    /// The file at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            records: 0,
            kms_calls: 0,
        }
    }

    /// Counts what has arrived and empties the file, which would fill the disk. No call may be
    /// under way.
    pub fn drain(&mut self) {
        for line in BufReader::new(File::open(&self.path).unwrap()).lines() {
            let line = line.unwrap();
            self.records += usize::from(line.contains(r#""eventCategory":"Data""#));
            self.kms_calls += usize::from(line.contains(r#""cache":"miss""#));
        }
        let file = File::options().write(true).open(&self.path).unwrap();
        file.set_len(0).unwrap();
    }
}

/// The unit of CPU times in procfs, the same on all of Linux.
const TICK_MILLIS: u64 = 10;
