//! What is written down as packets pass: counters, states, times.

use core::time::Duration;

use lb_common::{BackendCounters, ConnectionState, Protocol, Reason, Seen, Side, Traffic, V4, V6};

use super::pairs::{reply, request, tables};
use crate::answer::BUDGET;
use crate::host::{
    HostFamily, HostTables,
    cases::{CLIENTS, Ip, Kind, SERVERS, process},
    packet::{Control, Packet},
};

/// What the only connection's halves have seen.
fn seen(kind: Kind, tables: &HostTables) -> (Seen, Seen) {
    match kind.ip {
        Ip::V4 => seen_in::<V4>(tables),
        Ip::V6 => seen_in::<V6>(tables),
    }
}

fn seen_in<F: HostFamily>(tables: &HostTables) -> (Seen, Seen) {
    let of = |side| {
        let flows = tables.flows::<F>();
        flows.iter().find(|(_, entry)| entry.side() == side).expect("there is one connection").1.seen
    };
    (of(Side::Request), of(Side::Reply))
}

fn state(kind: Kind, tables: &HostTables) -> ConnectionState {
    let (request, reply) = seen(kind, tables);
    ConnectionState::of(kind.protocol, request, reply)
}

#[test]
fn the_state_follows_the_packets() {
    use ConnectionState::*;
    use Side as From;
    const SYN_ACK: Control = Control::SYN.or(Control::ACK);
    const FIN: Control = Control::FIN.or(Control::ACK);
    const RST: Control = Control::RST.or(Control::ACK);
    type Steps = &'static [(Side, Control, ConnectionState)];
    let lives: [Steps; 5] = [
        &[
            (From::Request, Control::SYN, Opening),
            (From::Request, Control::SYN, Opening),
            (From::Reply, SYN_ACK, Answered),
            (From::Request, Control::ACK, Established),
            (From::Request, FIN, HalfClosed),
            (From::Reply, Control::ACK, HalfClosed),
            (From::Reply, FIN, Closed),
            (From::Request, Control::ACK, Closed),
        ],
        &[
            (From::Request, Control::SYN, Opening),
            (From::Reply, SYN_ACK, Answered),
            (From::Request, Control::ACK, Established),
            (From::Reply, FIN, HalfClosed),
            (From::Request, FIN, Closed),
        ],
        // Refused.
        &[(From::Request, Control::SYN, Opening), (From::Reply, RST, Reset)],
        // Given up by the client before it was answered.
        &[(From::Request, Control::SYN, Opening), (From::Request, Control::RST, Reset)],
        &[
            (From::Request, Control::SYN, Opening),
            (From::Reply, SYN_ACK, Answered),
            (From::Request, Control::ACK, Established),
            (From::Request, Control::RST, Reset),
            (From::Reply, Control::ACK, Reset),
        ],
    ];
    for kind in Kind::TCP {
        for life in lives {
            let tables = tables(kind, 1);
            let connection = kind.connection(40_000, 1, 1024);
            for (number, (from, control, expected)) in life.iter().enumerate() {
                tables.advance(Duration::from_secs(1));
                let send = if *from == From::Request { request } else { reply };
                assert_eq!(send(&tables, &connection, *control), Reason::Forwarded);
                assert_eq!(state(kind, &tables), *expected, "{kind:?} packet {number} of {life:?}");
            }
        }
    }
}

#[test]
fn udp_is_established_by_its_first_answer() {
    for kind in Kind::UDP {
        let tables = tables(kind, 1);
        let connection = kind.connection(40_000, 1, 1024);
        for (send, expected) in [
            (request as fn(&_, &_, _) -> _, ConnectionState::Opening),
            (request, ConnectionState::Opening),
            (reply, ConnectionState::Established),
        ] {
            send(&tables, &connection, Control::NONE);
            assert_eq!(state(kind, &tables), expected);
        }
    }
}

#[test]
fn a_direction_writes_down_only_what_it_saw_itself() {
    for kind in Kind::TCP {
        let tables = tables(kind, 1);
        let connection = kind.connection(40_000, 1, 1024);
        request(&tables, &connection, Control::SYN);
        assert_eq!(seen(kind, &tables), (Seen::PACKET.and(Seen::SYN), Seen::default()));
        reply(&tables, &connection, Control::RST);
        assert_eq!(seen(kind, &tables), (Seen::PACKET.and(Seen::SYN), Seen::PACKET.and(Seen::RST)));
    }
}

#[test]
fn a_packet_stamps_its_own_direction_with_the_time() {
    let kind = Kind::UDP[0];
    let tables = tables(kind, 1);
    let connection = kind.connection(40_000, 1, 1024);
    let tick = |seconds| crate::host::tick(Duration::from_secs(seconds));
    let stamps = || {
        let mut flows = tables.flows::<V4>();
        flows.sort_by_key(|(_, entry)| entry.side() == Side::Reply);
        flows.iter().map(|(_, entry)| entry.last).collect::<std::vec::Vec<_>>()
    };
    tables.advance(Duration::from_secs(100));
    request(&tables, &connection, Control::NONE);
    tables.advance(Duration::from_secs(100));
    request(&tables, &connection, Control::NONE);
    assert_eq!(stamps(), [tick(200), tick(100)]);
    tables.advance(Duration::from_secs(100));
    reply(&tables, &connection, Control::NONE);
    assert_eq!(stamps(), [tick(200), tick(300)]);
}

