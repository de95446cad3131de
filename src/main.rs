//! The `keybroker` command: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    keybroker::cli::main()
}
