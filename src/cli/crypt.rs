//! `keybroker encrypt` and `keybroker decrypt`: standard input to standard output, through a broker
//! or, with `--offline`, without one.

mod offline;

use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;

use crate::broker::Binding;
use crate::broker::MAX_ASSOCIATED_DATA;
use crate::broker::MAX_PLAINTEXT;
use crate::broker::Pairs;
use crate::cli::ConfigArg;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::connect;
use crate::cli::input;
use crate::cli::yield_bytes;
use crate::grants::MAX_TOKEN;
use crate::grpc::MAX_MESSAGE;
use crate::grpc::client;
use crate::message::Message;
use crate::policy::key_named;

/// Reads at most 1 MiB from standard input and writes a message of the AWS Encryption SDK.
#[derive(clap::Args)]
pub(super) struct EncryptArgs {
    /// The key: keys/{key} of your own tenant, or tenants/{tenant}/keys/{key}.
    #[arg(long, value_name = "NAME")]
    key: String,
    #[command(flatten)]
    common: Common,
}

/// Reads a message from standard input and writes what was encrypted.
#[derive(clap::Args)]
pub(super) struct DecryptArgs {
    /// The key; without it the one that the message names.
    #[arg(long, value_name = "NAME", default_value = "")]
    key: String,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Common {
    /// A pair of the encryption context, which is not secret; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// A file with the token of a grant that allows it; needed only until the grant has come to
    /// every replica. May be repeated.
    #[arg(long, value_name = "FILE")]
    grant_token_file: Vec<PathBuf>,
    /// A file with associated data, which the message is bound to and does not hold.
    #[arg(long, value_name = "FILE")]
    associated_data_file: Option<PathBuf>,
    /// Where the result goes: a file, replaced whole and readable by you alone, or - for standard
    /// output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Calls KMS straight, without a broker: for the day when there is none.
    ///
    /// Takes KMS and tenants from the configuration of --config, and AWS credentials from where
    /// the AWS SDK finds them. No policy is asked and no audit record is written: KMS's own policy
    /// and CloudTrail are what is left. The encryption context is the broker's: tenant, key and
    /// the tenant's fixed pairs are added; every other pair must be given with --context, those
    /// too that identity rules capture, since nobody here has an identity. A local keyring must
    /// not be held by a server at the same time.
    #[arg(long)]
    offline: bool,
    /// With --offline: the configuration is one of `keybroker dev`.
    #[arg(long, requires = "offline")]
    dev: bool,
    #[command(flatten)]
    config: ConfigArg,
    #[command(flatten)]
    connect: connect::Connection,
}

pub(super) async fn encrypt(args: EncryptArgs) -> Result<(), Failure> {
    let EncryptArgs { key, common } = args;
    let associated_data = common.associated_data()?;
    if common.offline {
        let site = common.site().await?;
        let key = site.key(&key)?;
        let plaintext = input(MAX_PLAINTEXT)?;
        let message = site
            .seal(key, &common.context, &associated_data, &plaintext)
            .await?;
        return put(&common.output, &message);
    }
    let client = common.connect.connect().await?;
    let plaintext = input(MAX_PLAINTEXT)?;
    let to = common.binding(key, associated_data)?;
    let encrypted = client
        .encrypt(to, Bytes::from_owner(plaintext))
        .await
        .map_err(|error| Failure::broker(&error))?;
    put(&common.output, &encrypted.ciphertext)
}

pub(super) async fn decrypt(args: DecryptArgs) -> Result<(), Failure> {
    let DecryptArgs { key, common } = args;
    let associated_data = common.associated_data()?;
    if common.offline {
        let site = common.site().await?;
        let message = input(MAX_MESSAGE)?;
        let plaintext = site
            .open(&key, &common.context, &associated_data, &message)
            .await?;
        return put(&common.output, &plaintext);
    }
    let client = common.connect.connect().await?;
    let message = Bytes::from_owner(input(MAX_MESSAGE)?);
    let from = common.binding(key, associated_data)?;
    let decrypted = client
        .decrypt(from, message.clone())
        .await
        .map_err(|error| refused(&error, &message, &common.context))?;
    put(&common.output, &decrypted.plaintext)
}

impl Common {
    fn binding(&self, name: String, associated_data: Vec<u8>) -> Result<Binding, Failure> {
        let tokens = self.grant_token_file.iter().map(|path| token(path));
        Ok(Binding {
            name,
            context: self.context.clone(),
            associated_data: associated_data.into(),
            tokens: tokens.collect::<Result<_, _>>()?,
        })
    }

