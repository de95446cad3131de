//! The `keybroker` command: arguments in, exit code out.

use std::alloc::System;
use std::process::ExitCode;

use keybroker::mem::Wiping;

/// Nothing that passed through a buffer stays in memory that was freed.
#[global_allocator]
static ALLOCATOR: Wiping = Wiping(System);

fn main() -> ExitCode {
    keybroker::cli::main()
}
