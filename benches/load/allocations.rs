//! How often a server asks for memory to answer a call. The server is `keybroker serve` out of this
//! benchmark's own binary, which differs in its allocator alone: one that counts.

use std::alloc::System;
use std::env;
use std::io::BufRead as _;
use std::process::Command;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use keybroker::mem::Counting;

use crate::calls;
use crate::client::Client;
use crate::client::Shape;
use crate::process::Process;
use crate::stage::Stage;

/// The argument that makes this binary the product: the product's own.
pub const SERVE: &str = "serve";

/// Serves as the arguments say, and answers each line of standard input with the count so far.
pub fn serve() -> ExitCode {
    ALLOCATOR.start();
    thread::spawn(|| {
        for _ in std::io::stdin().lock().lines() {
            println!("{}", ALLOCATOR.count());
        }
    });
    keybroker::cli::main()
}

/// Allocations a call in the whole server, those of its audit thread too: Encrypt, Decrypt.
pub async fn measure(size: usize, span: Duration) -> [f64; 2] {
    let stage = Stage::set();
    let mut own = Command::new(env::current_exe().unwrap());
    let mut server = Process::start(own.args([SERVE, "--config"]).arg(stage.config()));
    let client = Client::connect(server.address(), stage.folder(), Shape::USUAL).await;
    let (encrypt, decrypt) = calls::of(&client, size).await;
    let mut allocations = [0.0; 2];
    for (call, allocations) in [encrypt, decrypt].iter().zip(&mut allocations) {
        client.press(call, WARM_UP).await;
        let before = server.ask();
        let stood = client.press(call, span).await;
        let asked = server.ask() - before;
        *allocations = asked as f64 / stood.calls() as f64;
    }
    allocations
}

#[global_allocator]
static ALLOCATOR: Counting = Counting::new(System);

const WARM_UP: Duration = Duration::from_millis(200);
