//! A folder with all that a production broker is configured by, and processes that run there.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use tempfile::TempDir;

use crate::support::fake_kms::BROKER;

pub(super) struct Site {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Site {
    /// Files that are good, without a keyring.
    pub(super) fn without_keyring() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let site = Self { folder, issuer };
        site.write("ca.pem", &site.issuer.pem());
        site.certify("server", 2099);
        site.write("tenants.toml", TENANTS);
        site.write("keybroker.toml", CONFIG);
        site
    }

    /// Files that are good, with a keyring that holds the key `orders`.
    pub(super) fn new() -> Self {
        let site = Self::without_keyring();
        site.good(&["keyring", "init"]);
        site.good(&["keyring", "add", "orders"]);
        site
    }

    /// The same, where whoever runs the tests is a caller of acme's and an operator, over the Unix
    /// socket.
    pub(super) fn with_operator() -> Self {
        let site = Self::new();
        let uid = uid();
        let who = format!(
            "[[identity.rule]]\nmatch = \"unix:uid={uid}\"\ntenant = \"acme\"\n\n\
             [operators]\nprincipals = [\"unix:uid={uid}\"]\n\n[kms.local]"
        );
        site.edit("keybroker.toml", "[kms.local]", &who);
        site
    }

    /// A command for the broker that serves here.
    pub(super) fn at(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.current_dir(self.path(""));
        let socket = self.path("broker.sock");
        command.env("KEYBROKER_ADDR", format!("unix:{}", socket.display()));
        command
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Replaces `old`, which must be there, in a file.
    pub(super) fn edit(&self, name: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(old), "{old} in {text}");
        self.write(name, &text.replacen(old, new, 1));
    }

    /// A new server certificate and key, good until the end of the year before `until`.
    pub(super) fn certify(&self, name: &str, until: i32) {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// Every file with its content.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.symlink_metadata().unwrap().is_file())
            .map(|path| (path.clone(), fs::read(path).unwrap_or_default()))
            .collect()
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("KEYBROKER_CONFIG", self.path("keybroker.toml"));
        command
    }

    /// A server that is told of a write for which there is no room, and keeps no records: without
    /// these there would be no answers.
    pub(super) fn serve_on_full_disks(&self) -> Running {
        self.edit("keybroker.toml", "[audit]\nfile = \"audit.jsonl\"", "");
        let command = self.command(&["serve"]);
        let set = command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        // Ignored, the signal leaves the failing write to report itself.
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "trap '' XFSZ; exec \"$0\" serve"])
            .arg(command.get_program())
            .env_clear()
            .envs(set);
        Running::logging(shell)
    }

    /// Runs to the end, successfully; what it said.
    pub(super) fn good(&self, args: &[&str]) -> String {
        good(self.command(args), b"")
    }
}

/// The user who runs the tests.
pub(super) fn uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// The group of that user.
pub(super) fn gid() -> u32 {
    fs::metadata("/proc/self").unwrap().gid()
}

/// The command, in an environment of its own.
pub(super) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keybroker"));
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// The command, which has credentials for a fake of AWS.
pub(super) fn credited(mut command: Command) -> Command {
    command
        .env("AWS_ACCESS_KEY_ID", BROKER)
        .env("AWS_SECRET_ACCESS_KEY", "no secret");
    command
}

/// Runs `command` to its end with `input`.
pub(super) fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || {
        // Some end without reading it.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panic"), "{errors}");
    output
}

/// Runs to the end, successfully; standard output as text.
pub(super) fn good(command: Command, input: &[u8]) -> String {
    String::from_utf8(good_bytes(command, input)).unwrap()
}

/// Runs to the end, successfully; standard output.
pub(super) fn good_bytes(command: Command, input: &[u8]) -> Vec<u8> {
    let shown = format!("{command:?}");
    let output = run(command, input);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {errors}");
    output.stdout
}

