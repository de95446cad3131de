//! `keybroker kms-grant`: grants of AWS KMS itself, made, listed and ended through a broker.

use serde_json::Value;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::connect;
use crate::cli::crypt::pair;
use crate::cli::grant::operation;
use crate::cli::grant::span;
use crate::cli::yield_bytes;
use crate::grants::Operation;
use crate::grants::Operations;
use crate::grpc::client::KmsGrant;
use crate::grpc::client::KmsWish;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Makes a grant of KMS, and prints its ids and KMS's token of it.
    Create(CreateArgs),
    /// Lists the living grants of KMS of a key.
    List(ListArgs),
    /// Ends a grant in KMS.
    Revoke(RevokeArgs),
}

#[derive(clap::Args)]
pub(super) struct CreateArgs {
    /// The key: keys/{key} of your own tenant, or tenants/{tenant}/keys/{key}.
    #[arg(long, value_name = "NAME")]
    key: String,
    /// Whom it is for: the ARN of a user, a role or a session of IAM.
    #[arg(long, value_name = "ARN")]
    grantee: String,
    /// What it allows, as Decrypt or GenerateDataKey; may be repeated.
    #[arg(long, value_name = "OPERATION", required = true, value_parser = operation)]
    operation: Vec<Operation>,
    /// The encryption context must be this pair, the others given so, and those that the key sets;
    /// may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, conflicts_with = "context_subset")]
    context_equals: Vec<(String, String)>,
    /// The encryption context must have this pair, beside those that the key sets; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    context_subset: Vec<(String, String)>,
    /// How long it lives, as 15m, which is the default.
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "0s", hide_default_value = true)]
    lifetime: u32,
    #[command(flatten)]
    connect: connect::Connection,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// The key.
    #[arg(long, value_name = "NAME")]
    key: String,
    #[command(flatten)]
    connect: connect::Connection,
    /// How to print them.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(clap::Args)]
pub(super) struct RevokeArgs {
    /// The key.
    #[arg(long, value_name = "NAME")]
    key: String,
    /// The grant's id at the broker.
    #[arg(long, value_name = "ID")]
    id: String,
    #[command(flatten)]
    connect: connect::Connection,
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(args) => list(args).await,
        Command::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let wish = KmsWish {
        key: args.key,
        grantee: args.grantee,
        operations: Operations::new(args.operation)
            .ok_or_else(|| Failure::new(Exit::Usage, "which operations? give --operation"))?,
        equals: args.context_equals,
        subset: args.context_subset,
        lifetime: args.lifetime,
    };
    let client = args.connect.connect().await?;
    let made = client.create_kms_grant(wish).await;
    let (grant, token) = made.map_err(|error| Failure::broker(&error))?;
    let text = match args.output {
        Format::Json => {
            let answer = json!({ "grant": as_json(&grant), "grant_token": token });
            format!("{answer}\n")
        }
        Format::Text => format!("{}token {token}\n", line(&grant)),
    };
    yield_bytes(text.as_bytes())
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = args.connect.connect().await?;
    let listed = client.list_kms_grants(&args.key).await;
    let grants = listed.map_err(|error| Failure::broker(&error))?;
    let text = match args.output {
        Format::Json => {
            let grants: Vec<_> = grants.iter().map(as_json).collect();
            format!("{}\n", json!({ "grants": grants }))
        }
        Format::Text => grants.iter().map(line).collect(),
    };
    yield_bytes(text.as_bytes())
}

async fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let client = args.connect.connect().await?;
    let revoked = client.revoke_kms_grant(&args.key, &args.id).await;
    revoked.map_err(|error| Failure::broker(&error))
}

fn as_json(grant: &KmsGrant) -> Value {
    let KmsGrant {
        id,
        key,
        arn,
        kms_id,
        grantee,
        issuer,
        operations,
        expires,
    } = grant;
    json!({
        "id": id,
        "key": key,
        "kms_key_arn": arn,
        "kms_grant_id": kms_id,
        "grantee_principal": grantee,
        "issuing_principal": issuer,
        "operations": operations,
        "expire_time": expires.map(|time| time.to_string()),
    })
}

fn line(grant: &KmsGrant) -> String {
    let expires = grant.expires.map(|time| time.to_string());
    format!(
        "{}  {}  {}  {}  {}  {}  {}\n",
        grant.id,
        expires.unwrap_or_default(),
        grant.key,
        grant.arn,
        grant.kms_id,
        grant.grantee,
        grant.operations.join(",")
    )
}
