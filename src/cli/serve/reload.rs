//! Reloads identities, tenants and TLS material: on SIGHUP, when a file changes, and now and then
//! in case neither was heard. Whole or not at all.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use notify::EventKind;
use notify::RecursiveMode;
use notify::Watcher as _;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;

use crate::broker::Broker;
use crate::cli::chain;
use crate::clock::Clock;
use crate::config::Config;
use crate::grpc::Handle;
use crate::kms::local::Keyring;
use crate::metrics::Metrics;
use crate::metrics::Reload;

/// Keeps a running server in step with its files.
pub(super) struct Reloader {
    pub(super) path: PathBuf,
    pub(super) config: Config,
    /// The files as they were before they were read.
    pub(super) read: Stamps,
    pub(super) broker: Arc<Broker>,
    pub(super) server: Handle,
    pub(super) keyring: Option<Arc<Keyring>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
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
                _ = hangup.recv() => {}
                () = changed.notified() => {
                    // Several files change together: let them all arrive.
                    tokio::time::sleep(SETTLE).await;
                }
                () = tokio::time::sleep(POLL) => continue,
            }
            drop(watcher);
            // A file of many tenants takes its time.
            match tokio::task::spawn_blocking(move || self.reload()).await {
                Ok(this) => self = this,
                Err(_) => {
                    tracing::error!("reloading failed: files are followed no more until a restart");
                    return;
                }
            }
        }
    }

    fn reload(mut self) -> Self {
        // Taken first: what changes while it is read is read once more.
        self.read = Stamps::of(&self.path, &self.config);
        let next = Config::load_for(&self.path, self.config.purpose).and_then(|next| {
            let read = Stamps::of(&self.path, &next);
            let policy = self.broker.policy();
            let state = next.state(&self.path, self.clock.wall(), Some(&policy))?;
            if let Some(keyring) = &self.keyring {
                state.check_keyring(keyring)?;
            }
            Ok((next, read, state))
        });
        match next {
            Ok((next, read, state)) => {
                if let Some(section) = self.config.needs_restart(&next) {
                    tracing::error!(
                        section,
                        "configuration not reloaded: this section changes only with a restart"
                    );
                    self.metrics.reloaded(Reload::Failed);
                    return self;
                }
                self.broker.reload(state.policy);
                if let Some(material) = state.material {
                    self.server.reload(material);
                }
                self.config = next;
                self.read = read;
                tracing::info!("configuration reloaded");
                self.metrics.reloaded(Reload::Done);
                self.metrics.loaded(self.clock.wall());
            }
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "configuration not reloaded: the old one stays in force"
                );
                self.metrics.reloaded(Reload::Failed);
            }
        }
        self
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

/// Files that change together do so within this time.
const SETTLE: Duration = Duration::from_millis(200);
/// Finds changes that no event told of.
const POLL: Duration = Duration::from_secs(60);
