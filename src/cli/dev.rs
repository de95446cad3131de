//! `keybroker dev`: a broker with all that it needs, made on the spot: CA, certificates, keyring,
//! tenants. Starts what `serve` starts, then shows what it does.

mod certificates;
mod folder;
mod tour;

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::sync::oneshot;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::dev::folder::Folder;
use crate::cli::serve;
use crate::cli::serve::Broking;
use crate::cli::warn;
use crate::kms::local::Purpose;

/// Makes a CA, certificates of two workloads, a keyring and a configuration in a private folder,
/// serves with them on the loopback interface, and takes a tour: who calls, what is encrypted, what
/// it costs KMS, who is refused. NOT FOR PRODUCTION: `serve` refuses everything made here.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Stops after the tour; exit code 0 if all of it went well.
    #[arg(long)]
    once: bool,
    /// Where to listen: an address of the loopback interface, or a port of it.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", value_parser = loopback)]
    listen: SocketAddr,
    /// The folder, kept and used again; without it a fresh one, removed at the end.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    warn(WARNING);
    serve::harden();
    let stop = serve::told_to_stop()?;
    let folder = Folder::make(args.dir.as_deref(), args.listen)?;
    let broking = Broking::start(&folder.config(), Purpose::Dev).await?;
    let Some(address) = broking.address() else {
        let sentence = format!("{} names no listen.tcp", folder.config().display());
        return Err(Failure::new(Exit::Config, sentence));
    };
    let admin = broking.admin_address();
    let broker = broking.broker().clone();
    let (finished, once) = oneshot::channel::<()>();
    let serving = tokio::spawn(broking.until(async {
        tokio::select! {
            () = stop => {}
            _ = once => {}
        }
    }));
    let toured = tour::take(&folder, address, admin, &broker).await;
    if args.once || toured.is_err() {
        // Err: a signal was faster.
        let _ = finished.send(());
        ended(serving.await)?;
    } else {
        ended(serving.await)?;
        drop(finished);
    }
    toured
}

fn ended(outcome: Result<(), tokio::task::JoinError>) -> Result<(), Failure> {
    outcome.map_err(|error| Failure::new(Exit::Software, format!("the server failed: {error}")))
}

/// Whoever reaches a playground reaches its keys: from this machine alone.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<u16>() {
        Ok(port) => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        Err(_) => text.parse::<SocketAddr>(),
    };
    match address {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(address) => Err(format!(
            "{} is not of the loopback interface: `dev` is for this machine alone, use 127.0.0.1 \
             or [::1]; to serve others use `keybroker serve`",
            address.ip()
        )),
        Err(_) => Err("neither an address like 127.0.0.1:7443 nor a port".into()),
    }
}

const WARNING: &str = "\
**********************************************************************
**  keybroker dev: NOT FOR PRODUCTION                               **
**  Keys and certificates lie unguarded in a folder of this machine **
**********************************************************************";
