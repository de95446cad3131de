//! `keybroker tenant`: the kill switch.

use crate::cli::Failure;
use crate::cli::connect::Connection;
use crate::cli::say;
use crate::grpc::client::Measure;
use crate::grpc::client::Receipt;
use crate::name::TenantId;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Drops a tenant's data keys at every broker on the store: KMS is asked anew.
    Purge(Args),
    /// Lets a suspended tenant go on.
    Resume(Args),
    /// Refuses a tenant's callers and any use of its keys, and drops its data keys, at every broker
    /// on the store. Holds until it is resumed, whatever tenants files say.
    Suspend(Args),
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// The tenant's id.
    tenant: TenantId,
    #[command(flatten)]
    connect: Connection,
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    let (args, measure, done) = match command {
        Command::Purge(args) => (args, Measure::Purge, "purged"),
        Command::Resume(args) => (args, Measure::Resume, "resumed"),
        Command::Suspend(args) => (args, Measure::Suspend, "suspended"),
    };
    let Args { tenant, connect } = args;
    let client = connect.connect().await?;
    let receipt = client.manage_tenant(tenant.as_str(), measure).await;
    let receipt = receipt.map_err(|error| Failure::broker(&error))?;
    let Receipt { change, changed } = receipt;
    match changed {
        true => say(format_args!("{done} tenant {tenant}: change {change}")),
        false => say(format_args!(
            "tenant {tenant} was {done} already: change {change}"
        )),
    }
    Ok(())
}