    async fn site(&self) -> Result<offline::Site, Failure> {
        offline::Site::load(&self.config.config, offline::purpose(self.dev)).await
    }

    fn associated_data(&self) -> Result<Vec<u8>, Failure> {
        let Some(path) = &self.associated_data_file else {
            return Ok(Vec::new());
        };
        let bytes = fs::read(path).map_err(|error| {
            let sentence = format!("cannot read {}: {error}", path.display());
            Failure::new(Exit::NoInput, sentence)
        })?;
        if bytes.len() > MAX_ASSOCIATED_DATA {
            let sentence = format!(
                "{} has {} bytes, over the limit of {MAX_ASSOCIATED_DATA} for associated data",
                path.display(),
                bytes.len()
            );
            return Err(Failure::new(Exit::Data, sentence));
        }
        Ok(bytes)
    }
}

/// The grant token in the file at `path`.
pub(super) fn token(path: &Path) -> Result<String, Failure> {
    let unreadable = |why: &dyn std::fmt::Display| {
        let sentence = format!("cannot read a grant token from {}: {why}", path.display());
        Failure::new(Exit::NoInput, sentence)
    };
    let mut text = String::new();
    let most = u64::try_from(MAX_TOKEN + 1).unwrap_or(u64::MAX);
    fs::File::open(path)
        .and_then(|file| file.take(most).read_to_string(&mut text))
        .map_err(|error| unreadable(&error))?;
    Ok(text.trim_end().to_owned())
}

/// To the broker all broken messages are one; whoever holds the bytes may know more.
fn refused(error: &client::Error, message: &[u8], own: &Pairs) -> Failure {
    let mut failure = Failure::broker(error);
    if let client::Error::Refused { reason, .. } = error
        && reason == "CIPHERTEXT_INVALID"
    {
        failure.sentence = format!("{}; {}", failure.sentence, cause(message, own));
    }
    failure
}

/// What can be seen of a message from outside.
fn cause(message: &[u8], own: &Pairs) -> String {
    let message = match Message::parse(message) {
        Ok(message) => message,
        Err(flaw) => return flaw.to_string(),
    };
    let header = message.context();
    let Some(key) = key_named(header) else {
        return "the message names no key of a broker: another program made it".into();
    };
    for (name, value) in own {
        match header.value(name) {
            Some(found) if found == value => {}
            Some(_) => return format!("the message has another value for the pair {name:?}"),
            None => return format!("the message has no pair {name:?}"),
        }
    }
    let names: Vec<&str> = header.pairs().map(|(name, _)| name).collect();
    format!(
        "the message is well-formed, under {key} and with the context names {}: compare --key, \
         --context, --associated-data-file and whose certificate this is; otherwise it was altered",
        names.join(", ")
    )
}

fn put(output: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if output == Path::new("-") {
        return yield_bytes(bytes);
    }
    let folder = match output.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    };
    tempfile::NamedTempFile::new_in(folder)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            Ok(file.persist(output)?)
        })
        .map_err(|error| {
            let sentence = format!("cannot write {}: {error}", output.display());
            Failure::new(Exit::CannotCreate, sentence)
        })?;
    Ok(())
}

pub(super) fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        Some(_) | None => Err("not NAME=VALUE, both not empty"),
    }
}
