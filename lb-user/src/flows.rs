//! Flow tables read as connections: joining the halves of pairs, `lb flows`, and removing pairs.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{ConnectionState, Family, FlowEntry, FlowKey, Port, Protocol, Seen, Side, Tick};
use serde::Serialize;

use crate::{
    clock,
    maps::{FlowTable, Maps},
    model::{Endpoint, ServiceAddress},
    table::{Located, Table},
    view::{self, Column},
};

/// A connection: a request half and what the reply half adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) protocol: Protocol,
    pub(crate) client: SocketAddr,
    pub(crate) service: SocketAddr,
    pub(crate) snat: SocketAddr,
    pub(crate) backend: SocketAddr,
    pub(crate) backend_index: u32,
    pub(crate) state: ConnectionState,
    pub(crate) idle: Duration,
}

/// What joining needs of a reply half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reply {
    seen: Seen,
    last: Tick,
}

/// Visits every connection of both families, in no order.
pub(crate) fn for_each(maps: &Maps, mut visit: impl FnMut(Connection)) -> anyhow::Result<()> {
    let now = clock::now()?;
    for_each_of::<lb_common::V4>(maps, now, &mut visit);
    for_each_of::<lb_common::V6>(maps, now, &mut visit);
    Ok(())
}

fn for_each_of<F: FlowTable>(maps: &Maps, now: Tick, visit: &mut impl FnMut(Connection)) {
    let table = F::flows(maps);
    let mut requests = Vec::new();
    let mut replies = HashMap::new();
    for Located { key, entry, .. } in table.flows(0..table.slots()) {
        if entry.side() == Side::Request {
            requests.push((key, entry));
        } else {
            replies.insert(key, Reply { seen: entry.seen, last: entry.last });
        }
    }
    for (key, entry) in &requests {
        let reply = replies.get(&entry.partner(key.protocol)).copied();
        connection(key, entry, reply, now).into_iter().for_each(&mut *visit);
    }
}

/// `None` if the key is not one of a service's protocols.
fn connection<F: Family>(
    key: &FlowKey<F>,
    entry: &FlowEntry<F>,
    reply: Option<Reply>,
    now: Tick,
) -> Option<Connection> {
    let protocol = key.protocol()?;
    // A pair that is just being made has its reply half first; without one, the other half saw nothing.
    let reply = reply.unwrap_or(Reply { seen: Seen::default(), last: entry.last });
    Some(Connection {
        protocol,
        client: socket::<F>(key.tuple.src, key.tuple.ports.src()),
        service: socket::<F>(key.tuple.dst, key.tuple.ports.dst()),
        snat: socket::<F>(entry.becomes.src, entry.becomes.ports.src()),
        backend: socket::<F>(entry.becomes.dst, entry.becomes.ports.dst()),
        backend_index: entry.backend(),
        state: ConnectionState::of(protocol, entry.seen, reply.seen),
        idle: idle(now, entry.last, reply.last),
    })
}

fn socket<F: Family>(address: F::Address, port: Port) -> SocketAddr {
    SocketAddr::new(F::widen(address).ip(F::NUMBER), port.number())
}

/// How long a pair has been idle whose halves last saw a packet then.
fn idle(now: Tick, request: Tick, reply: Tick) -> Duration {
    clock::duration(now.since(request).min(now.since(reply)))
}

/// Which connections `lb flows` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    pub(crate) service: Option<ServiceAddress>,
    pub(crate) backend: Option<Endpoint>,
    pub(crate) client: Option<IpAddr>,
}

impl Filter {
    fn takes(&self, connection: &Connection) -> bool {
        let is = |endpoint: Endpoint, socket: SocketAddr| {
            (endpoint.ip(), endpoint.port()) == (socket.ip(), socket.port())
        };
        self.service.is_none_or(|service| {
            service.protocol() == connection.protocol && is(service.endpoint(), connection.service)
        }) && self.backend.is_none_or(|backend| is(backend, connection.backend))
            && self.client.is_none_or(|client| client == connection.client.ip())
    }
}

/// A connection as `lb flows --json` writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct FlowView {
    pub(crate) protocol: &'static str,
    pub(crate) client: SocketAddr,
    pub(crate) service: String,
    pub(crate) snat: SocketAddr,
    pub(crate) backend: SocketAddr,
    pub(crate) state: &'static str,
    pub(crate) idle_seconds: u64,
}

