//! What OpenTelemetry's standard variables ask for. Those that stand nowhere here (endpoints,
//! headers, timeouts of a request, batches, attributes of the resource) its SDK reads by itself.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_otlp::tonic_types::transport::Certificate;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::tonic_types::transport::Identity;

use crate::trace::Sampling;
use crate::trace::UnknownSampler;

/// How spans are exported.
#[derive(Debug, PartialEq)]
pub(super) struct Spans {
    pub(super) sampling: Sampling,
    /// How many may wait.
    pub(super) queue: u32,
    /// For a batch, however often it is tried.
    pub(super) timeout: Duration,
}

/// How metrics are exported.
#[derive(Debug, PartialEq)]
pub(super) struct Series {
    /// For all of them, however often it is tried.
    pub(super) timeout: Duration,
}

/// What is exported by itself.
#[derive(Clone, Copy)]
pub(super) enum Signal {
    Logs,
    Metrics,
    Traces,
}

/// A variable that asks for what can't be had: then that is not exported.
#[derive(Debug, thiserror::Error)]
pub enum Misset {
    /// The address of a collector is of no use.
    #[error("the collector {address} cannot be talked to: {error}")]
    Address {
        /// The address.
        address: String,
        /// Why not.
        error: String,
    },
    /// No exporter is to be had so.
    #[error(transparent)]
    Build(#[from] ExporterBuildError),
    /// Of an exporter that is not here.
    #[error("{variable} is {value:?}: keybroker exports with otlp, or none")]
    Exporter {
        /// The variable.
        variable: String,
        /// What it says.
        value: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}, which {variable} names: {error}")]
    File {
        /// The variable.
        variable: String,
        /// What it says.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Headers that are none. What they say stands nowhere.
    #[error("{variable} holds no headers: write name=value, separated by commas")]
    Headers {
        /// The variable.
        variable: String,
    },
    /// A number out of bounds.
    #[error("{variable} is {value:?}, which is no number from 1 to {most}")]
    Number {
        /// The variable.
        variable: String,
        /// What it says.
        value: String,
        /// The largest that it may be.
        most: u32,
    },
    /// A context that is not read.
    #[error("OTEL_PROPAGATORS is {0:?}: keybroker reads tracecontext, and ignores baggage")]
    Propagators(String),
    /// Another protocol than ours.
    #[error(
        "{variable} is {value:?}: keybroker speaks grpc, which a collector expects at another port \
         than http, as a rule 4317"
    )]
    Protocol {
        /// The variable.
        variable: String,
        /// What it says.
        value: String,
    },
    /// A sampler that is not here.
    #[error("OTEL_TRACES_SAMPLER or OTEL_TRACES_SAMPLER_ARG: {0}")]
    Sampler(#[from] UnknownSampler),
}

/// Looks variables up by their names.
pub(super) struct Variables<F>(pub(super) F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    /// Whether and how spans are exported.
    pub(super) fn spans(&self) -> Result<Option<Spans>, Misset> {
        // Who names an endpoint wants something there: of metrics that may be known otherwise.
        let usual = match self.of(Signal::Traces, "ENDPOINT") {
            Some(_) => "otlp",
            None => "none",
        };
        if !self.is_wanted(Signal::Traces, usual)? {
            return Ok(None);
        }
        self.propagators()?;
        let name = self.get("OTEL_TRACES_SAMPLER");
        let share = self.get("OTEL_TRACES_SAMPLER_ARG");
        Ok(Some(Spans {
            sampling: Sampling::parse(name.as_deref(), share.as_deref())?,
            queue: self.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, MOST_WAITING)?,
            timeout: self.timeout("OTEL_BSP_EXPORT_TIMEOUT")?,
        }))
    }

    /// Whether and how metrics are exported.
    pub(super) fn series(&self) -> Result<Option<Series>, Misset> {
        if !self.is_wanted(Signal::Metrics, "none")? {
            return Ok(None);
        }
        Ok(Some(Series {
            timeout: self.timeout("OTEL_METRIC_EXPORT_TIMEOUT")?,
        }))
    }

    /// How a collector is talked to in secret; none where it is not to be.
    pub(super) fn tls(&self, signal: Signal) -> Result<Option<ClientTlsConfig>, Misset> {
        match self.of(signal, "ENDPOINT") {
            Some((_, endpoint)) => self.tls_to(signal, &endpoint),
            None => Ok(None),
        }
    }

    /// The same for the collector at `endpoint`.
    pub(super) fn tls_to(
        &self,
        signal: Signal,
        endpoint: &str,
    ) -> Result<Option<ClientTlsConfig>, Misset> {
        if endpoint.starts_with("http://") {
            return Ok(None);
        }
        let config = ClientTlsConfig::new();
        let config = match self.file(signal, "CERTIFICATE")? {
            Some(authorities) => config.ca_certificate(Certificate::from_pem(authorities)),
            None => config.with_native_roots(),
        };
        let own = self.file(signal, "CLIENT_CERTIFICATE")?;
        Ok(Some(match own.zip(self.file(signal, "CLIENT_KEY")?) {
            Some((chain, key)) => config.identity(Identity::from_pem(chain, key)),
            None => config,
        }))
    }

