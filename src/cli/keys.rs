//! `keybroker keys`: what a broker shows its caller of keys.

use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::connect;
use crate::cli::yield_bytes;
use crate::grpc::client::Key;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Lists the keys on which you hold any role.
    List(ListArgs),
}

#[derive(clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    connect: connect::Connection,
    /// Whose keys: tenants/{tenant}; without it those of your own tenant.
    #[arg(long, value_name = "PARENT", default_value = "")]
    parent: String,
    /// How to print them.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    let Command::List(args) = command;
    let client = args.connect.connect().await?;
    let keys = client
        .list_keys(&args.parent)
        .await
        .map_err(|error| Failure::broker(&error))?;
    let text = match args.output {
        Format::Json => json(&keys),
        Format::Text => text(&keys),
    };
    yield_bytes(text.as_bytes())
}

fn json(keys: &[Key]) -> String {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            serde_json::json!({
                "name": key.name,
                "role": key.role,
                "kms_keys": key.kms_keys,
                "additional_kms_keys": key.additional_kms_keys,
            })
        })
        .collect();
    format!("{}\n", serde_json::json!({ "keys": keys }))
}

fn text(keys: &[Key]) -> String {
    let width = keys.iter().map(|key| key.name.len()).max().unwrap_or(0);
    keys.iter()
        .map(|key| {
            let Key {
                name,
                role,
                kms_keys,
                additional_kms_keys,
            } = key;
            let additional = additional_kms_keys.iter();
            let additional = additional.map(|one| format!("{one} (additional)"));
            let all: Vec<String> = kms_keys.iter().cloned().chain(additional).collect();
            format!("{name:width$}  {role:14}  {}\n", all.join(", "))
        })
        .collect()
}
