//! `keybroker apply`: brings a tenants file into the store, for all brokers that share it.

use std::path::PathBuf;

use crate::cli::ConfigArg;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::say;
use crate::cli::stored;
use crate::config::Config;
use crate::identity::Rules;
use crate::store::Absent;
use crate::store::Applied;

/// Brings a tenants file into the store that the configuration names, all of it or nothing, and says
/// what that changed. Brokers take it up within a second or so. Again, it changes nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// The tenants file.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Removes the tenants that the file lacks; without it they stay.
    #[arg(long)]
    prune: bool,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let path = &args.config.config;
    let config = Config::load(path).map_err(|error| Failure::config(&error))?;
    if let Some(file) = &config.tenants_file {
        let sentence = format!(
            "{} names {} as tenants_file, which brokers bring in by themselves: change that file, \
             or take the setting out",
            path.display(),
            file.display()
        );
        return Err(Failure::new(Exit::Config, sentence));
    }
    let rules = Rules::new(&config.identity).map_err(|error| Failure::config(&error))?;
    let tenants = config
        .tenants(path, &args.file, &rules)
        .map_err(|error| Failure::config(&error))?;
    let absent = if args.prune {
        Absent::Remove
    } else {
        Absent::Keep
    };
    let store = stored::open(&config.store)?;
    let applied = store.apply(&tenants.documents, absent).await;
    tell(&applied.map_err(|error| stored::failure(&error))?);
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
