//! A broker without its gRPC server, in virtual time: its callers call it as the server does, and no
//! socket stands between them. The KMS is the fake one behind the real SDK and what stands before it
//! in `serve`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keybroker::audit::Audit;
use keybroker::audit::Entry;
use keybroker::audit::Sink;
use keybroker::broker;
use keybroker::broker::Binding;
use keybroker::broker::Opened;
use keybroker::broker::Sealed;
use keybroker::clock::Clock;
use keybroker::datakeys;
use keybroker::datakeys::DataKeys;
use keybroker::datakeys::Patience;
use keybroker::directory::Directory;
use keybroker::error::Error;
use keybroker::identity;
use keybroker::identity::Leaf;
use keybroker::identity::Peer;
use keybroker::identity::Rules;
use keybroker::identity::Session;
use keybroker::kms::Guarded;
use keybroker::kms::Kms;
use keybroker::kms::aws;
use keybroker::metrics::Metrics;
use keybroker::policy::Policy;
use keybroker::quota;
use keybroker::quota::Known;
use keybroker::quota::Quotas;
use keybroker::trace::Cause;
use keybroker::trace::Tracer;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Authority;
use super::RULES;
use super::grants;
use crate::support::fake_kms;
use crate::support::virtual_time::Virtual;

/// The broker.
pub struct Unwired {
    pub metrics: Metrics,
    broker: Arc<broker::Broker>,
    authority: Authority,
    sweeping: JoinHandle<()>,
    _folder: TempDir,
}

/// One who calls it.
pub struct Caller {
    broker: Arc<broker::Broker>,
    session: Session,
    known: Known,
    entry: Entry,
}

impl Unwired {
    /// A broker of these `tenants`, whose keys are `fake`'s. Nobody can spend too much.
    pub fn start(fake: &fake_kms::FakeKms, config: &aws::Config, tenants: &str) -> Self {
        let metrics = Metrics::unread();
        let aws = Arc::new(fake.aws_with(config.clone()));
        let kms = Guarded::new(aws, config, metrics.clone(), Tracer::off()).unwrap();
        Self::over(Arc::new(kms), metrics, tenants)
    }

    /// The same with another KMS, and nothing before it.
    pub fn over(kms: Arc<dyn Kms>, metrics: Metrics, tenants: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("prod.example");
        let bundle = folder.path().join("bundle.pem");
        std::fs::write(&bundle, authority.pem()).unwrap();
        let mut rules: identity::Config = toml::from_str(RULES).unwrap();
        rules.bundle.push(identity::rules::BundleConfig {
            trust_domain: authority.domain().parse().unwrap(),
            file: bundle,
            crl: None,
        });
        let rules = Rules::new(&rules).unwrap();
        let directory = Directory::parse(tenants, Path::new("tenants.toml")).unwrap();
        let policy = Policy::new(directory.into(), rules.into()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(Virtual::new());
        let cache = datakeys::Config::default();
        let data_keys = DataKeys::new(kms, Arc::clone(&clock), metrics.clone(), &cache);
        let unlimited = quota::Config {
            tenant_rate: quota::Rate::MOST,
            principal_rate: quota::Rate::MOST,
        };
        let quotas = Quotas::new(&unlimited, metrics.clone(), Arc::clone(&clock));
        let grants = grants(folder.path(), clock);
        let broker = Arc::new(broker::Broker::new(policy, quotas, data_keys, grants));
        Self {
            metrics,
            sweeping: tokio::spawn(sweep(Arc::clone(&broker))),
            broker,
            authority,
            _folder: folder,
        }
    }

    /// One with a certificate for the SPIFFE id `id`.
    pub fn caller(&self, id: &str) -> Caller {
        let certificate = &self.authority.client(id).chain()[0];
        let peer = Peer::certified(Leaf::parse(certificate).unwrap());
        let audit = Audit::new(Sink::to(std::io::sink()), Arc::new(Virtual::new()));
        Caller {
            broker: Arc::clone(&self.broker),
            session: Session::new(peer),
            known: Known::default(),
            entry: audit.begin(),
        }
    }
}

impl Drop for Unwired {
    fn drop(&mut self) {
        self.sweeping.abort();
    }
}

/// As `serve` does.
async fn sweep(broker: Arc<broker::Broker>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        broker.sweep();
    }
}

impl Caller {
    /// Encrypts under `name` with `pairs`, if that takes no longer than `patience`.
    pub async fn encrypt(
        &self,
        name: &str,
        pairs: &[(&str, &str)],
        patience: Duration,
    ) -> Result<Sealed, Error> {
        let until = Instant::now() + patience;
        let call = self.call(until)?;
        let sealed = call.encrypt(binding(name, pairs), b"x");
        late(tokio::time::timeout_at(until, sealed).await)
    }

    /// Decrypts what was encrypted so.
    pub async fn decrypt(
        &self,
        sealed: &Sealed,
        pairs: &[(&str, &str)],
        patience: Duration,
    ) -> Result<Opened, Error> {
        let until = Instant::now() + patience;
        let call = self.call(until)?;
        let opened = call.decrypt(binding("", pairs), &sealed.ciphertext);
        late(tokio::time::timeout_at(until, opened).await)
    }

    fn call(&self, until: Instant) -> Result<broker::Call<'_>, Error> {
        let notes = self.entry.notes();
        let visitor = self.broker.visitor(&self.session, &self.known, &notes)?;
        let patience = Arc::new(Patience::new(until, None, Cause::Nobody));
        Ok(self.broker.call(&visitor, notes, patience))
    }
}

fn binding(name: &str, pairs: &[(&str, &str)]) -> Binding {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Binding {
        name: name.into(),
        context: pairs.iter().map(owned).collect(),
        associated_data: Default::default(),
        tokens: Vec::new(),
    }
}

/// What the server says of a call that is late.
fn late<T>(answer: Result<Result<T, Error>, tokio::time::error::Elapsed>) -> Result<T, Error> {
    answer.unwrap_or(Err(Error::Expired))
}
