//! How large the cache may be.

use std::path::PathBuf;

use serde::Deserialize;

use crate::strict::OutOfBounds;

/// The `cache` part of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most entries of all tenants, 1 to 10,000,000: a data key that seals is one, a data key that
    /// opens is one.
    pub entries: u64,
    /// Most entries of a tenant, 1 to 10,000,000.
    pub tenant_entries: u64,
    /// Most bytes that a tenant's entries take, 1 KiB to 16 GiB.
    pub tenant_bytes: u64,
    /// Most data keys that are refreshed at once, 1 to 1,000; a quarter of them of one tenant.
    pub refreshes: usize,
    /// Most calls that wait for KMS at once, 4 to 65,536, a quarter of them of one tenant; one more
    /// is OVERLOADED.
    pub waiters: u64,
    /// Where the wrapped keys of recently used entries are kept for the next start; nowhere when
    /// not set.
    pub warm_file: Option<PathBuf>,
    /// Most KMS calls a second that the start makes for them, 1 to 1,000.
    pub warm_rate: u32,
}

impl Default for Config {
    /// Ten tenants can have their whole share at once; a full cache takes about 100 MiB.
    fn default() -> Self {
        Self {
            entries: 100_000,
            tenant_entries: 10_000,
            tenant_bytes: 16 << 20,
            refreshes: 64,
            waiters: 8192,
            warm_file: None,
            warm_rate: 20,
        }
    }
}

impl Config {
    /// Checks every setting against its bounds.
    ///
    /// # Errors
    /// [`OutOfBounds`] for the first outside.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        let refreshes = u64::try_from(self.refreshes).unwrap_or(u64::MAX);
        for (name, value, (floor, least), (ceiling, most)) in [
            ("cache.entries", self.entries, (1, "1"), MOST_ENTRIES),
            (
                "cache.tenant_entries",
                self.tenant_entries,
                (1, "1"),
                MOST_ENTRIES,
            ),
            (
                "cache.tenant_bytes",
                self.tenant_bytes,
                (1 << 10, "1024"),
                MOST_BYTES,
            ),
            ("cache.refreshes", refreshes, (1, "1"), (1000, "1000")),
            ("cache.waiters", self.waiters, (4, "4"), (65_536, "65536")),
            (
                "cache.warm_rate",
                self.warm_rate.into(),
                (1, "1"),
                (1000, "1000"),
            ),
        ] {
            if !(floor..=ceiling).contains(&value) {
                return Err(OutOfBounds {
                    name,
                    value: value.to_string(),
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

const MOST_ENTRIES: (u64, &str) = (10_000_000, "10000000");
const MOST_BYTES: (u64, &str) = (16 << 30, "17179869184");
