//! Fragments that come before their datagram's first one, and long after it: the kernel's tests have nobody that keeps them,
//! and the kernel a clock of its own.

use core::{net::SocketAddr, time::Duration};

use lb_common::{Protocol, Reason};

use super::pairs::{reply, request, tables};
use crate::host::{
    HostFrame, HostTables,
    cases::{CLIENTS, Connection, Crossing, Ip, Kind, Way, process},
    packet::{Control, Packet},
};

const ID: u32 = 0x4242;
const CUTS: [usize; 2] = [32, 72];

/// Longer than any datagram is known for.
const LONG: Duration = Duration::from_secs(60);
/// Shorter.
const SHORT: Duration = Duration::from_secs(4);

/// Tables with an open connection.
fn opened(kind: Kind) -> (HostTables, Connection) {
    let tables = tables(kind, 1);
    let connection = kind.connection(40_000, 1, 1024);
    request(&tables, &connection, Control::SYN);
    reply(&tables, &connection, Control::SYN | Control::ACK);
    (tables, connection)
}

#[track_caller]
fn crosses(tables: &HostTables, crossing: &Crossing) {
    let outcome = process(tables, crossing.ingress, &crossing.frame);
    assert_eq!((outcome.reason, outcome.egress), (Reason::Forwarded, crossing.egress));
    assert_eq!(outcome.frame, crossing.becomes);
}

/// Expects the frame to be kept back, untouched.
#[track_caller]
fn is_kept_back(tables: &HostTables, ingress: u32, bytes: &[u8]) {
    let before = tables.count_of(Reason::FragmentEarly);
    let mut frame = HostFrame::new(bytes);
    assert_eq!(tables.process(&mut frame, ingress).reason, Reason::FragmentEarly);
    assert!(frame.is_kept_back());
    assert_eq!(frame.into_bytes(), bytes);
    assert_eq!(tables.count_of(Reason::FragmentEarly), before + 1);
}

#[track_caller]
fn is_refused(tables: &HostTables, reason: Reason, ingress: u32, bytes: &[u8]) {
    let mut frame = HostFrame::new(bytes);
    assert_eq!(tables.process(&mut frame, ingress).reason, reason);
    assert!(!frame.is_kept_back());
    assert_eq!(frame.into_bytes(), bytes);
}

#[test]
fn a_fragment_before_its_first_is_kept_back_and_then_forwarded() {
    for kind in Kind::ALL {
        let (tables, connection) = opened(kind);
        for way in Way::long(&connection) {
            let [first, second, third] = &way.fragments(ID, &CUTS)[..] else { panic!("there are three") };
            for fragment in [third, second, third] {
                is_kept_back(&tables, way.ingress, &fragment.frame);
            }
            for fragment in [first, third, second] {
                crosses(&tables, fragment);
            }
        }
    }
}

#[test]
fn a_fragment_is_early_though_other_datagrams_have_begun() {
    for kind in Kind::ALL {
        let (tables, connection) = opened(kind);
        let ways = Way::long(&connection);
        for way in &ways {
            crosses(&tables, &way.fragments(ID, &CUTS)[0]);
            for id in [ID + 1, ID ^ 0x8000, 0] {
                is_kept_back(&tables, way.ingress, &way.fragments(id, &CUTS)[1].frame);
            }
            // Of another client, or to another service.
            let other =
                Packet { src: SocketAddr::new(kind.client(3), way.packet.src.port()), ..way.packet.clone() };
            is_kept_back(&tables, way.ingress, &other.fragments(ID, &CUTS)[1]);
        }
        if kind.ip == Ip::V4 {
            let protocol = if kind.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
            let other = Packet { protocol, ..ways[0].packet.clone() };
            is_kept_back(&tables, CLIENTS, &other.fragments(ID, &CUTS)[1]);
        }
    }
}

#[test]
fn a_fragment_before_a_first_one_that_opens_a_connection_is_forwarded_with_it() {
    for kind in Kind::ALL {
        let tables = tables(kind, 1);
        let connection = kind.connection(40_000, 1, 1024);
        let [way, _] = Way::long(&connection);
        let packet = Packet { control: Control::SYN, ..way.packet };
        let becomes = connection.request_out(&packet).fragments(ID, &CUTS);
        let fragments = packet.fragments(ID, &CUTS);
        is_kept_back(&tables, CLIENTS, &fragments[1]);
        assert_eq!(tables.flow_count(), 0);
        for (fragment, becomes) in fragments.iter().zip(becomes) {
            assert_eq!(process(&tables, CLIENTS, fragment).frame, becomes);
        }
        assert_eq!(tables.flow_count(), 2);
    }
}