/// Runs to the end, which is a failure with `code`; its sentence.
pub(super) fn bad(command: Command, input: &[u8], code: i32) -> String {
    let shown = format!("{command:?}");
    let output = run(command, input);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{shown}: {errors}");
    errors
}

/// A process that runs until it is stopped, or to the end of the test.
pub(super) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Comes to everything that was read, when the stream has ended.
    reader: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Starts `command`, whose standard error is read.
    pub(super) fn logging(command: Command) -> Self {
        Self::logging_beside(command, Stdio::null())
    }

    /// Starts `command`, whose standard error is read and whose standard output goes to `out`.
    pub(super) fn logging_beside(mut command: Command, out: impl Into<Stdio>) -> Self {
        let mut child = command.stdout(out).stderr(Stdio::piped()).spawn().unwrap();
        let stream = child.stderr.take().unwrap();
        Self::reading(child, stream)
    }

    /// Starts `command`, whose standard output is read.
    pub(super) fn printing(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stream = child.stdout.take().unwrap();
        Self::reading(child, stream)
    }

    fn reading(child: Child, stream: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut all = Vec::new();
            loop {
                let start = all.len();
                if stream.read_until(b'\n', &mut all).unwrap_or_default() == 0 {
                    return all;
                }
                let line = String::from_utf8_lossy(&all[start..]);
                // Reads on when nobody listens, so that the process never waits.
                let _ = sender.send(line.trim_end_matches('\n').to_owned());
            }
        });
        Self {
            child,
            lines,
            reader: Some(reader),
        }
    }

    /// What follows `mark` in the next line that has it.
    pub(super) fn await_line(&self, mark: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => match line.split_once(mark) {
                    Some((_, rest)) => return rest.to_owned(),
                    None => seen.push(line),
                },
                Err(error) => panic!("no {mark:?}, {error}: {seen:#?}"),
            }
        }
    }

    /// From now on it writes no byte into any file, as on a full disk.
    pub(super) fn fill_disk(&self) {
        self.limit_files("0");
    }

    /// There is room again.
    pub(super) fn clear_disk(&self) {
        self.limit_files("unlimited");
    }

    fn limit_files(&self, bytes: &str) {
        let mut prlimit = Command::new("prlimit");
        let limit = format!("--fsize={bytes}:");
        prlimit.args(["--pid", &self.id().to_string(), &limit]);
        good(prlimit, b"");
    }

    /// The number of the process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal until it has ended: Rust's handler of faults lets the first one pass.
    pub(super) fn end_by(mut self, name: &str) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            self.signal(name);
        }
    }

    /// Asks it to stop, and waits until it has; its exit code.
    pub(super) fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().unwrap().code()
    }

    /// The same, and all that it wrote to the stream that is read.
    pub(super) fn finish(mut self) -> (Option<i32>, Vec<u8>) {
        self.signal("TERM");
        let code = self.child.wait().unwrap().code();
        (code, self.reader.take().unwrap().join().unwrap())
    }

    /// Ends it as a crash does.
    pub(super) fn crash(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether anything is there, a dangling link too.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// For a line that comes at all.
const PATIENCE: Duration = Duration::from_secs(60);

const TENANTS: &str = r#"[[tenant]]
id = "acme"
context = { plan = "gold" }

[[tenant.key]]
id = "orders"
kms = "local:orders"
users = ["spiffe://prod.example/tenant/acme/sa/shop"]
"#;

const CONFIG: &str = r#"tenants_file = "tenants.toml"

[listen]
tcp = "127.0.0.1:0"

[listen.unix]
path = "broker.sock"

[tls]
certificate = "server.pem"
private_key = "server.key"

[[identity.bundle]]
trust_domain = "prod.example"
file = "ca.pem"

[[identity.rule]]
match = "spiffe://prod.example/tenant/{tenant}/sa/{service}"
tenant = "{tenant}"
context = { service = "{service}" }

[kms.local]
keyring = "keyring"
sealing_key = "sealing.key"

[audit]
file = "audit.jsonl"

[limits]
drain_pause = "0s"
"#;
