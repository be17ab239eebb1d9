//! Pairs of flows as they lie in the tables.

use core::net::SocketAddr;
use std::{collections::HashSet, vec::Vec};

use lb_common::{Protocol, Reason, V4, V6};

use crate::{
    host::{
        HostFamily, HostTables,
        cases::{CLIENTS, Connection, Ip, Kind, SERVERS, hop, process},
        packet::Control,
    },
    tables::Flows as _,
};

/// Tables with a service of that many backends.
pub(super) fn tables(kind: Kind, backends: u8) -> HostTables {
    let tables = HostTables::new();
    let backends: Vec<_> = (1..=backends).map(|n| (kind.backend(n), hop(n, SERVERS))).collect();
    tables.add_service(kind.protocol, SocketAddr::new(kind.vip(), 80), &backends);
    tables
}

/// Where a forwarded IP packet in a frame goes to and comes from, as bytes: addresses and ports.
pub(super) fn translation(kind: Kind, frame: &[u8]) -> Vec<u8> {
    match kind.ip {
        Ip::V4 => frame[14 + 12..][..12].to_vec(),
        Ip::V6 => frame[14 + 8..][..36].to_vec(),
    }
}

/// Panics unless every flow has its partner, of the other side, and the two have each other's clients and backends.
pub(super) fn check_whole_pairs(tables: &HostTables) {
    check_family::<V4>(tables);
    check_family::<V6>(tables);
}

fn check_family<F: HostFamily>(tables: &HostTables) {
    for (key, entry) in tables.flows::<F>() {
        let partner = tables.flow(&entry.partner(key.protocol));
        let partner = partner.unwrap_or_else(|| panic!("half a pair: {key:?} {entry:?}"));
        assert_eq!(partner.partner(key.protocol), key, "the partner's partner");
        assert_ne!(partner.side(), entry.side());
        assert_eq!((partner.client, partner.backend()), (entry.client, entry.backend()));
    }
}

/// Sends a packet from the client; what became of it.
pub(super) fn request(tables: &HostTables, connection: &Connection, control: Control) -> Reason {
    process(tables, CLIENTS, &connection.request(control).frame()).reason
}

pub(super) fn reply(tables: &HostTables, connection: &Connection, control: Control) -> Reason {
    process(tables, SERVERS, &connection.reply(control).frame()).reason
}

#[test]
fn both_halves_learn_the_clients_new_way() {
    for kind in Kind::ALL {
        let tables = tables(kind, 1);
        let mut connection = kind.connection(40_000, 1, 1024);
        request(&tables, &connection, Control::SYN);
        connection.client.mac = [2, 0, 0, 0, 9, 9];
        request(&tables, &connection, Control::ACK);
        check_whole_pairs(&tables);
        let clients: Vec<_> = tables
            .flows::<V4>()
            .iter()
            .map(|(_, entry)| entry.client.dst())
            .chain(tables.flows::<V6>().iter().map(|(_, entry)| entry.client.dst()))
            .collect();
        assert_eq!(clients, [connection.client.mac; 2]);
    }
}

#[test]
fn no_two_connections_to_a_backend_have_one_source() {
    for kind in Kind::ALL {
        let tables = tables(kind, 3);
        let mut seen = HashSet::new();
        for client_port in 1..=9_000 {
            let syn = kind.connection(client_port, 1, 0).request(Control::SYN).frame();
            let outcome = process(&tables, CLIENTS, &syn);
            assert_eq!(outcome.reason, Reason::Forwarded);
            assert!(seen.insert(translation(kind, &outcome.frame)), "{kind:?} client port {client_port}");
        }
        check_whole_pairs(&tables);
    }
}

#[test]
fn every_port_of_the_range_can_be_in_use_at_once() {
    let kind = Kind::UDP[0];
    let tables = tables(kind, 1);
    let (first, ports) = crate::host::PORTS;
    for number in 0..ports {
        let connection = kind.connection(1 + number, 1, first + number);
        assert_eq!(request(&tables, &connection, Control::NONE), Reason::Forwarded);
        assert_eq!(reply(&tables, &connection, Control::NONE), Reason::Forwarded);
    }
    assert_eq!(request(&tables, &kind.connection(50_000, 1, 0), Control::NONE), Reason::PortsExhausted);
    assert_eq!(tables.flow_count(), 2 * usize::from(ports));
    let last = kind.connection(ports, 1, first + ports - 1);
    assert_eq!(reply(&tables, &last, Control::NONE), Reason::Forwarded);
}

