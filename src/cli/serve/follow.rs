//! Keeps a broker's tenants in step with the store: asks it twice a second, and at once when there
//! is word of a change.

mod presence;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio::time::timeout;
use uuid::Uuid;

use crate::audit::Audit;
use crate::broker::Broker;
use crate::cli::chain;
use crate::clock::Clock;
use crate::config::Config;
use crate::directory::Directory;
use crate::directory::Documents;
use crate::grants::TokenKeys;
use crate::identity::Rules;
use crate::metrics::Dependency;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::store::Absent;
use crate::store::Error;
use crate::store::Freshness;
use crate::store::News;
use crate::store::Store;

pub(super) use presence::Presence;

/// Follows the store for one broker.
pub(super) struct Follower {
    /// The configuration file, for errors.
    path: PathBuf,
    store: Arc<Store>,
    presence: Presence,
    broker: Arc<Broker>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    freshness: Arc<Freshness>,
    ground: Mutex<Ground>,
}

/// What the broker's policy rests on.
struct Ground {
    configured: Configured,
    /// The change up to which the broker knows all; none before the first.
    known: Option<u64>,
    /// Tenants that the store has and the broker does not serve.
    refused: BTreeSet<String>,
}

/// What the files say.
#[derive(Clone)]
pub(super) struct Configured {
    pub(super) config: Config,
    pub(super) rules: Arc<Rules>,
    /// What the tenants file says, until the store has it.
    pub(super) documents: Option<Documents>,
}

impl Follower {
    /// A follower of `store` for `broker`, whose `freshness` it keeps, and which is there for
    /// others by its `presence`.
    pub(super) fn new(
        path: PathBuf,
        store: Arc<Store>,
        presence: Presence,
        broker: Arc<Broker>,
        freshness: Arc<Freshness>,
        clock: Arc<dyn Clock>,
        configured: Configured,
    ) -> Self {
        let ground = Ground {
            configured,
            known: None,
            refused: BTreeSet::new(),
        };
        Self {
            path,
            store,
            presence,
            metrics: broker.metrics().clone(),
            broker,
            clock,
            freshness,
            ground: Mutex::new(ground),
        }
    }

    /// Has the store take up what the files say, and the broker all that the store has.
    ///
    /// # Errors
    /// [`Error`].
    pub(super) async fn begin(&self) -> Result<(), Error> {
        // Before it reads anything: who makes a change from now on knows whom to wait for.
        if let Err(error) = self.presence.tell(0).await {
            tracing::warn!(
                error = chain(&error),
                "others don't know of this broker yet"
            );
        }
        let mut ground = self.ground.lock().await;
        self.catch_up(&mut ground).await
    }

    /// Is there for others no more.
    pub(super) async fn end(&self) {
        self.presence.end().await;
    }

    /// Puts other files in force. Tenants that the store does not take or give now follow when it
    /// does: certificates and identity rules don't wait for a database.
    pub(super) async fn reload(&self, configured: Configured) {
        self.broker.manage(configured.config.management());
        let mut ground = self.ground.lock().await;
        ground.configured = configured;
        // What did not fit may fit now.
        ground.known = None;
        let Err(error) = self.catch_up(&mut ground).await else {
            return;
        };
        tracing::error!(error = chain(&error), "{LOST}");
        if ground.known.is_none() {
            let nothing = News {
                number: 0,
                whole: false,
                tenants: Vec::new(),
            };
            self.take_up(&mut ground, nothing).await;
        }
    }

    /// Follows until it is dropped. What it ends of itself is on record in `audit`.
    pub(super) async fn run(self: Arc<Self>, audit: Arc<Audit>) -> Infallible {
        // Ends with this. Aside: how long it takes is up to how many grants there are.
        let mut loading = JoinSet::new();
        loading.spawn(Arc::clone(&self).load());
        let holder = Uuid::new_v4().to_string();
        tokio::select! {
            never = self.store.listen() => never,
            never = self.poll() => never,
            never = self.forget() => never,
            never = self.end_kms_grants(&holder, &audit) => never,
            never = self.tell_of_strays(&holder) => never,
        }
    }

    /// Puts other keys of grant tokens in force.
    pub(super) fn rotate(&self, keys: TokenKeys) {
        self.broker.grants().book().rotate(keys);
    }

    /// Clears away grants that were over long ago.
    async fn forget(&self) -> Infallible {
        loop {
            sleep(FORGET).await;
            if let Err(error) = self.broker.grants().forget().await {
                tracing::warn!(error = chain(&error), "grants of old stay in the store");
            }
        }
    }

    /// Takes up all grants. Until then the store is asked at each use.
    async fn load(self: Arc<Self>) {
        let grants = self.broker.grants();
        while let Err(error) = grants.catch_up().await {
            tracing::warn!(error = chain(&error), "not all grants are known yet");
            sleep(POLL).await;
        }
        // Not in half a second: of what has changed meanwhile some was decided on already.
        let _ = grants.catch_up().await;
    }

    /// Ends grants of KMS that are due.
    async fn end_kms_grants(&self, holder: &str, audit: &Arc<Audit>) -> Infallible {
        let mut waiting = false;
        loop {
            sleep(END_KMS_GRANTS).await;
            let ended = self.broker.end_due_kms_grants(holder, audit).await;
            if let (Err(error), false) = (&ended, waiting) {
                tracing::warn!(error = chain(error), "grants of KMS wait for the store");
            }
            waiting = ended.is_err();
        }
    }

