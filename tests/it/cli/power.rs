//! Losses of power under load: what was acknowledged of a grant was on the disk.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::crashes::Acknowledged;
use super::crashes::Load;
use super::crashes::site;
use super::holder::Holder;
use super::site::Running;
use super::site::Site;
use super::site::good;
use super::tenants::sql;
use crate::support::dice::Dice;
use crate::support::scale::scaled;

/// F-6.
#[tokio::test(flavor = "multi_thread")]
async fn no_loss_of_power_loses_what_was_acknowledged() {
    let known = cut_power(scaled(8, 500), "all").await;
    println!("{}", known.counts());
    assert!(known.revoked.len() > 5, "{}", known.counts());
    assert_eq!(known.lost, 0);
}

/// The test above finds what is acknowledged without a sync.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lies_about_syncs_is_found_out() {
    let known = cut_power(2, "none").await;
    assert!(known.lost > 0, "{}", known.counts());
}

/// Has a broker lose its power so often, on a disk that does of all syncs what `syncs` says.
async fn cut_power(times: u64, syncs: &str) -> Acknowledged {
    let site = site();
    let folder = site.path("");
    let library = site.path("power.so");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/power.c"));
    good(compiler, b"");
    // The tables and the tenants are there, and on the disk.
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving on a Unix socket");
    server.stop();
    for name in FILES {
        settle(&site, name);
    }

    let mut known = Acknowledged::default();
    let mut dice = Dice::new(6);
    for time in 0..times {
        let mut command = site.command(&["serve"]);
        command
            .env("LD_PRELOAD", &library)
            .env("POWER_SYNCS", syncs);
        let server = Running::logging(command);
        known.check(&mut Holder::soon_at(&folder).await).await;
        let load = Load::begin(&folder, time);
        load.reaches(1 + dice.below(20)).await;
        server.crash();
        known.add(load.end().await);
        for name in FILES {
            lose(&site, name, &mut dice);
        }
        let _ = fs::remove_file(site.path("store.db-shm"));
        let integrity = sql(&site, "PRAGMA integrity_check");
        assert_eq!(integrity.as_deref(), Some("ok"), "time {time}");
        for name in FILES {
            settle(&site, name);
        }
    }
    let _server = Running::logging(site.command(&["serve"]));
    known.check(&mut Holder::soon_at(&folder).await).await;
    known
}

/// Makes of the file `name` what a disk has of it: all that was synced, and of what was not some
/// blocks.
fn lose(site: &Site, name: &str, dice: &mut Dice) {
    const BLOCK: usize = 512;
    let (path, disk) = (site.path(name), site.path(&format!("{name}.disk")));
    let Ok(mut left) = fs::read(&disk) else {
        let _ = fs::remove_file(&path);
        return;
    };
    let written = fs::read(&path).unwrap_or_default();
    if dice.below(2) == 0 {
        left.resize(left.len().max(written.len()), 0);
        for (left, written) in left.chunks_mut(BLOCK).zip(written.chunks(BLOCK)) {
            if dice.below(2) == 0 {
                left[..written.len()].copy_from_slice(written);
            }
        }
    }
    fs::write(&path, &left).unwrap();
}

/// What there is of the file `name`, the disk has.
fn settle(site: &Site, name: &str) {
    let (path, disk) = (site.path(name), site.path(&format!("{name}.disk")));
    if fs::copy(path, &disk).is_err() {
        let _ = fs::remove_file(&disk);
    }
}

const FILES: [&str; 3] = ["store.db", "store.db-wal", "store.db-journal"];