    /// A variable that is set, and not empty, which would be the same.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// Whether the contexts that callers send are of the kind that is read. Baggage may be named,
    /// since the standard's default names it; nothing of ours is asked to carry it on.
    fn propagators(&self) -> Result<(), Misset> {
        let Some(names) = self.get("OTEL_PROPAGATORS") else {
            return Ok(());
        };
        let names_of_ours = |name: &str| matches!(name.trim(), "tracecontext" | "baggage");
        let reads = names.split(',').any(|name| name.trim() == "tracecontext");
        match reads && names.split(',').all(names_of_ours) {
            true => Ok(()),
            false => Err(Misset::Propagators(names)),
        }
    }

    fn is_wanted(&self, signal: Signal, usual: &str) -> Result<bool, Misset> {
        let disabled = self.get("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(false);
        }
        let variable = match signal {
            Signal::Logs => "OTEL_LOGS_EXPORTER",
            Signal::Metrics => "OTEL_METRICS_EXPORTER",
            Signal::Traces => "OTEL_TRACES_EXPORTER",
        };
        let exporter = self.get(variable).unwrap_or_else(|| usual.to_owned());
        match exporter.as_str() {
            "none" => return Ok(false),
            "otlp" => {}
            _ => {
                return Err(Misset::Exporter {
                    variable: variable.to_owned(),
                    value: exporter,
                });
            }
        }
        self.protocol(signal).map(|()| true)
    }

    /// Whether a collector is to be talked to as we do.
    pub(super) fn protocol(&self, signal: Signal) -> Result<(), Misset> {
        match self.of(signal, "PROTOCOL") {
            Some((variable, value)) if value != "grpc" => Err(Misset::Protocol { variable, value }),
            Some(_) | None => Ok(()),
        }
    }

    /// What is said of `signal`, or of all signals, and by which variable.
    pub(super) fn of(&self, signal: Signal, name: &str) -> Option<(String, String)> {
        let own = match signal {
            Signal::Logs => "LOGS_",
            Signal::Metrics => "METRICS_",
            Signal::Traces => "TRACES_",
        };
        [own, ""].into_iter().find_map(|own| {
            let variable = format!("OTEL_EXPORTER_OTLP_{own}{name}");
            let value = self.get(&variable)?;
            Some((variable, value))
        })
    }

    fn file(&self, signal: Signal, name: &str) -> Result<Option<Vec<u8>>, Misset> {
        let Some((variable, path)) = self.of(signal, name) else {
            return Ok(None);
        };
        let path = PathBuf::from(path);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) => Err(Misset::File {
                variable,
                path,
                error,
            }),
        }
    }

    fn timeout(&self, variable: &str) -> Result<Duration, Misset> {
        let millis = self.number(variable, 30_000, u32::MAX)?;
        Ok(Duration::from_millis(millis.into()))
    }

    fn number(&self, variable: &str, usual: u32, most: u32) -> Result<u32, Misset> {
        let Some(value) = self.get(variable) else {
            return Ok(usual);
        };
        match value.trim().parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            Ok(_) | Err(_) => Err(Misset::Number {
                variable: variable.to_owned(),
                value,
                most,
            }),
        }
    }
}

/// The SDK makes room for all that may wait beforehand, half a KiB each.
const MOST_WAITING: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    /// Spans and metrics, by words.
    fn asked(variables: &[(&str, &str)]) -> [String; 2] {
        let variables = Variables(|name: &str| {
            let found = variables.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        let word = |wanted: Result<bool, Misset>| match wanted {
            Ok(true) => "yes".to_owned(),
            Ok(false) => "no".to_owned(),
            Err(error) => error.to_string(),
        };
        [
            word(variables.spans().map(|spans| spans.is_some())),
            word(variables.series().map(|series| series.is_some())),
        ]
    }

    #[test]
    fn nothing_is_exported_unasked() {
        const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let place = "http://localhost:4317";
        for (variables, expected) in [
            (&[][..], ["no", "no"]),
            (&[(ALL, "")], ["no", "no"]),
            (&[(ALL, place)], ["yes", "no"]),
            (&[(TRACES, place)], ["yes", "no"]),
            (&[("OTEL_TRACES_EXPORTER", "otlp")], ["yes", "no"]),
            (&[("OTEL_METRICS_EXPORTER", "otlp")], ["no", "yes"]),
            (
                &[(ALL, place), ("OTEL_TRACES_EXPORTER", "none")],
                ["no", "no"],
            ),
            (
                &[(ALL, place), ("OTEL_METRICS_EXPORTER", "otlp")],
                ["yes", "yes"],
            ),
            (
                &[
                    (ALL, place),
                    ("OTEL_METRICS_EXPORTER", "otlp"),
                    ("OTEL_SDK_DISABLED", "True"),
                ],
                ["no", "no"],
            ),
        ] {
            assert_eq!(asked(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let on = ("OTEL_TRACES_EXPORTER", "otlp");
        let http = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
        for (variable, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            (http, "http/json"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "7"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "65537"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "soon"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_PROPAGATORS", "tracecontext,xray"),
            ("OTEL_PROPAGATORS", "none"),
        ] {
            let [spans, _] = asked(&[on, (variable, value)]);
            assert!(spans.contains(variable), "{spans}");
            assert!(spans.contains(&format!("{value:?}")), "{spans}");
        }
        let [spans, _] = asked(&[("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert!(spans.contains("OTEL_TRACES_EXPORTER"), "{spans}");
        let standard = ("OTEL_PROPAGATORS", "tracecontext, baggage");
        let [spans, _] = asked(&[on, standard]);
        assert_eq!(spans, "yes");
        // What is said of one signal says nothing of the other.
        let [_, series] = asked(&[("OTEL_METRICS_EXPORTER", "otlp"), (http, "http/json")]);
        assert_eq!(series, "yes");
    }
}
