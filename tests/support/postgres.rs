//! A PostgreSQL server of a test's own: in a private folder, as a user who is not root, on a free
//! loopback port, with a certificate by a CA made for it.

use std::fs;
use std::fs::Permissions;
use std::io::BufRead;
use std::io::BufReader;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use sqlx::AssertSqlSafe;
use sqlx::ConnectOptions;
use sqlx::Executor;
use sqlx::PgConnection;
use sqlx::Row;
use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgSslMode;
use tempfile::TempDir;

use super::unprivileged::is_root;

/// A server, running or not. Stopped and removed when dropped.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    /// Settings of its own.
    settings: &'static [&'static str],
    server: Option<Child>,
}

impl Postgres {
    /// Makes a server and starts it, one that a loss of power would harm. Its certificate is for
    /// 127.0.0.1.
    pub fn start() -> Self {
        Self::with(&["-F"])
    }

    /// The same, one that syncs what it commits, and has more memory.
    pub fn start_synced() -> Self {
        Self::with(&["-c", "shared_buffers=512MB"])
    }

    fn with(settings: &'static [&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            if is_root() {
                chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            path
        };
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        file("ca.pem", &ca.pem());
        file("server.pem", &certificate.pem());
        file("server.key", &key.serialize_pem());
        let password = file("password", PASSWORD);
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = as_nobody("initdb")
            .args(["--no-sync", "--auth=scram-sha-256", "--username=keybroker"])
            .args(["--encoding=UTF8", "--locale=C", "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{errors}");
        let mut server = Self {
            folder,
            port: 0,
            settings,
            server: None,
        };
        // Somebody else may take a free port first.
        for _ in 0..10 {
            server.port = free_port();
            if server.runs() {
                return server;
            }
        }
        panic!("no PostgreSQL starts");
    }

    /// Starts it again, at its port.
    pub fn restart(&mut self) {
        assert!(self.runs(), "PostgreSQL does not start again");
    }

    /// Stops it as a crash does: whoever is connected is cut off.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let quit = format!("kill -QUIT {}", server.id());
            assert!(
                Command::new("sh")
                    .args(["-c", &quit])
                    .status()
                    .unwrap()
                    .success()
            );
            server.wait().unwrap();
        }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Who vouches for it.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The file with the password of the user keybroker.
    pub fn password(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// A connection, as no broker has.
    pub async fn connect(&self) -> PgConnection {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("keybroker")
            .password(PASSWORD)
            .database("postgres")
            .ssl_mode(PgSslMode::VerifyFull)
            .ssl_root_cert(self.ca());
        options.connect().await.unwrap()
    }

    fn runs(&mut self) -> bool {
        let mut server = as_nobody("postgres")
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string(), "-k", ""])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "ssl=on"])
            .args([
                "-c",
                "ssl_cert_file=../server.pem",
                "-c",
                "ssl_key_file=../server.key",
            ])
            .args(["-c", "shared_buffers=8MB", "-c", "max_connections=40"])
            .args(self.settings)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let (sender, ready) = mpsc::channel();
        // It reads on, so that the server never waits.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("ready to accept connections") {
                    let _ = sender.send(());
                }
            }
        });
        // Err: it has ended.
        let ready = ready.recv_timeout(PATIENCE).is_ok();
        self.server = Some(server);
        if !ready {
            drop(self.server.take().map(|mut server| server.wait()));
        }
        ready
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs `statements`; the first value of the last row.
pub async fn sql(connection: &mut PgConnection, statements: &str) -> Option<String> {
    let text = AssertSqlSafe(statements.to_owned());
    let rows = connection.fetch_all(sqlx::raw_sql(text)).await.unwrap();
    let row = rows.last()?;
    row.try_get_unchecked::<Option<String>, _>(0).unwrap()
}

/// `program` of PostgreSQL, by a user that it does not refuse.
fn as_nobody(program: &str) -> Command {
    let program = Path::new(&bin()).join(program);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program);
    command
}

/// Where Debian and others put the programs: the newest version's.
fn bin() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = versions.flatten().map(|version| version.path().join("bin"));
    let newest = newest.filter(|bin| bin.join("postgres").exists()).max();
    newest.unwrap_or_else(|| panic!("PostgreSQL is missing: tests/run installs it"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

const NOBODY: u32 = 65534;
const PASSWORD: &str = "only for tests";
/// For a server that starts at all.
const PATIENCE: Duration = Duration::from_secs(60);