impl FlowView {
    fn new(connection: &Connection) -> Self {
        let protocol = connection.protocol.name();
        Self {
            protocol,
            client: connection.client,
            service: format!("{}/{protocol}", connection.service),
            snat: connection.snat,
            backend: connection.backend,
            state: connection.state.name(),
            idle_seconds: connection.idle.as_secs(),
        }
    }
}

/// The connections that pass the filter, ordered by protocol and client.
pub(crate) fn list(maps: &Maps, filter: &Filter) -> anyhow::Result<Vec<FlowView>> {
    let mut flows = Vec::new();
    for_each(maps, |connection| {
        if filter.takes(&connection) {
            flows.push(FlowView::new(&connection));
        }
    })?;
    flows.sort_unstable();
    Ok(flows)
}

/// `lb flows` for people.
pub(crate) fn text(flows: &[FlowView]) -> String {
    let columns = [
        Column::Text("CLIENT"),
        Column::Text("SERVICE"),
        Column::Text("SOURCE"),
        Column::Text("BACKEND"),
        Column::Text("STATE"),
        Column::Number("IDLE"),
    ];
    view::table(
        &columns,
        flows.iter().map(|flow| {
            vec![
                flow.client.to_string(),
                flow.service.clone(),
                flow.snat.to_string(),
                flow.backend.to_string(),
                flow.state.to_owned(),
                format!("{} s", flow.idle_seconds),
            ]
        }),
    )
}

/// Ends all connections of some backends, which no new ones come to.
pub(crate) fn end(maps: &Maps, backends: &HashSet<u32>) {
    end_of::<lb_common::V4>(maps, backends);
    end_of::<lb_common::V6>(maps, backends);
}

fn end_of<F: FlowTable>(maps: &Maps, backends: &HashSet<u32>) {
    let table = F::flows(maps);
    // A pair without its request half starts nothing wrong: see `remove_pair`.
    for side in [Side::Request, Side::Reply] {
        for flow in table.flows(0..table.slots()) {
            if flow.entry.side() == side && backends.contains(&flow.entry.backend()) {
                table.remove(&flow);
            }
        }
    }
}

/// How long half a pair may be alone: longer than making or removing one takes.
const ALONE: Duration = Duration::from_secs(10);

/// Nothing is removed that has been idle for less: the shortest limit of all states, and `ALONE`.
pub(crate) const SHORTEST: Duration = ALONE;

/// Removes what a flow is part of, if that has been idle for longer than it may be; whether it has.
pub(crate) fn expire<F: Family>(table: &Table<F>, flow: &Located<F>, now: Tick) -> bool {
    let Located { key, entry, .. } = flow;
    let Some(protocol) = key.protocol() else { return false };
    if idle(now, entry.last, entry.last) < SHORTEST {
        return false;
    }
    let partner = table.find(&entry.partner(key.protocol));
    match partner.filter(|partner| partner.entry.is_answered_by(&key.tuple)) {
        // Its other half is gone, or has found another one.
        None => remove_unchanged(table, flow),
        // Pairs are judged once, at their request half.
        Some(reply) if entry.side() == Side::Request && is_expired(protocol, entry, &reply.entry, now) => {
            remove_pair(table, flow, &reply)
        }
        Some(_) => false,
    }
}

fn is_expired<F: Family>(
    protocol: Protocol,
    request: &FlowEntry<F>,
    reply: &FlowEntry<F>,
    now: Tick,
) -> bool {
    let state = ConnectionState::of(protocol, request.seen, reply.seen);
    idle(now, request.last, reply.last) >= state.limit(protocol)
}

/// Removes both halves. First the request's: while only the reply's is there, a late reply still finds its way, and a
/// new connection of the client gets a new pair, whose source port is probed past the old one. The other way round the
/// client's packets would reach the backend, but no reply would come back.
fn remove_pair<F: Family>(table: &Table<F>, request: &Located<F>, reply: &Located<F>) -> bool {
    // If a packet came just before, both stay.
    remove_unchanged(table, request) && remove_unchanged(table, reply)
}

