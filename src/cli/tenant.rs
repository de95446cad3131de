//! `keybroker tenant`: the kill switch.

use crate::cli::ConfigArg;
use crate::cli::Failure;
use crate::cli::say;
use crate::cli::stored;
use crate::config::Config;
use crate::directory::Standing;
use crate::name::TenantId;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Refuses a tenant's callers and any use of its keys, and drops its data keys, at every broker
    /// on the store. Holds until it is resumed, whatever tenants files say.
    Suspend(Args),
    /// Lets a suspended tenant go on.
    Resume(Args),
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// The tenant's id.
    tenant: TenantId,
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    let (args, standing, done) = match command {
        Command::Suspend(args) => (args, Standing::Suspended, "suspended"),
        Command::Resume(args) => (args, Standing::Active, "resumed"),
    };
    let Args { config, tenant } = args;
    let config = Config::load(&config.config).map_err(|error| Failure::config(&error))?;
    let store = stored::open(&config.store)?;
    let change = store.stand(&tenant, standing).await;
    match change.map_err(|error| stored::failure(&error))? {
        Some(change) => say(format_args!(
            "{done} tenant {tenant}: change {change}; brokers that have lost touch with the store \
             follow at the latest when {:#} have passed, or the tenant's own max_staleness",
            config.store.max_staleness
        )),
        None => say(format_args!("tenant {tenant} was {done} already")),
    }
    Ok(())
}
