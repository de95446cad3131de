//! `keybroker audit public-key`.

use std::fs;

use crate::cli::ConfigArg;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::chain;
use crate::cli::yield_bytes;
use crate::config::Config;
use crate::crypto::signature::PublicKey;
use crate::crypto::signature::SigningKey;
use crate::kms::Signer as _;
use crate::kms::aws::Aws;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let config = Config::load(&args.config.config).map_err(|error| Failure::config(&error))?;
    let public = match &config.audit.kms_key {
        Some(arn) => {
            let aws = Aws::load(config.kms.aws.clone()).await;
            let aws = aws.map_err(|error| Failure::config(&error))?;
            let public = aws.signing_key(arn).public_key().await;
            public.map_err(|error| Failure::kms(&error))?
        }
        None => own(&config)?,
    };
    yield_bytes(public.to_pem().as_bytes())
}

/// The public half of the key in a file.
fn own(config: &Config) -> Result<PublicKey, Failure> {
    let path = config.audit.key_file().ok_or_else(|| {
        let sentence = "the process makes a key that ends with it: set audit.signing_key or \
                        audit.kms_key";
        Failure::new(Exit::Usage, sentence)
    })?;
    let shown = path.display();
    let pem = fs::read(&path)
        .map_err(|error| Failure::new(Exit::NoInput, format!("cannot read {shown}: {error}")))?;
    let key = SigningKey::from_pem(&pem);
    let key =
        key.map_err(|error| Failure::new(Exit::Data, format!("{shown}: {}", chain(&error))))?;
    Ok(key.public())
}
