//! Tenants with a key each, a caller of each tenant, and the cache between them and a fake KMS.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock::Clock;
use keybroker::clock::Manual;
use keybroker::datakeys::Config;
use keybroker::datakeys::DataKeys;
use keybroker::datakeys::Patience;
use keybroker::directory::Directory;
use keybroker::grants::Backing;
use keybroker::identity::Caller;
use keybroker::identity::Leaf;
use keybroker::identity::Peer;
use keybroker::identity::Rules;
use keybroker::identity::rules;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use keybroker::message::Message;
use keybroker::metrics::Metrics;
use keybroker::name::KeyName;
use keybroker::policy::Action;
use keybroker::policy::Permit;
use keybroker::policy::Policy;

use super::kms;
use super::kms::FakeKms;

pub struct Scene {
    pub kms: Arc<FakeKms>,
    pub data_keys: Arc<DataKeys>,
    policy: Policy,
    callers: Vec<Caller>,
    names: Vec<KeyName>,
}

/// What differs from one scene to the next.
pub struct Plan {
    pub tenants: usize,
    /// Further lines of each key in the tenants file.
    pub key: &'static str,
    pub config: Config,
    pub latency: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            tenants: 1,
            key: "",
            config: Config::default(),
            latency: Duration::ZERO,
        }
    }
}

impl Scene {
    pub fn new(clock: Arc<dyn Clock>, plan: &Plan) -> Self {
        let ids: Vec<String> = (0..plan.tenants)
            .map(|n| format!("tenant-{n:02}"))
            .collect();
        let rules = Arc::new(mapping());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tenants.toml");
        fs::write(&path, tenants(&ids, plan.key)).unwrap();
        let directory = Arc::new(Directory::load(&path).unwrap());
        let kms = Arc::new(FakeKms::new(plan.latency));
        let data_keys = DataKeys::new(
            Arc::clone(&kms) as _,
            clock,
            Metrics::unread(),
            &plan.config,
        );
        Self {
            kms,
            data_keys: Arc::new(data_keys),
            callers: ids.iter().map(|id| caller(id, &rules)).collect(),
            names: ids.iter().map(|id| name(id)).collect(),
            policy: Policy::new(directory, rules).unwrap(),
        }
    }

    /// The permit to seal for customer `customer` of a tenant, whichever has its turn.
    pub fn permit(&self, customer: usize) -> Permit {
        let tenant = customer % self.names.len();
        let (caller, name) = (&self.callers[tenant], &self.names[tenant]);
        let own = own(customer);
        let permit = self
            .policy
            .authorize_seal(caller, Action::Encrypt, name, &own, Backing::NONE);
        permit.unwrap()
    }

    /// A message for the same customer that another broker sealed, and the permit to open it.
    pub fn foreign(&self, customer: usize) -> (Vec<u8>, Permit) {
        let tenant = customer % self.names.len();
        let (caller, name) = (&self.callers[tenant], &self.names[tenant]);
        let own = own(customer);
        let key = self.policy.directory().key(name).unwrap();
        let pairs = key
            .context()
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let context = EncryptionContext::new(pairs.chain(own.clone())).unwrap();
        // Numbers that the fake KMS does not come to.
        let wrapped = kms::wrapped(key.kms().primary().generator(), (1 << 32) + customer as u64);
        let envelope = Envelope::new(&context, std::slice::from_ref(&wrapped)).unwrap();
        let secret = kms::plaintext(&wrapped);
        let message = keybroker::message::seal(&secret, &envelope, b"", b"x").unwrap();
        let permit = self.policy.authorize_open(
            caller,
            Action::Decrypt,
            Some(name),
            &context,
            &own,
            Backing::NONE,
        );
        (message, permit.unwrap())
    }

    /// Opens what [`Scene::foreign`] made.
    pub async fn open(&self, message: &[u8], permit: &Permit) {
        let message = Message::parse(message).unwrap();
        let opener = self
            .data_keys
            .opening(permit, &message, &Patience::default())
            .await
            .unwrap();
        assert_eq!(**opener.open(&message, b"").unwrap(), *b"x");
    }
}

/// A clock that stands still until a benchmark moves it.
pub fn manual() -> Arc<Manual> {
    Arc::new(Manual::new(Timestamp::UNIX_EPOCH))
}

/// Splits a seed into random numbers, the same ones each run (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// One pair beside those of tenant and key: contexts of four pairs.
fn own(customer: usize) -> [(String, String); 1] {
    [("customer".to_owned(), format!("cus_{customer:010}"))]
}

/// ARNs of 75 bytes, as AWS has them in this Region.
fn tenants(ids: &[String], key: &str) -> String {
    let mut text = String::new();
    for (n, id) in ids.iter().enumerate() {
        write!(
            text,
            r#"
[[tenant]]
id = "{id}"
context = {{ env = "prod" }}

[[tenant.key]]
id = "orders"
kms = "arn:aws:kms:us-west-2:111122223333:key/1234abcd-12ab-34cd-56ef-{n:012}"
users = ["spiffe://bench.example/{id}"]
{key}
"#
        )
        .unwrap();
    }
    text
}

fn name(tenant: &str) -> KeyName {
    KeyName {
        tenant: tenant.parse().unwrap(),
        key: "orders".parse().unwrap(),
    }
}

fn mapping() -> Rules {
    let mut config = rules::Config::default();
    config.rule.push(rules::RuleConfig {
        pattern: "spiffe://bench.example/{tenant}".to_owned(),
        tenant: "{tenant}".to_owned(),
        context: BTreeMap::new(),
        bundle: None,
    });
    config.bundle.push(rules::BundleConfig {
        trust_domain: "bench.example".parse().unwrap(),
        file: "bench.pem".into(),
        crl: None,
    });
    Rules::new(&config).unwrap()
}

fn caller(tenant: &str, rules: &Rules) -> Caller {
    let uri = format!("spiffe://bench.example/{tenant}");
    let mut params = rcgen::CertificateParams::default();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let peer = Peer::certified(Leaf::parse(certificate.der()).unwrap());
    rules.map(&peer).unwrap()
}
