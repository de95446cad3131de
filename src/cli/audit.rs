//! `keybroker audit`: proves audit files whole, and shows people what is in them.

mod public_key;
mod search;
mod tail;
mod verify;
mod view;

use crate::cli::Failure;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Prints the public half of the key that signs audit records, or of the KMS key that
    /// countersigns them where there is one, as PEM: for `verify`, which then needs no network.
    PublicKey(public_key::Args),
    /// Prints records of files that have what is asked for.
    Search(search::Args),
    /// Prints the last records of a file.
    Tail(tail::Args),
    /// Proves files whole, in any order, or names the first record that shows that they are not.
    Verify(verify::Args),
}

pub(super) async fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::PublicKey(args) => public_key::run(args).await,
        Command::Search(args) => search::run(args),
        Command::Tail(args) => tail::run(args),
        Command::Verify(args) => verify::run(args),
    }
}
