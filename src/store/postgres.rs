//! How PostgreSQL is reached: over TLS to a server that proves its name, and never for longer than a
//! statement should take.

use std::net::IpAddr;

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgSslMode;

use crate::store::Config;
use crate::store::Error;
use crate::store::Tls;

/// How to connect to the server at `url`. What `url` and the environment say of TLS does not count.
pub(super) fn options(
    url: &str,
    config: &Config,
    password: Option<&str>,
) -> Result<PgConnectOptions, Error> {
    let mut options: PgConnectOptions = url.parse().map_err(|_| {
        // The parser's own words may quote a password.
        Error::Address("not postgres://user@host/database".into())
    })?;
    // Addresses are shown; what is in `store.password` is not.
    let user = url
        .split_once("//")
        .and_then(|(_, rest)| rest.split_once('@'));
    if user.is_some_and(|(user, _)| user.contains(':')) || url.contains("password=") {
        return Err(Error::Address(
            "holds a password: put it into the file that store.password names".into(),
        ));
    }
    if let Some(password) = password {
        options = options.password(password);
    }
    let local = options.get_socket().is_some() || options.get_host().starts_with('/');
    options = match (local, config.tls) {
        (true, _) => options.ssl_mode(PgSslMode::Disable),
        (false, Tls::Off) if is_loopback(options.get_host()) => {
            options.ssl_mode(PgSslMode::Disable)
        }
        (false, Tls::Off) => {
            let why = "store.tls = \"off\" is for a server at 127.0.0.1 or [::1] alone";
            return Err(Error::Address(why.into()));
        }
        (false, Tls::VerifyFull) => match &config.ca {
            Some(ca) => options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(ca),
            None => {
                let why = "store.ca names no certificates to know the server by";
                return Err(Error::Address(why.into()));
            }
        },
    };
    Ok(options
        .application_name("keybroker")
        .options(BOUNDS)
        .disable_statement_logging())
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

/// The server gives up before we do; and where one of us stops in the midst of a change, the others
/// need not wait for long.
const BOUNDS: [(&str, &str); 4] = [
    // What it notices of tables that are there already is nobody's news.
    ("client_min_messages", "warning"),
    ("statement_timeout", "4s"),
    ("lock_timeout", "3s"),
    // Before those give up who wait for the locks of a broker that stands still.
    ("idle_in_transaction_session_timeout", "2500ms"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str, config: &Config) -> Option<String> {
        options(url, config, None)
            .err()
            .map(|error| error.to_string())
    }

    #[test]
    fn plain_text_is_for_this_machine_alone() {
        let off = Config {
            tls: Tls::Off,
            ..Config::default()
        };
        assert_eq!(refusal("postgres://k@127.0.0.1/k", &off), None);
        assert_eq!(refusal("postgres://k@[::1]/k", &off), None);
        for url in ["postgres://k@db.example/k", "postgres://k@10.0.0.1/k"] {
            assert!(refusal(url, &off).unwrap().contains("127.0.0.1"), "{url}");
        }
        assert_eq!(
            refusal("postgres://k@%2Frun%2Fpostgresql/k", &Config::default()),
            None
        );
    }

    #[test]
    fn tls_is_verified_whatever_the_address_says() {
        let url = "postgres://k@db.example/k?sslmode=disable";
        assert!(
            refusal(url, &Config::default())
                .unwrap()
                .contains("store.ca")
        );
        let config = Config {
            ca: Some("ca.pem".into()),
            ..Config::default()
        };
        let options = options(url, &config, None).unwrap();
        assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
    }

    #[test]
    fn a_password_does_not_stand_in_the_address() {
        let config = Config {
            tls: Tls::Off,
            ..Config::default()
        };
        for url in [
            "postgres://k:secret@127.0.0.1/k",
            "postgres://k@127.0.0.1/k?password=secret",
        ] {
            let sentence = refusal(url, &config).unwrap();
            assert!(sentence.contains("store.password"), "{sentence}");
            assert!(!sentence.contains("secret"), "{sentence}");
        }
    }

    #[test]
    fn a_bad_address_is_not_quoted() {
        let sentence = refusal("postgres://k:secret@:x/k", &Config::default()).unwrap();
        assert!(!sentence.contains("secret"), "{sentence}");
    }
}
