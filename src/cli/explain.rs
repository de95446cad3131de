//! `keybroker explain`: why a principal would be allowed or denied an operation.

use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::connect::Connection;
use crate::cli::crypt::pair;
use crate::cli::grant::operation;
use crate::cli::yield_bytes;
use crate::grants::Operation;
use crate::grpc::client::Case;
use crate::grpc::client::Verdict;
use crate::name::TenantId;

/// Says why a principal would be allowed or denied an operation with a key: by which rule or grant, or
/// what is missing. Asks a broker, for its operators; uses nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Whom: spiffe://..., dns:NAME or unix:uid=UID,gid=GID.
    principal: String,
    /// What, as Encrypt or DescribeKey.
    #[arg(value_parser = operation)]
    operation: Operation,
    /// The key: keys/{key}, of the principal's own tenant unless --tenant says otherwise, or
    /// tenants/{tenant}/keys/{key}.
    key: String,
    /// Whose key it is.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantId>,
    /// A pair of the encryption context that the principal would name; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// The grant, to retire it.
    #[arg(long, value_name = "ID", required_if_eq("operation", "RetireGrant"))]
    grant: Option<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    #[command(flatten)]
    connect: Connection,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let key = match &args.tenant {
        Some(tenant) => format!("tenants/{tenant}/{}", args.key),
        None => args.key,
    };
    let client = args.connect.connect().await?;
    let verdict = client.explain(Case {
        principal: args.principal,
        operation: args.operation,
        key,
        context: args.context,
        grant: args.grant,
    });
    let verdict = verdict.await.map_err(|error| Failure::broker(&error))?;
    let text = match args.output {
        Format::Json => format!("{}\n", json(&verdict)),
        Format::Text => text(&verdict),
    };
    yield_bytes(text.as_bytes())
}

fn json(verdict: &Verdict) -> serde_json::Value {
    serde_json::json!({
        "allowed": verdict.allowed,
        "tenant": verdict.tenant,
        "rule": verdict.rule,
        "grant_id": verdict.grant,
        "role": verdict.role,
        "reason": verdict.reason,
        "explanation": verdict.explanation,
    })
}

fn text(verdict: &Verdict) -> String {
    let outcome = match verdict.allowed {
        true => "allowed".to_owned(),
        false => format!("denied with {}", verdict.reason),
    };
    let explanation = &verdict.explanation;
    let tenant = match verdict.tenant.as_str() {
        "" => "none",
        tenant => tenant,
    };
    let role = match verdict.role.as_str() {
        "" => "no list",
        role => role,
    };
    format!(
        "{outcome}: {explanation}\n\
         tenant of the principal: {tenant}\n\
         named in the key's policy by: {role}\n"
    )
}