    /// Tells of grants of KMS that nobody would end.
    async fn tell_of_strays(&self, holder: &str) -> Infallible {
        sleep(FIRST_LOOK).await;
        loop {
            let pause = match self.broker.tell_of_stray_kms_grants(holder).await {
                Ok(true) => LOOK,
                Ok(false) => NEXT_LOOK,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "no look at grants of KMS");
                    NEXT_LOOK
                }
            };
            sleep(pause).await;
        }
    }

    async fn poll(&self) -> Infallible {
        let mut lost = self.ground.lock().await.known.is_none();
        loop {
            // Err: nobody has told of anything.
            let _ = timeout(POLL, self.store.wait()).await;
            let caught_up = self.catch_up_and_tell().await;
            let grants = match self.broker.grants().is_whole() {
                true => self.broker.grants().catch_up().await,
                false => Ok(()),
            };
            let error = caught_up.and(grants).err();
            self.metrics.degraded(Dependency::Store, error.is_some());
            self.metrics.store_age(self.freshness.age());
            let skew = self.broker.grants().book().skew();
            self.metrics.store_skew(skew.unwrap_or_default());
            match &error {
                None if lost => tracing::info!("the store is back"),
                Some(error) if !lost => tracing::error!(error = chain(error), "{LOST}"),
                None | Some(_) => {}
            }
            lost = error.is_some();
        }
    }

    async fn catch_up_and_tell(&self) -> Result<(), Error> {
        let known = {
            let mut ground = self.ground.lock().await;
            self.catch_up(&mut ground).await?;
            ground.known
        };
        self.presence.tell(known.unwrap_or_default()).await
    }

    async fn catch_up(&self, ground: &mut Ground) -> Result<(), Error> {
        let brought = self.bring_in(ground).await;
        // A store that takes nothing, of which the disk is full, may still tell.
        self.follow(ground).await?;
        brought
    }

    async fn bring_in(&self, ground: &mut Ground) -> Result<(), Error> {
        let Some(documents) = &ground.configured.documents else {
            return Ok(());
        };
        let applied = self.store.apply(documents, Absent::Remove).await?;
        ground.configured.documents = None;
        if let Some(change) = applied.change {
            tracing::info!(
                change,
                added = applied.added.len(),
                changed = applied.changed.len(),
                removed = applied.removed.len(),
                "the store has taken up the tenants file"
            );
        }
        Ok(())
    }

    async fn follow(&self, ground: &mut Ground) -> Result<(), Error> {
        let asked = self.clock.now();
        if let Some(news) = self.store.news(ground.known).await? {
            let number = news.number;
            if !self.take_up(ground, news).await {
                return Ok(());
            }
            ground.known = Some(number);
        }
        self.freshness.heard(asked);
        Ok(())
    }

    /// Whether the broker goes by `news` now.
    async fn take_up(&self, ground: &mut Ground, news: News) -> bool {
        if news.whole {
            ground.refused.clear();
        }
        for row in &news.tenants {
            ground.refused.remove(&row.id);
        }
        let configured = ground.configured.clone();
        let (path, current) = (self.path.clone(), self.broker.policy());
        let reading = spawn_blocking(move || {
            let Configured { config, rules, .. } = configured;
            let base = match news.whole {
                true => &Directory::default(),
                false => current.directory().as_ref(),
            };
            let (directory, unusable) = base.with(news.tenants);
            let (directory, unfit) = config.fit(&path, directory, &rules);
            let unusable = unusable
                .into_iter()
                .map(|(tenant, error)| (tenant, chain(&error)));
            let unfit = unfit
                .into_iter()
                .map(|(tenant, error)| (tenant.to_string(), chain(&error)));
            let refused: Vec<(String, String)> = unusable.chain(unfit).collect();
            let directory = directory.succeed(current.directory());
            (Policy::new(Arc::new(directory), rules), refused)
        });
        let (policy, refused) = match reading.await {
            Ok((Ok(policy), refused)) => (policy, refused),
            Ok((Err(clash), _)) => {
                // A tenant that clashes does not fit, and was left out.
                tracing::error!(%clash, "tenants are not taken up, which is a fault of keybroker");
                return false;
            }
            Err(_) => {
                tracing::error!("taking up tenants failed; they stay as they were");
                return false;
            }
        };
        for (tenant, error) in refused {
            tracing::error!(
                tenant,
                error,
                "a tenant of the store is not usable: it is denied all"
            );
            ground.refused.insert(tenant);
        }
        self.metrics.refused_tenants(ground.refused.len());
        self.broker.reload(policy);
        true
    }
}

/// Between two looks at grants of KMS that are due.
const END_KMS_GRANTS: Duration = Duration::from_secs(1);
/// Until the first look for grants of KMS that the store does not know: it may just have been
/// restored.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Between two of them.
const LOOK: Duration = Duration::from_secs(6 * 3600);
/// After one that was another's, or the store's fault.
const NEXT_LOOK: Duration = Duration::from_secs(10);
/// Between two looks at what is over.
const FORGET: Duration = Duration::from_secs(3600);
const LOST: &str = "the store is out of reach, or takes no changes: tenants stay as they were last \
                    known, for store.max_staleness if it does not answer";
/// Finds changes that nobody told of.
const POLL: Duration = Duration::from_millis(500);