#[test]
fn a_fragment_before_a_first_one_that_is_refused_is_refused_with_it() {
    for kind in Kind::ALL {
        let (tables, connection) = opened(kind);
        let [way, _] = Way::long(&connection);
        let elsewhere = Packet { dst: SocketAddr::new(kind.vip(), 81), ..way.packet.clone() };
        let from_us = Packet { src: SocketAddr::new(kind.vip(), 1), control: Control::SYN, ..way.packet };
        for (id, packet, first, later) in [
            (ID, elsewhere, Reason::NoService, Reason::Fragment),
            (ID, from_us, Reason::Martian, Reason::FragmentDropped),
        ] {
            let fragments = packet.fragments(id, &CUTS);
            is_kept_back(&tables, CLIENTS, &fragments[2]);
            is_refused(&tables, first, CLIENTS, &fragments[0]);
            is_refused(&tables, later, CLIENTS, &fragments[2]);
            is_refused(&tables, later, CLIENTS, &fragments[1]);
        }
    }
}

#[test]
fn only_fragments_to_addresses_of_ours_are_kept_back() {
    for kind in Kind::ALL {
        let (tables, connection) = opened(kind);
        let [way, _] = Way::long(&connection);
        for (address, is_ours) in [(kind.vip(), true), (kind.server(1), false), (kind.server(254), false)] {
            let packet = Packet { dst: SocketAddr::new(address, 80), ..way.packet.clone() };
            let fragment = &packet.fragments(ID, &CUTS)[1];
            if is_ours {
                is_kept_back(&tables, CLIENTS, fragment);
            } else {
                is_refused(&tables, Reason::Fragment, CLIENTS, fragment);
            }
        }
        // One for SNAT is one of ours.
        tables.edit_service(0, |service| {
            service.snat_len = 2;
            (service.snat[1], _) = lb_common::Addr::new(kind.server(254));
        });
        let packet = Packet { dst: SocketAddr::new(kind.server(254), 80), ..way.packet };
        is_kept_back(&tables, CLIENTS, &packet.fragments(ID, &CUTS)[1]);
    }
}

#[test]
fn an_identification_is_another_datagrams_after_its_lifetime() {
    for kind in Kind::ALL {
        let (tables, connection) = opened(kind);
        for way in Way::long(&connection) {
            let [first, second, third] = &way.fragments(ID, &CUTS)[..] else { panic!("there are three") };
            crosses(&tables, first);
            tables.advance(SHORT);
            crosses(&tables, second);
            // A later fragment is no sign that it is still the same datagram.
            tables.advance(LONG);
            is_kept_back(&tables, way.ingress, &third.frame);
            crosses(&tables, first);
            crosses(&tables, third);
        }
    }
}

#[test]
fn what_became_of_a_first_fragment_is_forgotten_after_its_lifetime() {
    for kind in Kind::ALL {
        let (tables, connection) = opened(kind);
        let [way, _] = Way::long(&connection);
        let elsewhere = Packet { dst: SocketAddr::new(kind.vip(), 81), ..way.packet.clone() };
        let from_us = Packet { src: SocketAddr::new(kind.vip(), 1), control: Control::SYN, ..way.packet };
        for (packet, first, later) in [
            (elsewhere, Reason::NoService, Reason::Fragment),
            (from_us, Reason::Martian, Reason::FragmentDropped),
        ] {
            let fragments = packet.fragments(ID, &CUTS);
            is_refused(&tables, first, CLIENTS, &fragments[0]);
            tables.advance(SHORT);
            is_refused(&tables, later, CLIENTS, &fragments[1]);
            tables.advance(LONG);
            is_kept_back(&tables, CLIENTS, &fragments[1]);
        }
    }
}

#[test]
fn an_identification_is_another_datagrams_when_all_fragments_have_come() {
    for kind in Kind::ALL {
        let (tables, connection) = opened(kind);
        for way in Way::long(&connection) {
            let fragments = way.fragments(ID, &CUTS);
            for order in [[0, 1, 2], [0, 2, 1]] {
                for number in order {
                    crosses(&tables, &fragments[number]);
                }
                for fragment in &fragments[1..] {
                    is_kept_back(&tables, way.ingress, &fragment.frame);
                }
            }
        }
    }
}
