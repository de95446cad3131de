//! A server with five times as much to do as it can.

mod lane;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use keybroker::grpc::pb;
use tokio::time::Instant;

use super::house::House;
use super::house::KEYBROKER;
use super::site::Running;
use crate::harness::Connection;
use crate::harness::Refusal;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::figures;
use crate::support::http1::get;
use crate::support::prometheus;
use crate::support::scale::scaled;

use lane::Fate;
use lane::Lane;

/// The server has one processor for itself, and its callers have another, as far as others leave them.
/// One tenant storms, two go on as ever; calls are small and their data keys cached.
#[tokio::test]
async fn a_storm_of_one_tenant_costs_others_little_and_is_over_when_it_ends() {
    let kms = FakeKms::start().await;
    let arn = kms.key("eu-central-1");
    let house = House::new(&arn);
    house.use_kms(&kms);
    let tenant = |tenant: &str| {
        format!(
            "[[tenant]]\nid = \"{tenant}\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{}\"\n\
             users = [\"spiffe://prod.example/tenant/{tenant}/sa/web\"]\n",
            arn.as_str()
        )
    };
    let tenants = [tenant(STORM), tenant(CALM[0]), tenant(CALM[1])].concat();
    house.site.write("tenants.toml", &tenants);
    let admin = "[listen]\nadmin = \"127.0.0.1:0\"";
    house.site.edit("keybroker.toml", "[listen]", admin);
    house
        .site
        .edit("keybroker.toml", "queue_delay = \"10s\"\n", "");
    let (ours, its) = processors();
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", &its, KEYBROKER]);
    let server = Running::logging(house.equip(pinned));
    let address = House::address(&server);
    let line = server.await_line("serving metrics and readiness in plain text");
    let (_, admin) = line.split_once("address=").unwrap();
    let admin = admin.trim().parse().unwrap();
    let thread = fs::read_link("/proc/thread-self").unwrap();
    let thread = thread.file_name().unwrap().to_owned();
    let mut keep = Command::new("taskset");
    let keep = keep.args(["-p", "-c", &ours]).arg(thread).output().unwrap();
    assert!(keep.status.success(), "{keep:?}");

    let mut storm = lanes(&house, address, STORM, 12).await;
    let mut late = lanes(&house, address, STORM, 2).await;
    let mut calm = Vec::new();
    for tenant in CALM {
        calm.extend(lanes(&house, address, tenant, 1).await);
    }

    // In turn: what else the machine does shall be in all of it.
    let (mut peak, mut usual) = (Crowd::default(), Crowd::default());
    let _warm = press(&server, &mut storm, 1e6, FEW, Duration::from_millis(500)).await;
    let short = scaled(Duration::from_millis(700), Duration::from_secs(5));
    peak.add(press(&server, &mut storm, 1e6, FEW, short).await);
    // A server that is planned for as much as this.
    let rate = peak.rate() / 2.0;
    usual.add(press(&server, &mut storm, rate, MOST, short).await);

    let lasts = scaled(Duration::from_secs(4), Duration::from_secs(60));
    let began = Instant::now();
    let end = began + lasts;
    let (capacity, counted) = (peak.rate(), began + NOTICED);
    let cpu = cpu(&server);
    let storming = async {
        // Those of after the storm say a word now and then, or they would be taken for dead.
        let (stormed, _) = tokio::join!(
            run(&mut storm, 5.0 * capacity, MOST, end),
            run(&mut late, 2.0, MOST, end),
        );
        let cpu = self::cpu(&server) - cpu;
        let late = run(&mut late, 0.3 * capacity, MOST, end + AFTER).await;
        (stormed, late, cpu, settle(&mut storm).await)
    };
    let going_on = run(&mut calm, 0.2 * capacity, MOST, end + AFTER);
    let ((stormed, late, cpu, _), calm, refusal) =
        tokio::join!(storming, going_on, refused(&house, address));
    let share = cpu.as_secs_f64() / lasts.as_secs_f64();

    usual.add(press(&server, &mut storm, rate, MOST, short).await);
    peak.add(press(&server, &mut storm, 1e6, FEW, short).await);

    let goodput = [&stormed, &calm].map(|fate| fate.served_between(counted, end).count());
    let goodput = (goodput[0] + goodput[1]) as f64 / (end - counted).as_secs_f64();
    let mut took: Vec<Duration> = stormed.served_between(counted, end).collect();
    took.extend(calm.served_between(counted, end));
    let (served, unloaded) = (
        p99(took),
        p99(usual.fate.served.iter().map(|call| call.took)),
    );
    let (ratio, p99_ratio) = (
        goodput / peak.rate(),
        served.as_secs_f64() / unloaded.as_secs_f64(),
    );
    // What a second of the processor brings, whoever else has the rest of it.
    let worth = (goodput / share) / (peak.rate() / peak.share());
    let refused = [&late, &calm].map(|fate| fate.refused.iter().max());
    let last = refused.into_iter().flatten().max();
    let recovery = last.map_or(Duration::ZERO, |last| last.duration_since(end));
    println!(
        "{goodput:.0} calls/s of {:.0}, {worth:.2} of them by processor, which it had {share:.2} of, \
         {:.2} at its peak; p99 {served:?} for {unloaded:?}; {} refused, {} unsent; calm: {} served, {} refused; \
         recovered in {recovery:?}",
        peak.rate(),
        peak.share(),
        stormed.refused.len(),
        stormed.unsent,
        calm.served.len(),
        calm.refused.len(),
    );
    figures::record("upstream", [("overload_goodput", ratio)]);
    figures::record("upstream", [("overload_goodput_per_cpu", worth)]);
    figures::record("upstream", [("overload_p99_ratio", p99_ratio)]);
    figures::record("upstream", [("overload_cpu_share", share)]);
    let recovery_ms = recovery.as_secs_f64() * 1e3;
    figures::record("upstream", [("overload_recovery_ms", recovery_ms)]);

    assert_eq!(refusal.reason, "OVERLOADED", "{refusal:?}");
    assert!(refusal.retry.is_some());
    assert!(!stormed.refused.is_empty());
    assert!(calm.refused.len() <= calm.served.len() / 50);
    assert!(recovery <= Duration::from_secs(5), "{recovery:?}");
    let page = get(admin, "/metrics").await;
    let shed = prometheus::parse(&page.body)[r#"keybroker_shed_total{reason="queue_delay"}"#];
    assert!(shed >= stormed.refused.len() as f64, "{shed}");
    // Others share the processors as a rule. Where they do not, nothing else is to blame.
    assert!(worth >= 0.5 && p99_ratio <= 20.0, "{worth} {p99_ratio}");
    if peak.share() >= 0.95 {
        assert!(ratio >= 0.8, "{ratio}");
        // Callers that are not optimized are the slower ones, and wait for themselves.
        if scaled(false, !cfg!(debug_assertions)) {
            assert!(p99_ratio <= 3.0, "{p99_ratio}");
        }
    }
    drop((storm, late, calm));
    assert_eq!(server.stop(), Some(0));
}

/// What came of some seconds.
#[derive(Default)]
struct Crowd {
    fate: Fate,
    lasted: Duration,
    cpu: Duration,
}

impl Crowd {
    fn add(&mut self, other: Self) {
        self.fate.add(other.fate);
        self.lasted += other.lasted;
        self.cpu += other.cpu;
    }

    fn rate(&self) -> f64 {
        self.fate.served.len() as f64 / self.lasted.as_secs_f64()
    }

    fn share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.lasted.as_secs_f64()
    }
}

