//! An echo, an Encrypt and a Decrypt of one size in one shape, measured in turn.

use std::time::Duration;

use prost::Message as _;

use crate::calls;
use crate::client::Call;
use crate::client::Client;
use crate::client::Shape;
use crate::echo;
use crate::echo::Payload;
use crate::process::Process;
use crate::round::Round;
use crate::round::median;
use crate::stage::Stage;

/// Those who are compared.
pub struct Servers {
    /// Does nothing.
    pub echo: Process,
    /// The product.
    pub broker: Process,
}

/// What stands side by side.
pub struct Group {
    /// What follows the call in the names of figures: the size, and the shape if it is unusual.
    pub label: String,
    columns: [Column; 3],
    to_echo: Client,
    to_broker: Client,
}

struct Column {
    name: &'static str,
    call: Call,
    rounds: Vec<Round>,
}

impl Group {
    /// Connects to both servers, and makes two calls to the broker.
    pub async fn new(label: &str, size: usize, shape: Shape, to: &Servers, stage: &Stage) -> Self {
        let to_echo = Client::connect(to.echo.address(), stage.folder(), shape).await;
        let to_broker = Client::connect(to.broker.address(), stage.folder(), shape).await;
        let (encrypt, decrypt) = calls::of(&to_broker, size).await;
        let column = |(name, call)| Column {
            name,
            call,
            rounds: Vec::new(),
        };
        let calls = [
            (ECHO, echo_of(size)),
            ("encrypt", encrypt),
            ("decrypt", decrypt),
        ];
        Self {
            label: label.to_owned(),
            columns: calls.map(column),
            to_echo,
            to_broker,
        }
    }

    /// Measures each once and returns how many calls the broker served.
    pub async fn measure(&mut self, servers: &Servers, span: Duration) -> usize {
        let mut served = 0;
        for column in &mut self.columns {
            let (server, client) = match column.name {
                ECHO => (&servers.echo, &self.to_echo),
                _ => (&servers.broker, &self.to_broker),
            };
            let round = Round::measure(server, client, &column.call, span).await;
            if column.name != ECHO {
                served += round.calls;
            }
            column.rounds.push(round);
        }
        served
    }

    /// Forgets what was measured.
    pub fn forget(&mut self) {
        for column in &mut self.columns {
            column.rounds.clear();
        }
    }

    /// Prints a line for each call, and returns the figures by name.
    pub fn report(&self) -> Vec<(String, f64)> {
        let mut figures = Vec::new();
        let [echo, ..] = &self.columns;
        for column in &self.columns {
            let of = |figure: fn(&Round) -> f64| median(column.rounds.iter().map(figure));
            // Round by round: a machine that is slow for a while is so to both.
            let ratio = |figure: fn(&Round) -> f64| {
                let rounds = column.rounds.iter().zip(&echo.rounds);
                median(rounds.map(|(own, echo)| figure(own) / figure(echo)))
            };
            let (cpu, p50) = (of(Round::cpu_us), of(|round| round.p50_us));
            let (user, system) = (of(|round| round.user_us), of(|round| round.system_us));
            let (rps, p99) = (of(|round| round.rps), of(|round| round.p99_us));
            let (cpu_ratio, p50_ratio) = (ratio(Round::cpu_us), ratio(|round| round.p50_us));
            let (label, name) = (&self.label, column.name);
            println!(
                "{label:11} {name:7} {rps:7.0} {p50:7.0} {p99:7.0} {p50_ratio:7.3} \
                 {user:7.2} {system:7.2} {cpu:7.2} {cpu_ratio:7.3}"
            );
            let measured = [
                ("rps", rps),
                ("p50_us", p50),
                ("p99_us", p99),
                ("cpu_us", cpu),
                ("cpu_user_us", user),
                ("cpu_system_us", system),
            ];
            let compared = [("cpu_ratio", cpu_ratio), ("p50_ratio", p50_ratio)];
            let compared = compared.into_iter().filter(|_| name != ECHO);
            for (figure, value) in measured.into_iter().chain(compared) {
                figures.push((format!("{name}_{label}_{figure}"), value));
            }
        }
        figures
    }
}

/// What [`Group::report`] prints, by column.
pub const HEADING: &str =
    "bytes       call    calls/s  p50 µs  p99 µs  × echo    user  system  CPU µs  × echo";

/// A call of the echo, with so many bytes.
pub fn echo_of(size: usize) -> Call {
    let data = vec![0x5a; size].into();
    Call {
        path: echo::PATH,
        message: Payload { data }.encode_to_vec().into(),
    }
}

const ECHO: &str = "echo";
