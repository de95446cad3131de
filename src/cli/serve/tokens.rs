//! The keys of grant tokens, from where the configuration says.

use std::path::Path;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::chain;
use crate::config::Config;
use crate::grants::TokenKey;
use crate::grants::TokenKeys;
use crate::kms::local::SealingKey;
use crate::kms::local::sealing;
use crate::kms::local::sealing::Source;

/// The keys of `config`. One beside the store is made when it is first asked for.
pub(super) fn keys(config: &Config) -> Result<TokenKeys, Failure> {
    let current = match (&config.grants.token_key, &config.store.url) {
        (Some(source), _) => load("token_key", source)?,
        (None, None) => beside(&config.store.file)?,
        (None, Some(_)) => {
            let sentence = "grants.token_key is missing: replicas that share a store need one key \
                            for grant tokens; make it with `openssl rand -hex 32`";
            return Err(Failure::new(Exit::Config, sentence.to_owned()));
        }
    };
    let other = config.grants.other_token_key.as_deref();
    let other = other.map(|source| load("other_token_key", source));
    Ok(TokenKeys::new(current, other.transpose()?))
}

fn load(setting: &str, source: &str) -> Result<TokenKey, Failure> {
    let failed = |why: String| Failure::new(Exit::Config, format!("grants.{setting}: {why}"));
    let source: Source = source
        .parse()
        .map_err(|error: sealing::MalformedSource| failed(error.to_string()))?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
    let key = SealingKey::load(&source, credentials.as_deref().map(Path::new));
    let key = key.map_err(|error| failed(chain(&error)))?;
    Ok(TokenKey::new(key.into_secret()))
}

/// The key beside the store at `store`.
fn beside(store: &Path) -> Result<TokenKey, Failure> {
    let mut path = store.as_os_str().to_owned();
    path.push(".token-key");
    let path = PathBuf::from(path);
    let key = match SealingKey::create(&path) {
        Err(sealing::Error::Exists { .. }) => SealingKey::load(&Source::File(path), None),
        made => made,
    };
    let key = key.map_err(|error| {
        let sentence = format!("grants.token_key: {}", chain(&error));
        Failure::new(Exit::CannotCreate, sentence)
    })?;
    Ok(TokenKey::new(key.into_secret()))
}
