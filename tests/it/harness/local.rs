//! A broker on a Unix socket.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use keybroker::grpc::listener::UnixConfig;

use super::Setup;
use super::WEB;

impl Setup {
    /// Listens on a Unix socket too, where this process's user is of tenant acme and may use what
    /// [`WEB`] may; its path.
    pub fn local(&mut self) -> PathBuf {
        let path = self.folder.path().join("keybroker.sock");
        let own = fs::metadata("/proc/self").unwrap();
        let principal = format!("unix:uid={}", own.uid());
        let rule = format!("[[rule]]\nmatch = \"{principal}\"\ntenant = \"acme\"\n");
        self.rules.push_str(&rule);
        let users = format!("\"{WEB}\", \"{principal}\"");
        self.tenants = self.tenants.replace(&format!("\"{WEB}\""), &users);
        self.listen.unix = Some(UnixConfig {
            path: path.clone(),
            mode: "600".into(),
            abstract_name: None,
        });
        path
    }
}