/// Three hundred ports, all in use, but one whose connection `end` has ended; a new connection finds it.
fn finds_the_port_that_is_over(end: fn(&HostTables, &Connection)) {
    /// Looked at in one attempt.
    const PROBES: u16 = 64;
    const PORTS: u16 = 300;
    const OVER: u16 = 250;
    for kind in Kind::TCP {
        let tables = tables(kind, 1);
        tables.edit_service(0, |service| service.ports = PORTS);
        for number in 0..PORTS {
            request(&tables, &kind.connection(1 + number, 1, 0), Control::SYN);
        }
        end(&tables, &kind.connection(1 + OVER, 1, 1024 + OVER));
        let late = kind.connection(40_000, 1, 1024 + OVER);
        let is_refused = |_: &u16| request(&tables, &late, Control::SYN) != Reason::Forwarded;
        let refused = (0..PORTS).take_while(is_refused).count();
        assert!(refused <= usize::from(PORTS / PROBES), "{refused} attempts refused");
        assert_eq!(reply(&tables, &late, Control::SYN | Control::ACK), Reason::Forwarded);
        check_whole_pairs(&tables);
    }
}

#[test]
fn the_port_of_a_closed_connection_is_found_after_some_attempts() {
    finds_the_port_that_is_over(|tables, connection| {
        request(tables, connection, Control::FIN | Control::ACK);
        reply(tables, connection, Control::FIN | Control::ACK);
    });
}

#[test]
fn the_port_of_a_connection_that_the_backend_reset_is_found_after_some_attempts() {
    finds_the_port_that_is_over(|tables, connection| {
        reply(tables, connection, Control::RST);
    });
}

#[test]
fn the_port_of_a_connection_that_the_client_reset_is_found_after_some_attempts() {
    finds_the_port_that_is_over(|tables, connection| {
        request(tables, connection, Control::RST);
    });
}

#[test]
fn half_closed_ports_are_no_obstacle_to_free_ones() {
    for kind in Kind::TCP {
        let tables = tables(kind, 1);
        tables.edit_service(0, |service| service.ports = 10);
        for number in 0..10 {
            let connection = kind.connection(1 + number, 1, 1024 + number);
            request(&tables, &connection, Control::SYN);
            reply(&tables, &connection, Control::FIN | Control::ACK);
            if number >= 5 {
                request(&tables, &connection, Control::FIN | Control::ACK);
            }
        }
        assert_eq!(
            request(&tables, &kind.connection(40_000, 1, 0), Control::SYN),
            Reason::Forwarded,
            "{kind:?}"
        );
        check_whole_pairs(&tables);
    }
}

#[test]
fn a_service_without_ports_refuses_without_harm() {
    for kind in Kind::ALL {
        let tables = tables(kind, 1);
        tables.edit_service(0, |service| service.ports = 0);
        assert_eq!(request(&tables, &kind.connection(40_000, 1, 0), Control::SYN), Reason::PortsExhausted);
        assert_eq!(tables.flow_count(), 0);
    }
}

#[test]
fn tcp_and_udp_services_of_one_address_and_port_do_not_meet() {
    for [tcp, udp] in [Kind::V4, Kind::V6] {
        let tables = tables(tcp, 1);
        tables.add_service(
            Protocol::Udp,
            SocketAddr::new(udp.vip(), 80),
            &[(udp.backend(1), hop(1, SERVERS))],
        );
        for kind in [tcp, udp] {
            let connection = kind.connection(40_000, 1, 1024);
            assert_eq!(request(&tables, &connection, Control::SYN), Reason::Forwarded);
            assert_eq!(reply(&tables, &connection, Control::ACK), Reason::Forwarded);
        }
        assert_eq!(tables.flow_count(), 4);
        check_whole_pairs(&tables);
    }
}
