//! The `keybroker` command: arguments in, exit code out.

use std::process::ExitCode;

use keybroker::mem;
use keybroker::mem::Wiping;
use mimalloc::MiMalloc;

/// Nothing that passed through a buffer stays in memory that was freed.
#[global_allocator]
static ALLOCATOR: Wiping<MiMalloc> = Wiping(MiMalloc);

fn main() -> ExitCode {
    mem::small_pages();
    keybroker::cli::main()
}
