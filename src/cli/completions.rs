//! `keybroker completions`: a script that a shell reads at its start.

use clap_complete::Shell;

use crate::cli::Failure;
use crate::cli::yield_bytes;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Which shell.
    shell: Shell,
}

pub(super) fn run(args: &Args, command: &mut clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "keybroker", &mut script);
    yield_bytes(&script)
}