#[test]
fn every_frame_is_counted_once() {
    for kind in Kind::ALL {
        let tables = tables(kind, 2);
        tables.edit_service(0, |service| service.ports = 2);
        let mut frames = 0;
        let mut check = |ingress, frame: &[u8], reason| {
            let before = tables.count_of(reason);
            assert_eq!(process(&tables, ingress, frame).reason, reason);
            frames += 1;
            assert_eq!((tables.count_of(reason), tables.count_of_all()), (before + 1, frames));
        };
        let connection = kind.connection(40_000, 1, 1024);
        let request = connection.request(Control::SYN);
        check(CLIENTS, &request.frame(), Reason::Forwarded);
        check(CLIENTS, &request.frame(), Reason::Forwarded);
        check(SERVERS, &connection.reply(Control::ACK).frame(), Reason::Forwarded);
        check(CLIENTS, &connection.request(Control::ACK).frame(), Reason::Forwarded);
        check(CLIENTS, &Packet { hops: 1, ..request.clone() }.frame(), Reason::TtlExpired);
        check(CLIENTS, &[], Reason::Malformed);
        check(CLIENTS, &request.frame()[..40], Reason::Malformed);
        check(SERVERS, &kind.connection(1, 1, 2000).reply(Control::ACK).frame(), Reason::NoService);
        for (client_port, server, snat_port) in [(1, 2, 1024), (2, 1, 1025), (3, 2, 1025)] {
            let connection = kind.connection(client_port, server, snat_port);
            check(CLIENTS, &connection.request(Control::SYN).frame(), Reason::Forwarded);
            check(SERVERS, &connection.reply(Control::SYN | Control::ACK).frame(), Reason::Forwarded);
            check(CLIENTS, &connection.request(Control::ACK).frame(), Reason::Forwarded);
        }
        for client_port in [4, 5] {
            let refused = kind.connection(client_port, 1, 0).request(Control::SYN).frame();
            check(CLIENTS, &refused, Reason::PortsExhausted);
        }
    }
}

#[test]
fn a_cpu_gives_only_so_many_answers_in_a_while_and_counts_the_rest() {
    for kind in Kind::ALL {
        let tables = tables(kind, 1);
        let expired = Packet { hops: 1, ..kind.connection(40_000, 1, 1024).request(Control::SYN) }.frame();
        let budget = u64::from(BUDGET);
        for while_ in 1..=3 {
            for _ in 0..2 * budget {
                process(&tables, CLIENTS, &expired);
            }
            assert_eq!(tables.count_of(Reason::TtlExpired), while_ * budget);
            assert_eq!(tables.count_of(Reason::TtlExpiredUnanswered), while_ * budget);
            tables.advance(Duration::from_secs(1));
        }
    }
}

#[test]
fn traffic_is_counted_for_its_backend_and_direction() {
    for kind in Kind::ALL {
        let tables = tables(kind, 2);
        let mut expected = [BackendCounters::default(); 2];
        for (client_port, backend, server) in [(1, 0, 1), (2, 1, 2), (3, 0, 1)] {
            let connection = kind.connection(client_port, server, 1024 + client_port / 3);
            let counters = &mut expected[backend];
            let mut count = |traffic: fn(&mut BackendCounters) -> &mut Traffic, ingress, packet: Packet| {
                let frame = packet.frame();
                assert_eq!(process(&tables, ingress, &frame).reason, Reason::Forwarded);
                let traffic = traffic(counters);
                traffic.packets += 1;
                traffic.bytes += frame.len() as u64;
            };
            count(|counters| &mut counters.requests, CLIENTS, connection.request(Control::SYN));
            count(|counters| &mut counters.requests, CLIENTS, connection.request(Control::SYN));
            count(|counters| &mut counters.replies, SERVERS, connection.reply(Control::ACK));
            counters.connections += 1;
        }
        // What is not forwarded is no traffic.
        let expired = Packet { hops: 1, ..kind.connection(1, 1, 1024).request(Control::ACK) };
        process(&tables, CLIENTS, &expired.frame());
        assert_eq!([0, 1].map(|backend| tables.counters(backend)), expected, "{kind:?}");
    }
}

#[test]
fn a_frame_shorter_than_an_ethernet_header_passes() {
    let kind = Kind { ip: Ip::V4, protocol: Protocol::Tcp };
    let tables = tables(kind, 1);
    let frame = kind.connection(40_000, 1, 1024).request(Control::SYN).frame();
    for length in 0..14 {
        assert_eq!(process(&tables, CLIENTS, &frame[..length]).reason, Reason::Malformed);
    }
}
