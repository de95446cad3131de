//! How AWS KMS is reached: where, and how long a call may take.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use aws_sdk_kms::config::timeout::TimeoutConfig;
use jiff::SignedDuration;
use serde::Deserialize;

/// How AWS KMS is reached. Credentials are no part of it: they come from the SDK's standard chain
/// (environment, profile, web identity, container, instance).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A URL that takes the place of AWS's own endpoints, for the keys of every Region that
    /// `endpoints` does not name: a VPC endpoint or an emulator. `https://…`, or `http://…` on this
    /// machine's loopback.
    pub endpoint: Option<String>,
    /// Likewise for the keys of one Region, by its name: a VPC endpoint has but one.
    pub endpoints: BTreeMap<String, String>,
    /// Longest time for one attempt, connection included and the loading of our own credentials
    /// not: above 0, at most 10 s.
    pub attempt_timeout: SignedDuration,
    /// Longest time for a whole call, all attempts, the pauses between them and the loading of our
    /// own credentials included: at least `attempt_timeout`, at most 30 s.
    pub operation_timeout: SignedDuration,
    /// Most requests a second to an account in a Region, 1 to 100,000. Share the account's quota
    /// out: four fifths of it, divided by the number of brokers.
    pub requests_per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            endpoints: BTreeMap::new(),
            // KMS answers in 50 to 300 ms, seldom in more.
            attempt_timeout: SignedDuration::from_millis(750),
            // Three attempts fit in; or, once an hour, a token exchange with STS or a slow metadata
            // service.
            operation_timeout: SignedDuration::from_secs(5),
            // A twentieth of the smallest quota that an account has by default, which all of its
            // applications share; with warm caches a broker needs a few a second.
            requests_per_second: 500,
        }
    }
}

impl Config {
    /// Checks every setting against its bounds.
    ///
    /// # Errors
    /// [`Misconfigured`] for the first outside.
    pub fn check(&self) -> Result<(), Misconfigured> {
        self.timeouts()?;
        if !(1..=MAX_RATE).contains(&self.requests_per_second) {
            return Err(Misconfigured {
                field: "requests_per_second",
                why: "1 to 100000",
            });
        }
        let all = self.endpoint.iter().map(|endpoint| ("endpoint", endpoint));
        let own = self.endpoints.values();
        for (field, endpoint) in all.chain(own.map(|endpoint| ("endpoints", endpoint))) {
            if !is_confidential(endpoint) {
                return Err(Misconfigured {
                    field,
                    why: "https://<host>, or http://<host> on the loopback of this machine",
                });
            }
        }
        Ok(())
    }

    /// The URL that takes the place of AWS's own endpoint in `region`.
    pub(super) fn endpoint_in(&self, region: &str) -> Option<&str> {
        let own = self.endpoints.get(region);
        own.or(self.endpoint.as_ref()).map(String::as_str)
    }

    /// The longest times for an attempt and for a whole call.
    ///
    /// # Errors
    /// [`Misconfigured`] for the first outside its bounds.
    pub fn timeouts(&self) -> Result<(Duration, Duration), Misconfigured> {
        let within = |field, span: SignedDuration, ceiling: Duration, why| {
            Duration::try_from(span)
                .ok()
                .filter(|span| !span.is_zero() && *span <= ceiling)
                .ok_or(Misconfigured { field, why })
        };
        let attempt = within(
            "attempt_timeout",
            self.attempt_timeout,
            MAX_ATTEMPT,
            "above 0, at most 10s",
        )?;
        let operation = within(
            "operation_timeout",
            self.operation_timeout,
            MAX_OPERATION,
            "above 0, at most 30s",
        )?;
        if operation < attempt {
            return Err(Misconfigured {
                field: "operation_timeout",
                why: "at least attempt_timeout",
            });
        }
        Ok((attempt, operation))
    }
}

/// A setting of [`Config`] is outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Misconfigured {
    /// The setting's name.
    pub field: &'static str,
    /// What it must be.
    pub why: &'static str,
}

