//! `keybroker grant`: leave to use a key, made, listed, renewed and ended through a broker.

use std::path::PathBuf;

use jiff::SignedDuration;
use uuid::Uuid;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::connect;
use crate::cli::crypt::pair;
use crate::cli::crypt::token;
use crate::cli::yield_bytes;
use crate::grants::Operation;
use crate::grants::Operations;
use crate::grpc::client::Grant;
use crate::grpc::client::Which;
use crate::grpc::client::Wish;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Makes a grant, and prints its id and its token.
    Create(CreateArgs),
    /// Lists the living grants of a key, or those that you may retire.
    List(ListArgs),
    /// Has a grant live longer, and prints a token that knows of it.
    Renew(RenewArgs),
    /// Gives a grant back.
    Retire(RetireArgs),
    /// Takes a grant back.
    Revoke(NamedArgs),
}

#[derive(clap::Args)]
pub(super) struct CreateArgs {
    /// The key: keys/{key} of your own tenant, or tenants/{tenant}/keys/{key}.
    #[arg(long, value_name = "NAME")]
    key: String,
    /// Whom it is for: a principal, or a pattern as in key policies.
    #[arg(long, value_name = "PRINCIPAL")]
    grantee: String,
    /// What it allows, as Encrypt or ReEncryptTo; may be repeated.
    #[arg(long, value_name = "OPERATION", required = true, value_parser = operation)]
    operation: Vec<Operation>,
    /// Who may retire it.
    #[arg(long, value_name = "PRINCIPAL", default_value = "")]
    retiring_principal: String,
    /// The encryption context must be this pair and the others given so; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, conflicts_with = "context_subset")]
    context_equals: Vec<(String, String)>,
    /// The encryption context must have this pair; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    context_subset: Vec<(String, String)>,
    /// Its name: while the grant lives, to ask for it again changes nothing. One of its own without.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How long it lives, as 15m, which is the default.
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "0s", hide_default_value = true)]
    lifetime: u32,
    /// For how long after its creation it may be renewed.
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "0s", hide_default_value = true)]
    renewable_for: u32,
    /// How often it may be used.
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "0",
        hide_default_value = true
    )]
    max_uses: u32,
    /// A file with the token of a grant by which you may make this one; may be repeated.
    #[arg(long, value_name = "FILE")]
    grant_token_file: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// The key; without it those grants that you may retire.
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Only those of this grantee.
    #[arg(long, value_name = "PRINCIPAL", default_value = "", requires = "key")]
    grantee: String,
    /// Of whose keys those are that you may retire: tenants/{tenant}; your own tenant's without it.
    #[arg(
        long,
        value_name = "PARENT",
        default_value = "",
        conflicts_with = "key"
    )]
    parent: String,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub(super) struct RenewArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// For how long from now; without it for as long as it was made for.
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "0s", hide_default_value = true)]
    lifetime: u32,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(clap::Args)]
pub(super) struct RetireArgs {
    /// A file with a token of the grant, in place of --key and --id.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "id"], required_unless_present = "id")]
    grant_token_file: Option<PathBuf>,
    /// The key.
    #[arg(long, value_name = "NAME", requires = "id", default_value = "")]
    key: String,
    /// The grant's id.
    #[arg(long, value_name = "ID", requires = "key", default_value = "")]
    id: String,
    #[command(flatten)]
    connect: connect::Connection,
}

#[derive(clap::Args)]
pub(super) struct NamedArgs {
    /// The key.
    #[arg(long, value_name = "NAME")]
    key: String,
    /// The grant's id.
    #[arg(long, value_name = "ID")]
    id: String,
    #[command(flatten)]
    connect: connect::Connection,
}

