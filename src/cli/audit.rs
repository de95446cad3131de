//! `keybroker audit`: proves audit files whole, and shows people what is in them.

mod search;
mod tail;
mod verify;
mod view;

use crate::cli::Failure;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Prints records of files that have what is asked for.
    Search(search::Args),
    /// Prints the last records of a file.
    Tail(tail::Args),
    /// Proves files whole, in any order, or names the first record that shows that they are not.
    Verify(verify::Args),
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Search(args) => search::run(args),
        Command::Tail(args) => tail::run(args),
        Command::Verify(args) => verify::run(args),
    }
}