/// Removes a flow that no packet has touched since it was read; whether that is so.
fn remove_unchanged<F: Family>(table: &Table<F>, flow: &Located<F>) -> bool {
    table.find(&flow.key).is_some_and(|present| present.entry == flow.entry) && table.remove(flow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Delta, Hop, Ports, Tuple, V4, flow::Shared};
    use std::net::Ipv4Addr;

    fn at(seconds: u64) -> Tick {
        let jiffies = Duration::from_secs(seconds).as_nanos() / clock::jiffy().as_nanos();
        Tick::from_jiffies(u64::try_from(jiffies).unwrap())
    }

    fn tuple(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16) -> Tuple<V4> {
        let address = |bytes| Ipv4Addr::from(bytes).into();
        Tuple {
            src: address(src),
            dst: address(dst),
            ports: Ports::new(Port::new(src_port), Port::new(dst_port)),
        }
    }

    fn pair(now: Tick) -> (FlowKey<V4>, FlowEntry<V4>, FlowEntry<V4>) {
        let from = tuple([10, 0, 0, 2], 40_000, [10, 10, 10, 1], 80);
        let becomes = tuple([10, 10, 10, 1], 1024, [192, 168, 1, 1], 8080);
        let none = Delta::default();
        let shared = Shared { addresses: none, ports: none, client: Hop::default(), backend: 5, now };
        let request = FlowEntry::new(&from, &becomes.reversed(), Side::Request, &shared);
        let reply = FlowEntry::new(&becomes.reversed(), &from, Side::Reply, &shared);
        (FlowKey::new(from, Protocol::Tcp), request, reply)
    }

    fn established(now: Tick) -> (FlowKey<V4>, FlowEntry<V4>, FlowEntry<V4>) {
        let (key, mut request, mut reply) = pair(now);
        request.seen = Seen::PACKET.and(Seen::SYN).and(Seen::ACK);
        reply.seen = request.seen;
        (key, request, reply)
    }

    #[test]
    fn a_connection_is_told_from_its_request_half_and_its_replys_record() {
        let (key, request, mut reply) = established(at(100));
        reply.last = at(103);
        let reply = Reply { seen: reply.seen, last: reply.last };
        let connection = connection(&key, &request, Some(reply), at(110)).unwrap();
        assert_eq!(
            FlowView::new(&connection),
            FlowView {
                protocol: "tcp",
                client: "10.0.0.2:40000".parse().unwrap(),
                service: "10.10.10.1:80/tcp".to_owned(),
                snat: "10.10.10.1:1024".parse().unwrap(),
                backend: "192.168.1.1:8080".parse().unwrap(),
                state: "established",
                idle_seconds: 6,
            }
        );
    }

    #[test]
    fn filters_take_only_what_matches_all_of_them() {
        let (key, request, _) = pair(at(100));
        let connection = connection(&key, &request, None, at(100)).unwrap();
        let service = |text: &str| Filter { service: Some(text.parse().unwrap()), ..Filter::default() };
        let backend = |text: &str| Filter { backend: Some(text.parse().unwrap()), ..Filter::default() };
        let client = |text: &str| Filter { client: Some(text.parse().unwrap()), ..Filter::default() };
        for (filter, takes) in [
            (Filter::default(), true),
            (service("10.10.10.1:80/tcp"), true),
            (service("10.10.10.1:80/udp"), false),
            (service("10.10.10.1:81/tcp"), false),
            (backend("192.168.1.1:8080"), true),
            (backend("192.168.1.1:80"), false),
            (client("10.0.0.2"), true),
            (client("10.0.0.3"), false),
            (Filter { client: client("10.0.0.3").client, ..service("10.10.10.1:80/tcp") }, false),
        ] {
            assert_eq!(filter.takes(&connection), takes, "{filter:?}");
        }
    }

    #[test]
    fn a_pair_expires_when_both_halves_have_been_idle_for_its_states_limit() {
        let (_, mut request, mut reply) = established(at(1_000));
        let limit = 124 * 60;
        let expired = |request: &FlowEntry<V4>, reply: &FlowEntry<V4>, seconds| {
            is_expired(Protocol::Tcp, request, reply, at(seconds))
        };
        assert!(!expired(&request, &reply, 1_000 + limit - 2));
        assert!(expired(&request, &reply, 1_000 + limit + 2));
        reply.last = at(1_500);
        assert!(!expired(&request, &reply, 1_000 + limit + 2), "one direction is enough to keep it");
        request.seen = request.seen.and(Seen::RST);
        assert!(expired(&request, &reply, 1_500 + 12));
        assert!(!expired(&request, &reply, 1_500 + 8));
    }

    #[test]
    fn no_state_has_a_shorter_limit_than_the_sweep_looks_at() {
        use ConnectionState::{Answered, Closed, Established, HalfClosed, Opening, Reset};
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for state in [Opening, Answered, Established, HalfClosed, Closed, Reset] {
                assert!(state.limit(protocol) >= SHORTEST, "{protocol:?} {state:?}");
            }
        }
    }
}
