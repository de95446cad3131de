//! `keybroker apply`: brings a tenants file into the store, for all brokers that share it.

use std::fs;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::connect::Connection;
use crate::cli::say;
use crate::grpc::client::Applied;
use crate::store::Absent;

/// Brings a tenants file into the store of a broker, all of it or nothing, and says what that
/// changed. All brokers on the store take it up within a second or so. Again, it changes nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The tenants file.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Removes the tenants that the file lacks; without it they stay.
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    connect: Connection,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let tenants = fs::read_to_string(&args.file).map_err(|error| {
        let sentence = format!("cannot read {}: {error}", args.file.display());
        Failure::new(Exit::NoInput, sentence)
    })?;
    let absent = if args.prune {
        Absent::Remove
    } else {
        Absent::Keep
    };
    let client = args.connect.connect().await?;
    let applied = client.apply(tenants, absent).await;
    tell(&applied.map_err(|error| Failure::broker(&error))?);
    Ok(())
}

fn tell(applied: &Applied) {
    let Applied {
        change,
        added,
        changed,
        removed,
        unchanged,
    } = applied;
    for (what, tenants) in [("added", added), ("changed", changed), ("removed", removed)] {
        for tenant in tenants {
            say(format_args!("{what} tenant {tenant}"));
        }
    }
    match change {
        Some(change) => say(format_args!(
            "change {change}; {unchanged} tenants unchanged"
        )),
        None => say(format_args!(
            "nothing changed; {unchanged} tenants unchanged"
        )),
    }
}
