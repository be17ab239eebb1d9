//! The table: all that is measured.

use crate::row::{Quantity, Row};
use crate::setting::{Arms, Direction, Family, Forwarder, Frames, Setting, Transport};
use crate::web::{Connections, Way};
use crate::work::{Percentile, Work};

const FORWARDED: Quantity = Quantity { name: "packets", unit: "million/s", digits: 2 };
const CONNECTIONS: Quantity = Quantity { name: "new connections", unit: "thousand/s", digits: 0 };
const DELAY: Quantity = Quantity { name: "delay", unit: "µs", digits: 1 };
const REQUESTS: Quantity = Quantity { name: "HTTP requests", unit: "thousand/s", digits: 1 };
const START: Quantity = Quantity { name: "time to start", unit: "ms", digits: 0 };
const MEMORY: Quantity = Quantity { name: "memory", unit: "bytes", digits: 0 };

/// The usual ones, or those of a quick run.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    let usual = [forwarding(quick), contenders(quick), connections(quick)].concat();
    if quick { usual } else { [usual, kinds(), sizes(), cores(), delays(), web(), resources()].concat() }
}

/// What balancing costs beyond forwarding.
fn forwarding(quick: bool) -> Vec<Row> {
    let flows: &[u32] = if quick { &[100, 500_000] } else { &[100, 10_000, 500_000] };
    let mut rows = Vec::new();
    for (arms, place) in [(Arms::Two, "two-arm"), (Arms::One, "one-arm")] {
        for &flows in flows {
            let forwarders = [Forwarder::Bare, Forwarder::Sketch, Forwarder::Balancer];
            let setting = |forwarder| Setting { arms, flows, ..Setting::new(forwarder) };
            let place = format!("{place}, {} flows", number(flows));
            rows.push(row(FORWARDED, &place, forwarders.map(setting), Work::Forward));
        }
    }
    rows
}

/// What there is without a program of one's own.
const CONTENDERS: [Forwarder; 3] = [Forwarder::Recipe, Forwarder::NftMap, Forwarder::Balancer];

fn contenders(quick: bool) -> Vec<Row> {
    let flows: &[u32] = if quick { &[10_000] } else { &[100, 10_000, 200_000] };
    flows
        .iter()
        .map(|&flows| {
            let setting = |forwarder| Setting { flows, ..Setting::new(forwarder) };
            let place = format!("against the kernel, {} flows", number(flows));
            row(FORWARDED, &place, CONTENDERS.map(setting), Work::Forward)
        })
        .collect()
}

/// How fast connections begin.
fn connections(quick: bool) -> Vec<Row> {
    let setting = |forwarder| Setting { flows: 100_000, backends: 4, ..Setting::new(forwarder) };
    let handshakes = row(CONNECTIONS, "whole handshakes", CONTENDERS.map(setting), Work::Connect);
    if quick {
        return vec![handshakes];
    }
    vec![row(CONNECTIONS, "first packets", CONTENDERS.map(setting), Work::Open), handshakes]
}

/// Whether the balancer has a favourite kind of packet.
fn kinds() -> Vec<Row> {
    let usual = Setting::new(Forwarder::Balancer);
    let replies = Setting { direction: Direction::Replies, ..usual };
    let udp = Setting { transport: Transport::Udp, ..usual };
    let v6 = Setting { family: Family::V6, ..usual };
    let v6_udp_replies = Setting { family: Family::V6, transport: Transport::Udp, ..replies };
    let kinds = [
        ("IPv4 TCP requests", usual),
        ("IPv4 TCP replies", replies),
        ("IPv4 UDP requests", udp),
        ("IPv6 TCP requests", v6),
        ("IPv6 UDP replies", v6_udp_replies),
        ("internet mix of sizes", Setting { frames: Frames::Mix, ..usual }),
    ];
    vec![named(
        FORWARDED,
        "lb, kinds of packets",
        kinds.map(|(name, setting)| (name, Work::Forward(setting))),
    )]
}

/// Whether it matters how much there is to choose from.
fn sizes() -> Vec<Row> {
    let usual = Setting { backends: 4, ..Setting::new(Forwarder::Balancer) };
    let sizes = [
        ("1 service, 4 backends", usual),
        ("1 000 services", Setting { services: 1_000, ..usual }),
        ("1 000 backends", Setting { backends: 1_000, ..usual }),
    ];
    let row = |quantity, place, work: fn(Setting) -> Work| {
        named(quantity, place, sizes.map(|(name, setting)| (name, work(setting))))
    };
    vec![
        row(FORWARDED, "lb, services and backends", Work::Forward),
        row(CONNECTIONS, "lb, services and backends", Work::Open),
        row(START, "lb, services and backends", Work::Start),
    ]
}

/// What a second core brings.
fn cores() -> Vec<Row> {
    let forwarders = [Forwarder::Bare, Forwarder::Recipe, Forwarder::Balancer].map(Setting::new);
    vec![row(FORWARDED, "on two cores", forwarders, Work::ForwardOnBoth)]
}

/// How long packets are under way.
fn delays() -> Vec<Row> {
    let forwarders = [Forwarder::Bare, Forwarder::Recipe, Forwarder::Balancer].map(Setting::new);
    [("median", Percentile(500)), ("99.9th percentile", Percentile(999))]
        .map(|(name, percentile)| {
            let place = format!("{name} at half load");
            row(DELAY, &place, forwarders, |setting| Work::Delay(setting, percentile))
        })
        .to_vec()
}

/// Real servers, and a real client.
fn web() -> Vec<Row> {
    let ways = [("routed", Way::Routed), ("lb", Way::Balancer), ("HAProxy", Way::Haproxy)];
    [("kept-alive", Connections::KeptAlive), ("one connection a request", Connections::OneARequest)]
        .map(|(place, connections)| {
            named(REQUESTS, place, ways.map(|(name, way)| (name, Work::Fetch(way, connections))))
        })
        .to_vec()
}

fn resources() -> Vec<Row> {
    let setting = |forwarder| Setting { flows: 105_000, backends: 4, ..Setting::new(forwarder) };
    let forwarders = [Forwarder::Recipe, Forwarder::Balancer].map(setting);
    vec![row(MEMORY, "a connection", forwarders, Work::Memory)]
}

/// Forwarders side by side.
fn row<const N: usize>(
    quantity: Quantity,
    place: &str,
    settings: [Setting; N],
    work: impl Fn(Setting) -> Work,
) -> Row {
    let works = settings.map(|setting| (setting.forwarder.to_string(), work(setting))).to_vec();
    Row { quantity, place: place.to_owned(), works }
}

fn named<const N: usize>(quantity: Quantity, place: &str, works: [(&str, Work); N]) -> Row {
    let works = works.map(|(name, work)| (name.to_owned(), work)).to_vec();
    Row { quantity, place: place.to_owned(), works }
}

/// With blanks between thousands.
fn number(number: u32) -> String {
    if number < 1_000 { number.to_string() } else { format!("{} {:03}", number / 1_000, number % 1_000) }
}
