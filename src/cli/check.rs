//! `keybroker check-config`: the code that start and reload run, without serving.

mod online;

use jiff::SignedDuration;

use crate::cli::ConfigArg;
use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::say;
use crate::cli::stored;
use crate::clock::Clock as _;
use crate::clock::System;
use crate::config::Config;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Asks KMS too: for every key, in every Region, what works and which IAM statement is missing.
    /// Does nothing with the keys.
    #[arg(long)]
    online: bool,
    /// How to print what KMS says.
    #[arg(long, value_enum, default_value = "text", requires = "online")]
    output: Format,
    /// Longest time for asking.
    #[arg(long, value_name = "SPAN", default_value = "60s", requires = "online")]
    within: SignedDuration,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let path = &args.config.config;
    let config = Config::load(path).map_err(|error| Failure::config(&error))?;
    let state = config
        .state(path, System.wall())
        .map_err(|error| Failure::config(&error))?;
    let directory = match state.tenants {
        Some(tenants) => tenants.directory,
        None => stored::directory(&config.store).await?,
    };
    let tenants = directory.tenants().len();
    let keys: usize = directory
        .tenants()
        .map(|tenant| directory.keys(tenant.id()).len())
        .sum();
    // In JSON nothing else stands on standard output.
    if let (false, _) | (true, Format::Text) = (args.online, args.output) {
        say(format_args!(
            "{}: good; {tenants} tenants, {keys} keys, {} identity rules",
            path.display(),
            config.identity.rule.len(),
        ));
    }
    match args.online {
        true => online::check(&config, &directory, args.within, args.output).await,
        false => Ok(()),
    }
}