/// `rate` calls a second of all lanes together for `span`, at most so many at a time on each.
async fn press(
    server: &Running,
    lanes: &mut [Lane],
    rate: f64,
    most: usize,
    span: Duration,
) -> Crowd {
    let (began, cpu) = (Instant::now(), cpu(server));
    let fate = run(lanes, rate, most, began + span).await;
    let crowd = Crowd {
        fate,
        lasted: began.elapsed(),
        cpu: self::cpu(server) - cpu,
    };
    // Those few are nobody's.
    settle(lanes).await;
    crowd
}

async fn run(lanes: &mut [Lane], rate: f64, most: usize, end: Instant) -> Fate {
    let pause = Duration::from_secs_f64(lanes.len() as f64 / rate);
    let count = lanes.len() as f64;
    // They do not keep step.
    let running = lanes.iter_mut().enumerate().map(|(n, lane)| {
        let begin = Instant::now() + pause.mul_f64(n as f64 / count);
        lane.run(pause, most, begin, end)
    });
    all(join_all(running).await)
}

async fn settle(lanes: &mut [Lane]) -> Fate {
    all(soon(join_all(lanes.iter_mut().map(Lane::settle))).await)
}

fn all(fates: Vec<Fate>) -> Fate {
    let mut all = Fate::default();
    fates.into_iter().for_each(|fate| all.add(fate));
    all
}

