//! `keybroker keyring`: makes and changes the keyring of the embedded KMS, while no server holds
//! it.

use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::chain;
use crate::cli::say;
use crate::cli::serve;
use crate::cli::yield_bytes;
use crate::clock::Clock as _;
use crate::clock::System;
use crate::config::Config;
use crate::kms::LocalConfig;
use crate::kms::local;
use crate::kms::local::Keyring;
use crate::kms::local::Listing;
use crate::kms::local::Purpose;
use crate::kms::local::SealingKey;
use crate::kms::local::sealing;
use crate::kms::local::sealing::Source;
use crate::name::KeyId;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Makes a keyring, and its sealing key where that is a file that is not there yet. Never
    /// overwrites anything.
    Init(Place),
    /// Adds a key with one version.
    Add(Change),
    /// Gives a key a new version; earlier ones go on decrypting.
    Rotate(Change),
    /// Lets a disabled key be used again.
    Enable(Change),
    /// Bars a key from all use, until it is enabled.
    Disable(Change),
    /// Lists the keys.
    List(ListArgs),
}

#[derive(clap::Args)]
pub(super) struct Change {
    #[command(flatten)]
    place: Place,
    /// The key's id, as in `kms = "local:<id>"`.
    key: KeyId,
}

#[derive(clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// How to print them.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

/// Which keyring: that of [kms.local] in the configuration, or one named here.
#[derive(clap::Args)]
pub(super) struct Place {
    /// The configuration file, whose [kms.local] names keyring and sealing key.
    #[arg(
        long,
        env = "KEYBROKER_CONFIG",
        value_name = "FILE",
        default_value = "/etc/keybroker/keybroker.toml"
    )]
    config: PathBuf,
    /// The keyring file, instead of a configuration.
    #[arg(long, value_name = "FILE", requires = "sealing_key")]
    keyring: Option<PathBuf>,
    /// What it is sealed with: a file, or credential:<name>.
    #[arg(long, value_name = "SOURCE", requires = "keyring")]
    sealing_key: Option<String>,
    /// The keyring is one of `keybroker dev`.
    #[arg(long)]
    dev: bool,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Init(place) => init(&place),
        Command::Add(change) => {
            let keyring = change.place.open()?;
            done(keyring.add(&change.key, System.wall()))?;
            let key = change.key;
            say(format_args!(
                "added {key}: name it in the tenants file as kms = \"local:{key}\""
            ));
            Ok(())
        }
        Command::Rotate(change) => {
            let keyring = change.place.open()?;
            let version = done(keyring.rotate(&change.key, System.wall()))?;
            say(format_args!(
                "rotated {}: version {version} wraps now",
                change.key
            ));
            Ok(())
        }
        Command::Enable(change) => {
            done(change.place.open()?.enable(&change.key))?;
            say(format_args!("enabled {}", change.key));
            Ok(())
        }
        Command::Disable(change) => {
            done(change.place.open()?.disable(&change.key))?;
            say(format_args!("disabled {}", change.key));
            Ok(())
        }
        Command::List(args) => {
            let keys = args.place.open()?.keys();
            let text = match args.output {
                Format::Json => json(&keys),
                Format::Text => keys.iter().map(line).collect(),
            };
            yield_bytes(text.as_bytes())
        }
    }
}

fn init(place: &Place) -> Result<(), Failure> {
    let config = place.find()?;
    // Looked at first, so that no sealing key is made for a keyring that has one.
    if config.keyring.symlink_metadata().is_ok() {
        let path = config.keyring;
        return Err(Failure::keyring(&local::Error::Exists { path }));
    }
    let source: Source = config
        .sealing_key
        .parse()
        .map_err(|error| Failure::config(&error))?;
    let sealing_key = match &source {
        Source::File(path) if matches!(path.try_exists(), Ok(false)) => {
            let made = SealingKey::create(path).map_err(|error| unmade(&error))?;
            say(format_args!(
                "made the sealing key {}: keep a copy elsewhere, without it the keyring is lost",
                path.display()
            ));
            made
        }
        Source::File(_) | Source::Credential(_) => serve::keyring::sealing_key(&config)?,
    };
    done(Keyring::create(
        &config.keyring,
        place.purpose(),
        sealing_key,
    ))?;
    say(format_args!(
        "made the keyring {}: add keys with `keybroker keyring add`",
        config.keyring.display()
    ));
    Ok(())
}

impl Place {
    fn open(&self) -> Result<Keyring, Failure> {
        serve::keyring::keyring(&self.find()?, self.purpose())
    }

    fn find(&self) -> Result<LocalConfig, Failure> {
        if let (Some(keyring), Some(sealing_key)) = (&self.keyring, &self.sealing_key) {
            return Ok(LocalConfig {
                keyring: keyring.clone(),
                sealing_key: sealing_key.clone(),
                rotation_period: None,
            });
        }
        let config = Config::load_for(&self.config, self.purpose())
            .map_err(|error| Failure::config(&error))?;
        config.kms.local.ok_or_else(|| {
            let sentence = format!(
                "{} has no section [kms.local]: add it, or give --keyring and --sealing-key",
                self.config.display()
            );
            Failure::new(Exit::Config, sentence)
        })
    }

    fn purpose(&self) -> Purpose {
        match self.dev {
            true => Purpose::Dev,
            false => Purpose::Production,
        }
    }
}

fn done<T>(outcome: Result<T, local::Error>) -> Result<T, Failure> {
    outcome.map_err(|error| Failure::keyring(&error))
}

fn unmade(error: &sealing::Error) -> Failure {
    Failure::new(Exit::CannotCreate, chain(error))
}

fn line(key: &Listing) -> String {
    let newest = key.versions.last();
    let newest = newest.map_or_else(String::new, |(number, made)| {
        format!("version {number} of {made}")
    });
    format!("{}  {}  {newest}\n", key.id, key.state)
}

fn json(keys: &[Listing]) -> String {
    let version = |(number, made): &(u32, jiff::Timestamp)| serde_json::json!({ "number": number, "created": made.to_string() });
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            let versions: Vec<_> = key.versions.iter().map(version).collect();
            serde_json::json!({
                "id": key.id.as_str(),
                "state": key.state.to_string(),
                "versions": versions,
            })
        })
        .collect();
    format!("{}\n", serde_json::json!({ "keys": keys }))
}
