//! Two CPUs at once: one does all its work between two operations of the other on the flow tables, for every two.

use std::{cell::RefCell, rc::Rc};

use lb_common::Reason;

use super::pairs::{check_whole_pairs, reply, request, tables, translation};
use crate::host::{
    HostTables,
    cases::{CLIENTS, Kind, Outcome, process},
    packet::Control,
};

/// Lets one CPU take `this` frame, and another `other` between any two steps of it, each time with new tables. `judge`
/// gets the tables and what became of both.
fn race(
    tables: impl Fn() -> HostTables,
    this: &[u8],
    other: &[u8],
    judge: impl Fn(&HostTables, &Outcome, &Outcome),
) {
    for operations in 0.. {
        let tables = tables();
        let others = Rc::new(RefCell::new(None));
        let (frame, outcome) = (other.to_vec(), Rc::clone(&others));
        tables.interrupt(operations, move |tables| {
            *outcome.borrow_mut() = Some(process(tables, CLIENTS, &frame));
        });
        let outcome = process(&tables, CLIENTS, this);
        if tables.call_off_interruption() {
            assert!(operations > 0, "frames of flows touch the flow tables");
            return;
        }
        judge(&tables, &outcome, &others.take().expect("the other CPU was there"));
    }
}

#[test]
fn first_packets_of_one_connection_on_two_cpus_make_one_pair() {
    for kind in Kind::ALL {
        let syn = kind.connection(40_000, 1, 1024).request(Control::SYN).frame();
        race(
            || tables(kind, 4),
            &syn,
            &syn,
            |tables, one, other| {
                assert_eq!((one.reason, other.reason), (Reason::Forwarded, Reason::Forwarded));
                assert_eq!(one.frame, other.frame, "both go the same way");
                assert_eq!(tables.flow_count(), 2);
                check_whole_pairs(tables);
                let connections: u64 = (0..4).map(|backend| tables.counters(backend).connections).sum();
                assert_eq!(connections, 1);
            },
        );
    }
}

#[test]
fn connections_opened_on_two_cpus_get_turns_and_ports_of_their_own() {
    for kind in Kind::ALL {
        for backends in [1, 2] {
            let [one, other] = [1, 2].map(|port| kind.connection(port, 1, 0).request(Control::SYN).frame());
            race(
                || tables(kind, backends),
                &one,
                &other,
                |tables, one, other| {
                    assert_eq!((one.reason, other.reason), (Reason::Forwarded, Reason::Forwarded));
                    assert_ne!(translation(kind, &one.frame), translation(kind, &other.frame));
                    assert_eq!(tables.flow_count(), 4);
                    check_whole_pairs(tables);
                },
            );
        }
    }
}

#[test]
fn the_last_room_in_the_table_is_for_one_of_two_cpus() {
    for kind in Kind::ALL {
        let [one, other] = [1, 2].map(|port| kind.connection(port, 1, 0).request(Control::SYN).frame());
        for entries in [2, 3] {
            let small = || {
                let tables = tables(kind, 1);
                tables.set_capacity(entries);
                tables
            };
            race(small, &one, &other, |tables, _, _| {
                // Each may have kept the other out with its first half, or have given way to it.
                assert!(tables.flow_count() <= 2);
                check_whole_pairs(tables);
            });
        }
    }
}

/// Tables with a connection from client port 40 000 that is over, and as many ports as asked for.
fn with_closed_connection(kind: Kind, ports: u16) -> HostTables {
    let tables = tables(kind, 1);
    tables.edit_service(0, |service| service.ports = ports);
    let connection = kind.connection(40_000, 1, 1024);
    request(&tables, &connection, Control::SYN);
    reply(&tables, &connection, Control::RST);
    tables
}

#[test]
fn a_connection_that_is_over_makes_way_once() {
    for kind in Kind::TCP {
        let syn = kind.connection(40_000, 1, 0).request(Control::SYN).frame();
        race(
            || with_closed_connection(kind, 100),
            &syn,
            &syn,
            |tables, one, other| {
                check_whole_pairs(tables);
                assert_eq!((one.reason, other.reason), (Reason::Forwarded, Reason::Forwarded));
                assert_eq!(tables.flow_count(), 2);
            },
        );
    }
}

#[test]
fn a_port_that_is_over_is_taken_by_one_of_two_cpus() {
    for kind in Kind::TCP {
        let [one, other] = [1, 2].map(|port| kind.connection(port, 1, 0).request(Control::SYN).frame());
        race(
            || with_closed_connection(kind, 1),
            &one,
            &other,
            |tables, _, _| {
                check_whole_pairs(tables);
                // One that is half open may have given way to the other.
                assert_eq!(tables.flow_count(), 2, "one port, one connection");
            },
        );
    }
}
