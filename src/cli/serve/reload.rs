//! Reloads identities, tenants and TLS material: on SIGHUP, when a file changes, and now and then
//! in case neither was heard. Whole or not at all.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;
use std::time::SystemTime;

use jiff::Timestamp;
use notify::EventKind;
use notify::RecursiveMode;
use notify::Watcher as _;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::audit::Audit;
use crate::cli::chain;
use crate::cli::serve::follow::Configured;
use crate::cli::serve::follow::Follower;
use crate::cli::serve::tokens;
use crate::clock::Clock;
use crate::config;
use crate::config::Config;
use crate::config::State;
use crate::grpc::Handle;
use crate::kms::local::Keyring;
use crate::kms::local::Purpose;
use crate::metrics::Metrics;
use crate::metrics::Reload;

/// Keeps a running server in step with its files.
pub(super) struct Reloader {
    pub(super) path: PathBuf,
    pub(super) config: Config,
    /// The files as they were before they were read.
    pub(super) read: Stamps,
    /// The trail ends with the server, not with its reloader.
    pub(super) audit: Weak<Audit>,
    pub(super) server: Handle,
    pub(super) keyring: Option<Arc<Keyring>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) follower: Arc<Follower>,
}

/// When each file was last written, as far as that can be told.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Stamps(Vec<Option<(SystemTime, u64)>>);

impl Stamps {
    /// Of the configuration at `path` and the files that it names.
    pub(super) fn of(path: &Path, config: &Config) -> Self {
        let stamp = |file: &Path| {
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        let files = config.files();
        Self(files.into_iter().chain([path]).map(stamp).collect())
    }
}

impl Reloader {
    /// Reloads until the process ends.
    pub(super) async fn run(mut self, mut hangup: Signal) {
        let changed = Arc::new(Notify::new());
        loop {
            // Anew each time: a reload may have named other files.
            let watcher = self.watch(Arc::clone(&changed));
            if Stamps::of(&self.path, &self.config) != self.read {
                // Changed between our reading and our watching.
                changed.notify_one();
            }
            tokio::select! {
                // Whoever moves the audit file says so by this.
                _ = hangup.recv() => {
                    if let Some(audit) = self.audit.upgrade() {
                        audit.reopen();
                    }
                }
                () = changed.notified() => {
                    // Several files change together: let them all arrive.
                    tokio::time::sleep(SETTLE).await;
                }
                () = tokio::time::sleep(POLL) => continue,
            }
            drop(watcher);
            self.reload().await;
        }
    }

    async fn reload(&mut self) {
        let outcome = match self.renew().await {
            Ok(()) => {
                tracing::info!("configuration reloaded");
                self.metrics.loaded(self.clock.wall());
                Reload::Done
            }
            Err(Kept::Section(section)) => {
                tracing::error!(
                    section,
                    "configuration not reloaded: this section changes only with a restart"
                );
                Reload::Failed
            }
            Err(Kept::Error(error)) => {
                tracing::error!(
                    error,
                    "configuration not reloaded: the old one stays in force"
                );
                Reload::Failed
            }
        };
        self.metrics.reloaded(outcome);
    }

    async fn renew(&mut self) -> Result<(), Kept> {
        // Taken first: what changes while it is read is read once more.
        self.read = Stamps::of(&self.path, &self.config);
        let (path, purpose) = (self.path.clone(), self.config.purpose);
        let (keyring, now) = (self.keyring.clone(), self.clock.wall());
        // A file of many tenants takes its time.
        let reading = spawn_blocking(move || read(&path, purpose, keyring.as_deref(), now));
        let reading = reading.await.map_err(|error| Kept::of(&error))?;
        let (next, read, state) = reading.map_err(|error| Kept::of(&error))?;
        if let Some(section) = self.config.needs_restart(&next) {
            return Err(Kept::Section(section));
        }
        let configured = Configured {
            config: next.clone(),
            rules: Arc::new(state.rules),
            documents: state.tenants.map(|tenants| tenants.documents),
        };
        let keys = tokens::keys(&next).map_err(|failure| Kept::Error(failure.sentence))?;
        self.follower.reload(configured).await;
        self.follower.rotate(keys);
        if let Some(material) = state.material {
            self.server.reload(material);
        }
        self.config = next;
        self.read = read;
        Ok(())
    }

    /// Watches the folders of all files: an atomic replacement is an event of the folder, and
    /// Kubernetes swaps a link beside the files.
    fn watch(&self, changed: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
        let files: Vec<&Path> = self
            .config
            .files()
            .into_iter()
            .chain([self.path.as_path()])
            .collect();
        let mut names: HashSet<OsString> = files
            .iter()
            .filter_map(|file| file.file_name())
            .map(OsString::from)
            .collect();
        names.insert("..data".into());
        let report = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            let ours = event
                .paths
                .iter()
                .any(|path| path.file_name().is_some_and(|name| names.contains(name)));
            let written = match event.kind {
                EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) => true,
                // Our own reading is no change.
                EventKind::Access(_) | EventKind::Any | EventKind::Other => false,
            };
            if ours && written {
                changed.notify_one();
            }
        };
        let mut watcher = match notify::recommended_watcher(report) {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::error!(%error, "cannot watch files: SIGHUP and a slow poll remain");
                return None;
            }
        };
        let folders: HashSet<&Path> = files
            .iter()
            .filter_map(|file| file.parent())
            .map(|folder| {
                if folder.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    folder
                }
            })
            .collect();
        for folder in folders {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                tracing::error!(%error, folder = %folder.display(), "cannot watch a folder");
            }
        }
        Some(watcher)
    }
}

fn read(
    path: &Path,
    purpose: Purpose,
    keyring: Option<&Keyring>,
    now: Timestamp,
) -> Result<(Config, Stamps, State), config::Error> {
    let next = Config::load_for(path, purpose)?;
    let read = Stamps::of(path, &next);
    let state = next.state(path, now)?;
    if let (Some(keyring), Some(tenants)) = (keyring, &state.tenants) {
        tenants.check_keyring(keyring)?;
    }
    Ok((next, read, state))
}

/// Why the old configuration stays in force.
enum Kept {
    Error(String),
    /// This section changes only with a restart.
    Section(&'static str),
}

impl Kept {
    fn of(error: &dyn std::error::Error) -> Self {
        Self::Error(chain(error))
    }
}

/// Files that change together do so within this time.
const SETTLE: Duration = Duration::from_millis(200);
/// Finds changes that no event told of.
const POLL: Duration = Duration::from_secs(60);