/// Connections of `tenant`, whose calls are dear for their size: a message under another key, with
/// a context of ten pairs on either side.
async fn lanes(house: &House, address: SocketAddr, tenant: &str, count: usize) -> Vec<Lane> {
    let id = format!("spiffe://prod.example/tenant/{tenant}/sa/web");
    let identity = house.authority.client(&id);
    let stream = house.tls(address, &identity).await;
    let mut client = Connection::new(stream).await.unwrap().client();
    let context = (0..10).map(|n| (format!("name-{n}"), format!("value-{n}")));
    let context: BTreeMap<_, _> = context.collect();
    let request = pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext: vec![0x5a; 256].into(),
        encryption_context: context.clone(),
        ..Default::default()
    };
    let sealed = client.encrypt(request).await.unwrap().into_inner();
    let request = pb::ReEncryptRequest {
        source_name: "keys/orders".into(),
        source_encryption_context: context.clone(),
        ciphertext: sealed.ciphertext,
        destination_name: "keys/orders".into(),
        destination_encryption_context: context,
        ..Default::default()
    };
    let mut lanes = Vec::new();
    for _ in 0..count {
        let stream = house.tls(address, &identity).await;
        let path = "/keybroker.v1.KeyBrokerService/ReEncrypt";
        lanes.push(Lane::new(stream, path, &request).await);
    }
    lanes
}

/// The first refusal that a usual client of the tenant that storms gets.
async fn refused(house: &House, address: SocketAddr) -> Refusal {
    let id = format!("spiffe://prod.example/tenant/{STORM}/sa/web");
    let stream = house.tls(address, &house.authority.client(&id)).await;
    let mut client = Connection::new(stream).await.unwrap().client();
    soon(async {
        loop {
            let request = pb::GenerateRandomRequest { number_of_bytes: 1 };
            if let Err(status) = client.generate_random(request).await {
                return Refusal::of(&status);
            }
        }
    })
    .await
}

fn p99(took: impl IntoIterator<Item = Duration>) -> Duration {
    let mut took: Vec<Duration> = took.into_iter().collect();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// The processor time that it has had.
fn cpu(server: &Running) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    // The second field, the name in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let spent = |n| -> u64 { fields.split_whitespace().nth(n).unwrap().parse().unwrap() };
    // In hundredths of a second, the same on all of Linux.
    Duration::from_millis((spent(11) + spent(12)) * 10)
}

/// The first one that we may use, and the last.
fn processors() -> (String, String) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let list = list.unwrap().trim();
    let first = list.split([',', '-']).next().unwrap();
    let last = list.rsplit([',', '-']).next().unwrap();
    (first.to_owned(), last.to_owned())
}

const STORM: &str = "storm";
const CALM: [&str; 2] = ["calm", "quiet"];
/// Calls at a time on a connection, all of which together keep the server busy.
const FEW: usize = 4;
/// Calls at a time on a connection, as the server's SETTINGS say.
const MOST: usize = 64;
/// The time in which the server finds out. Sixty seconds hardly show it, four do.
const NOTICED: Duration = Duration::from_secs(1);
/// How long the calm after the storm is looked at.
const AFTER: Duration = Duration::from_secs(2);
