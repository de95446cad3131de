//! Bounds of the server as a whole.

use jiff::SignedDuration;
use serde::Deserialize;

use crate::grpc::driver::Deadlines;
use crate::strict::OutOfBounds;

/// Bounds of the server as a whole, each with a ceiling above which it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one identity.
    pub connections_per_identity: usize,
    /// Connections from one address, before the identity is known.
    pub connections_per_address: usize,
    /// Calls under way; one more is OVERLOADED.
    pub in_flight: usize,
    /// Streams under way, which count apart; one more is OVERLOADED.
    pub streams: usize,
    /// Time for which work may stand in line: while it stands longer, calls of tenants over their
    /// share are OVERLOADED.
    pub queue_delay: SignedDuration,
    /// Time for which a caller that is alone and asks again at once is waited for awake.
    pub busy_poll: SignedDuration,
    /// The age at which a connection is asked to go, ± 10 %.
    pub connection_age: SignedDuration,
    /// After SIGTERM, the time in which load balancers learn that we go.
    pub drain_pause: SignedDuration,
    /// Then, the time in which calls under way finish.
    pub drain: SignedDuration,
    /// How patient a connection is.
    #[serde(skip)]
    pub deadlines: Deadlines,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_identity: 64,
            connections_per_address: 256,
            in_flight: 512,
            streams: 128,
            queue_delay: SignedDuration::from_millis(5),
            busy_poll: SignedDuration::from_micros(100),
            connection_age: SignedDuration::from_mins(15),
            drain_pause: SignedDuration::from_secs(5),
            drain: SignedDuration::from_secs(25),
            deadlines: Deadlines::default(),
        }
    }
}

impl Limits {
    /// Checks every limit against its ceiling.
    ///
    /// # Errors
    /// [`OutOfBounds`] for the first outside.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        let count = |name, value: usize, ceiling, most| match value {
            value if (1..=ceiling).contains(&value) => Ok(()),
            value => Err(OutOfBounds {
                name,
                value: value.to_string(),
                least: "1",
                most,
            }),
        };
        count("limits.connections", self.connections, 65_536, "65536")?;
        count(
            "limits.connections_per_identity",
            self.connections_per_identity,
            65_536,
            "65536",
        )?;
        count(
            "limits.connections_per_address",
            self.connections_per_address,
            65_536,
            "65536",
        )?;
        count("limits.in_flight", self.in_flight, 65_536, "65536")?;
        count("limits.streams", self.streams, 65_536, "65536")?;
        let span = |name, value: SignedDuration, least, floor, most, ceiling| {
            if value < floor || value > ceiling {
                return Err(OutOfBounds {
                    name,
                    value: format!("{value:#}"),
                    least,
                    most,
                });
            }
            Ok(())
        };
        let seconds = SignedDuration::from_secs;
        span(
            "limits.queue_delay",
            self.queue_delay,
            "1ms",
            SignedDuration::from_millis(1),
            "10s",
            seconds(10),
        )?;
        span(
            "limits.busy_poll",
            self.busy_poll,
            "0s",
            seconds(0),
            "1ms",
            SignedDuration::from_millis(1),
        )?;
        span(
            "limits.connection_age",
            self.connection_age,
            "1s",
            seconds(1),
            "24h",
            seconds(86_400),
        )?;
        span(
            "limits.drain_pause",
            self.drain_pause,
            "0s",
            seconds(0),
            "60s",
            seconds(60),
        )?;
        span(
            "limits.drain",
            self.drain,
            "1s",
            seconds(1),
            "10m",
            seconds(600),
        )
    }
}
