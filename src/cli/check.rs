//! `keybroker check-config`: the code that start and reload run, without serving.

use crate::cli::ConfigArg;
use crate::cli::Failure;
use crate::cli::say;
use crate::clock::Clock as _;
use crate::clock::System;
use crate::config::Config;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let path = &args.config.config;
    let config = Config::load(path).map_err(|error| Failure::config(&error))?;
    let state = config
        .state(path, System.wall(), None)
        .map_err(|error| Failure::config(&error))?;
    let directory = state.policy.directory();
    let tenants = directory.tenants().len();
    let keys: usize = directory
        .tenants()
        .map(|tenant| directory.keys(tenant.id()).len())
        .sum();
    say(format_args!(
        "{}: good; {tenants} tenants, {keys} keys, {} identity rules",
        path.display(),
        config.identity.rule.len(),
    ));
    Ok(())
}
