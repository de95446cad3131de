//! `keybroker healthcheck`: what a container or a unit asks in order to know whether the broker
//! serves.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use crate::cli::ConfigArg;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::connect;
use crate::config::Config;
use crate::grpc::client::Address;
use crate::grpc::client::Place;

/// Asks at --addr (here also http://host:port), or else where the configuration has listen.health
/// or listen.unix.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: connect::Connection,
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let unwell = |why: String| Failure::new(Exit::NotServing, why);
    let address = match &args.connect.addr {
        Some(address) => address.clone(),
        None => configured(&args.config).map_err(|failure| unwell(failure.sentence))?,
    };
    let asked = async {
        let client = args.connect.dial(&address).await?;
        client
            .is_serving()
            .await
            .map_err(|error| Failure::broker(&error))
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(unwell(format!(
            "the broker at {address} does not serve now"
        ))),
        Ok(Err(failure)) => Err(unwell(failure.sentence)),
        Err(_) => Err(unwell(format!(
            "the broker at {address} does not answer within {} s",
            PATIENCE.as_secs()
        ))),
    }
}

/// Where the configuration lets probes in without a certificate.
fn configured(args: &ConfigArg) -> Result<Address, Failure> {
    let config = Config::load(&args.config).map_err(|error| Failure::config(&error))?;
    match (config.listen.health, config.listen.unix) {
        (Some(address), _) => Ok(Address::Plain(near(address))),
        (None, Some(unix)) => Ok(Address::Unix(unix.path)),
        (None, None) => Err(Failure::new(
            Exit::Usage,
            format!(
                "{} has neither listen.health nor listen.unix: add one, or give --addr with \
                 certificates",
                args.config.display()
            ),
        )),
    }
}

/// Where a listener on all addresses is found.
fn near(address: SocketAddr) -> Place {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Place {
        host: ip.to_string(),
        port: address.port(),
    }
}

/// Below the usual timeouts of those who ask.
const PATIENCE: Duration = Duration::from_secs(3);