/// The SDK's timeouts for `config`.
///
/// # Errors
/// [`Misconfigured`] for the first outside its bounds.
pub(super) fn timeouts(config: &Config) -> Result<TimeoutConfig, Misconfigured> {
    let (attempt, operation) = config.timeouts()?;
    // The SDK's own attempt timeout would also cut short the loading of credentials, and a load
    // that is cut short begins anew at the next call: a token service that takes longer than one
    // attempt would never get through. The read timeout begins after it.
    Ok(TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .read_timeout(attempt)
        .operation_attempt_timeout(operation)
        .operation_timeout(operation)
        .build())
}

/// Whether plaintext keys may travel to `endpoint`: by TLS, or without leaving this machine.
fn is_confidential(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return endpoint
            .strip_prefix("https://")
            .is_some_and(|rest| !rest.is_empty());
    };
    let host = rest.split('/').next().unwrap_or_default();
    let name = match host.split_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let address = host
        .parse::<SocketAddr>()
        .map(|address| address.ip())
        .or_else(|_| name.parse::<IpAddr>());
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Time to connect, TLS included: a handshake with a Region on the same continent, thrice.
const CONNECT: Duration = Duration::from_secs(1);
/// Longest attempt; callers have given up by then.
const MAX_ATTEMPT: Duration = Duration::from_secs(10);
/// Longest operation.
const MAX_OPERATION: Duration = Duration::from_secs(30);
/// Most requests a second: the largest quota that an account has by default.
const MAX_RATE: u32 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_keys_travel_by_tls_or_stay_on_the_machine() {
        for good in [
            "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com",
            "http://127.0.0.1:5000",
            "http://127.0.0.1:5000/",
            "http://[::1]:5000",
            "http://localhost:5000",
        ] {
            assert!(is_confidential(good), "{good}");
        }
        for bad in [
            "",
            "https://",
            "http://",
            "kms.example",
            "ftp://127.0.0.1",
            "http://kms.example",
            "http://10.0.0.1:80",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "http://localhost:a@kms.example",
            "http://127.0.0.1:1@kms.example",
        ] {
            assert!(!is_confidential(bad), "{bad}");
        }
    }

    #[test]
    fn timeouts_hold_at_the_edge_and_one_beyond() {
        let check = |attempt: i64, operation: i64| {
            let config = Config {
                attempt_timeout: SignedDuration::from_millis(attempt),
                operation_timeout: SignedDuration::from_millis(operation),
                ..Config::default()
            };
            config.timeouts().map(drop).map_err(|error| error.field)
        };
        assert_eq!(check(1, 1), Ok(()));
        assert_eq!(check(10_000, 30_000), Ok(()));
        assert_eq!(check(0, 5_000), Err("attempt_timeout"));
        assert_eq!(check(-1, 5_000), Err("attempt_timeout"));
        assert_eq!(check(10_001, 30_000), Err("attempt_timeout"));
        assert_eq!(check(750, 30_001), Err("operation_timeout"));
        assert_eq!(check(750, 749), Err("operation_timeout"));
    }

    #[test]
    fn the_rate_holds_at_the_edge_and_one_beyond() {
        let check = |requests_per_second| {
            let config = Config {
                requests_per_second,
                ..Config::default()
            };
            config.check().map_err(|error| error.field)
        };
        for (rate, outcome) in [
            (0, Err("requests_per_second")),
            (1, Ok(())),
            (100_000, Ok(())),
            (100_001, Err("requests_per_second")),
        ] {
            assert_eq!(check(rate), outcome);
        }
    }

    #[test]
    fn an_empty_table_is_the_default_and_unknown_settings_are_refused() {
        assert_eq!(toml::from_str(""), Ok(Config::default()));
        let config: Config = toml::from_str("attempt_timeout = \"750ms\"").expect("a setting");
        assert_eq!(config, Config::default());
        assert!(toml::from_str::<Config>("secret_access_key = \"x\"").is_err());
    }
}
