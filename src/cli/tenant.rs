//! `keybroker tenant`: the kill switch.

use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::connect::Connection;
use crate::cli::yield_bytes;
use crate::grpc::client::Measure;
use crate::grpc::client::Receipt;
use crate::grpc::client::Replica;
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
    /// How to print the receipt.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    #[command(flatten)]
    connect: Connection,
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    let (args, measure, done) = match command {
        Command::Purge(args) => (args, Measure::Purge, "purged"),
        Command::Resume(args) => (args, Measure::Resume, "resumed"),
        Command::Suspend(args) => (args, Measure::Suspend, "suspended"),
    };
    let Args {
        tenant,
        output,
        connect,
    } = args;
    let client = connect.connect().await?;
    let receipt = client.manage_tenant(tenant.as_str(), measure).await;
    let receipt = receipt.map_err(|error| Failure::broker(&error))?;
    let text = match output {
        Format::Json => format!("{}\n", json(&tenant, &receipt)),
        Format::Text => text(done, &tenant, &receipt),
    };
    yield_bytes(text.as_bytes())
}

fn json(tenant: &TenantId, receipt: &Receipt) -> serde_json::Value {
    let replica = |one: &Replica| {
        let refuses = one.refuses.map(|time| time.to_string());
        serde_json::json!({ "id": one.id, "name": one.name, "refuse_time": refuses })
    };
    let replicas = |all: &[Replica]| all.iter().map(replica).collect::<Vec<_>>();
    serde_json::json!({
        "tenant": tenant,
        "change": receipt.change,
        "changed": receipt.changed,
        "confirmed": replicas(&receipt.confirmed),
        "unconfirmed": replicas(&receipt.unconfirmed),
    })
}

fn text(done: &str, tenant: &TenantId, receipt: &Receipt) -> String {
    let Receipt {
        change,
        changed,
        confirmed,
        unconfirmed,
    } = receipt;
    let mut text = match changed {
        true => format!("{done} tenant {tenant}: change {change}\n"),
        false => format!("tenant {tenant} was {done} already: change {change}\n"),
    };
    for Replica { id, name, .. } in confirmed {
        text += &format!("confirmed by {name} ({id})\n");
    }
    for Replica { id, name, refuses } in unconfirmed {
        text += &format!("not confirmed by {name} ({id})");
        if let Some(time) = refuses {
            text += &format!(": unless it hears of it, it refuses the tenant from {time} on");
        }
        text.push('\n');
    }
    text
}
