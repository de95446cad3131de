//! Messages without a broker: the same context, the same KMS, the same format, and no policy but
//! that of KMS.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;

use crate::broker::Pairs;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::serve;
use crate::cli::stored;
use crate::config::Config;
use crate::crypto::Plaintext;
use crate::directory::Directory;
use crate::directory::Key;
use crate::kms;
use crate::kms::Backends;
use crate::kms::Demand;
use crate::kms::Kms as _;
use crate::kms::local::Purpose;
use crate::message;
use crate::message::EncryptionContext;
use crate::message::Envelope;
use crate::message::Message;
use crate::message::context;
use crate::name::KeyName;
use crate::policy::key_named;

/// What a broker would work with.
pub(super) struct Site {
    directory: Directory,
    backends: Backends,
}

impl Site {
    /// Reads KMS and tenants from the configuration at `path`. Its listeners, certificates and
    /// rules do not matter here.
    pub(super) async fn load(path: &Path, purpose: Purpose) -> Result<Self, Failure> {
        let config = Config::load_for(path, purpose).map_err(|error| Failure::config(&error))?;
        let directory = match &config.tenants_file {
            Some(file) => Directory::load(file).map_err(|error| Failure::config(&error))?,
            None => stored::directory(&config.store).await?,
        };
        let backends = serve::backends(&config.kms, purpose).await?;
        Ok(Self {
            directory,
            backends,
        })
    }

    /// The key of this full name.
    pub(super) fn key(&self, name: &str) -> Result<&Arc<Key>, Failure> {
        // Without an identity there is no tenant of one's own.
        let full = name
            .strip_prefix("tenants/")
            .and_then(|rest| rest.split_once('/'))
            .and_then(|(tenant, _)| KeyName::parse(name, &tenant.parse().ok()?).ok());
        let full = full.ok_or_else(|| {
            let sentence = format!(
                "--key {name:?} is not tenants/{{tenant}}/keys/{{key}}: --offline needs the full \
                 name"
            );
            Failure::new(Exit::Usage, sentence)
        })?;
        self.directory.key(&full).ok_or_else(|| {
            let sentence = format!("there is no key {full}");
            Failure::new(Exit::Data, sentence)
        })
    }

    /// Encrypts `plaintext` under a data key of its own, which all of the key's KMS keys must wrap.
    pub(super) async fn seal(
        &self,
        key: &Key,
        own: &Pairs,
        associated_data: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        if plaintext.is_empty() {
            return Err(Failure::new(Exit::Data, "standard input is empty"));
        }
        let context = composed(key, own)?;
        let (kms_keys, demand) = (key.kms().primary(), demand(key));
        let kms::DataKey {
            plaintext: data_key,
            wrapped,
            ..
        } = self
            .backends
            .generate_data_key(kms_keys.generator(), &context, &demand)
            .await
            .map_err(|error| Failure::kms(&error))?;
        let mut all = vec![wrapped];
        if let Some(additional) = kms_keys.additional() {
            let wrapped = self
                .backends
                .encrypt(additional, &data_key, &context, &demand)
                .await
                .map_err(|error| Failure::kms(&error))?;
            all.push(wrapped.wrapped);
        }
        let envelope = Envelope::new(&context, &all)
            .map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
        message::seal(&data_key, &envelope, associated_data, plaintext)
            .map_err(|error| Failure::system(error.to_string()))
    }

    /// Decrypts the message `bytes`, under the key `name` or else the one that it names.
    pub(super) async fn open(
        &self,
        name: &str,
        own: &Pairs,
        associated_data: &[u8],
        bytes: &[u8],
    ) -> Result<Plaintext, Failure> {
        let refused = |why: &dyn std::error::Error| Failure::new(Exit::Data, why.to_string());
        let message = Message::parse(bytes).map_err(|flaw| refused(&flaw))?;
        let named = match (name, key_named(message.context())) {
            ("", Some(named)) => named.to_string(),
            ("", None) => {
                let sentence = "the message names no key of a broker: another program made it";
                return Err(Failure::new(Exit::Data, sentence));
            }
            (name, _) => name.to_owned(),
        };
        let key = self.key(&named)?;
        same(message.context(), &composed(key, own)?)?;
        let data_key = self.unwrap(key, &message).await?;
        let plaintext = message
            .open(&data_key.plaintext, associated_data)
            .map_err(|flaw| refused(&flaw))?;
        Ok(plaintext)
    }

    /// The data key, by the first KMS key of `key` that wrapped it and answers.
    async fn unwrap(&self, key: &Key, message: &Message<'_>) -> Result<kms::Unwrapped, Failure> {
        let mut last = Failure::new(
            Exit::Data,
            format!(
                "no data key in the message is wrapped by a KMS key of {}",
                key.name()
            ),
        );
        for wrapped in message.encrypted_data_keys() {
            let Some(kms_key) = key.kms().iter().find(|kms_key| kms_key.claims(wrapped)) else {
                continue;
            };
            match self
                .backends
                .decrypt(kms_key, wrapped, message.context(), &demand(key))
                .await
            {
                Ok(unwrapped) => return Ok(unwrapped),
                Err(error) => last = Failure::kms(&error),
            }
        }
        Err(last)
    }
}

/// Which keyrings and files may be used.
pub(super) fn purpose(dev: bool) -> Purpose {
    match dev {
        true => Purpose::Dev,
        false => Purpose::Production,
    }
}

/// What a command asks of KMS; nothing bounds its wait but the service's own timeouts.
fn demand(key: &Key) -> Demand {
    let tenant = key.tenant();
    Demand::ahead(tenant.id().clone(), tenant.weight(), Instant::now())
}

/// The context that a broker would compose for a caller whose captured pairs are among `own`.
fn composed(key: &Key, own: &Pairs) -> Result<EncryptionContext, Failure> {
    if let Some((name, _)) = own.iter().find(|(name, _)| context::is_reserved(name)) {
        let sentence = format!("--context {name}: the name begins with a reserved prefix");
        return Err(Failure::new(Exit::Data, sentence));
    }
    let name = key.name();
    let ours = [
        (context::TENANT, name.tenant.as_str()),
        (context::KEY, name.key.as_str()),
    ];
    let pairs = ours
        .into_iter()
        .chain(key.tenant().context())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain(own.iter().cloned());
    EncryptionContext::new(pairs).map_err(|error| {
        let sentence = match &error {
            context::Error::Duplicate(name) => {
                format!("--context {name}: it is given twice, or fixed by the tenant: leave it out")
            }
            other => format!("--context: {other}"),
        };
        Failure::new(Exit::Data, sentence)
    })
}

/// Whether the message has exactly the pairs of `expected`; else, which names differ.
fn same(found: &EncryptionContext, expected: &EncryptionContext) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    let names: BTreeSet<&str> = found
        .pairs()
        .chain(expected.pairs())
        .map(|(name, _)| name)
        .filter(|name| found.value(name) != expected.value(name))
        .collect();
    let told: Vec<String> = names
        .into_iter()
        .map(|name| match (found.value(name), expected.value(name)) {
            (Some(_), None) => format!("it has {name}, give --context {name}=…"),
            (None, _) => format!("it has no {name}"),
            (Some(_), Some(_)) => format!("it has another value of {name}"),
        })
        .collect();
    let sentence = format!(
        "the message's encryption context differs: {}",
        told.join("; ")
    );
    Err(Failure::new(Exit::Data, sentence))
}