#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    connect: connect::Connection,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(args) => list(args).await,
        Command::Renew(args) => renew(args).await,
        Command::Retire(args) => retire(args).await,
        Command::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let tokens = args.grant_token_file.iter().map(|path| token(path));
    let wish = Wish {
        key: args.key,
        grantee: args.grantee,
        retiring: args.retiring_principal,
        operations: Operations::new(args.operation)
            .ok_or_else(|| Failure::new(Exit::Usage, "which operations? give --operation"))?,
        equals: args.context_equals,
        subset: args.context_subset,
        // Asked for again after an answer that was lost, it is still one grant.
        name: args
            .name
            .unwrap_or_else(|| format!("cli/{}", Uuid::now_v7())),
        lifetime: args.lifetime,
        renewable: args.renewable_for,
        max_uses: args.max_uses,
        tokens: tokens.collect::<Result<_, _>>()?,
    };
    let client = args.common.connect.connect().await?;
    let made = client.create_grant(wish).await;
    let (grant, token) = made.map_err(|error| Failure::broker(&error))?;
    tell(&grant, &token, args.common.output)
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let which = match args.key {
        Some(key) => Which::OfKey {
            key,
            grantee: args.grantee,
        },
        None => Which::Retirable {
            parent: args.parent,
        },
    };
    let client = args.common.connect.connect().await?;
    let listed = client.list_grants(&which).await;
    let grants = listed.map_err(|error| Failure::broker(&error))?;
    let text = match args.common.output {
        Format::Json => {
            let grants: Vec<_> = grants.iter().map(json).collect();
            format!("{}\n", serde_json::json!({ "grants": grants }))
        }
        Format::Text => grants.iter().map(line).collect(),
    };
    yield_bytes(text.as_bytes())
}

async fn renew(args: RenewArgs) -> Result<(), Failure> {
    let client = args.named.connect.connect().await?;
    let NamedArgs { key, id, .. } = &args.named;
    let renewed = client.renew_grant(key, id, args.lifetime).await;
    let (grant, token) = renewed.map_err(|error| Failure::broker(&error))?;
    tell(&grant, &token, args.output)
}

async fn retire(args: RetireArgs) -> Result<(), Failure> {
    let token = args.grant_token_file.as_deref().map(token).transpose()?;
    let client = args.connect.connect().await?;
    let token = token.unwrap_or_default();
    let retired = client.retire_grant(&token, &args.key, &args.id).await;
    retired.map_err(|error| Failure::broker(&error))
}

async fn revoke(args: NamedArgs) -> Result<(), Failure> {
    let client = args.connect.connect().await?;
    let revoked = client.revoke_grant(&args.key, &args.id).await;
    revoked.map_err(|error| Failure::broker(&error))
}

/// Prints a grant and its token, which serves nobody but the grantee.
fn tell(grant: &Grant, token: &str, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Json => {
            let answer = serde_json::json!({ "grant": json(grant), "grant_token": token });
            format!("{answer}\n")
        }
        Format::Text => format!("{}token {token}\n", line(grant)),
    };
    yield_bytes(text.as_bytes())
}

fn json(grant: &Grant) -> serde_json::Value {
    let Grant {
        id,
        key,
        grantee,
        issuer,
        operations,
        expires,
        name,
    } = grant;
    serde_json::json!({
        "id": id,
        "key": key,
        "grantee_principal": grantee,
        "issuing_principal": issuer,
        "operations": operations,
        "expire_time": expires.map(|time| time.to_string()),
        "name": name,
    })
}

fn line(grant: &Grant) -> String {
    let expires = grant.expires.map(|time| time.to_string());
    format!(
        "{}  {}  {}  {}  {}\n",
        grant.id,
        expires.unwrap_or_default(),
        grant.key,
        grant.grantee,
        grant.operations.join(",")
    )
}

/// An operation by its name.
pub(super) fn operation(text: &str) -> Result<Operation, String> {
    Operation::named(text).ok_or_else(|| {
        let known = Operation::ALL.map(Operation::label);
        format!("not one of {}", known.join(", "))
    })
}

/// Whole seconds.
pub(super) fn span(text: &str) -> Result<u32, String> {
    let span: SignedDuration = text
        .parse()
        .map_err(|_| "not a time like 90s, 15m or 1h".to_owned())?;
    match u32::try_from(span.as_secs()) {
        Ok(seconds) if span.subsec_nanos() == 0 => Ok(seconds),
        _ => Err("not a whole number of seconds, 0 or more".to_owned()),
    }
}
