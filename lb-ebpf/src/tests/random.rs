//! Properties over random packets and random bytes, from fixed seeds.

use core::net::SocketAddr;

use lb_common::{Action, Reason};

use super::pairs::{check_whole_pairs, tables};
use crate::host::{
    cases::{CLIENTS, ELSEWHERE, Ip, Kind, SERVERS, process},
    packet::{Control, IcmpError, Packet, checksums_hold, error_checksums_hold},
    random::Random,
};

/// Random connections, each with some packets both ways. What leaves is as good as what came, and what came only had
/// its addresses, ports, hops and checksums changed.
#[test]
fn checksums_are_right_after_as_often_as_before() {
    let mut random = Random::new(1);
    let mut broken = 0;
    for number in 0..8_000 {
        let kind = random.choose(&Kind::ALL);
        let tables = tables(kind, 1);
        tables.edit_service(0, |service| service.first_port = random.port());
        let mut connection = kind.connection(random.port(), 1, 0);
        connection.client_addr = SocketAddr::new(random.host(kind.ip), random.port());
        let ip_options = if kind.ip == Ip::V4 { random.below(11) * 4 } else { 0 };
        let request = Packet {
            hops: 2 + random.byte() % 254,
            ip_options: std::vec![1; ip_options],
            payload: {
                let length = random.below(200);
                random.bytes(length)
            },
            ..connection.request(Control::SYN)
        };
        let mut frame = request.frame();
        assert!(checksums_hold(&frame), "packets are built well");
        if random.below(4) == 0 {
            // Anywhere behind the ports, where nothing is looked at but the length of a header.
            let start = request.checksum_offset();
            let at = start + random.below(frame.len() - start);
            frame[at] ^= 1 << random.below(8);
            broken += usize::from(!checksums_hold(&frame));
        }
        let outcome = process(&tables, CLIENTS, &frame);
        if outcome.reason == Reason::NoChecksum {
            continue;
        }
        assert_eq!(outcome.reason, Reason::Forwarded, "{number}");
        assert_eq!(checksums_hold(&outcome.frame), checksums_hold(&frame), "{number}: {frame:02x?}");
        let answer = connection.request_out(&request);
        // The port is the range's first.
        let port = answer.transport_offset();
        let snat_port = u16::from_be_bytes([outcome.frame[port], outcome.frame[port + 1]]);
        connection.snat.set_port(snat_port);
        let reply = Packet {
            payload: {
                let length = random.below(200);
                random.bytes(length)
            },
            ..connection.reply(Control::ACK)
        };
        let outcome = process(&tables, SERVERS, &reply.frame());
        assert_eq!(outcome.frame, connection.reply_out(&reply).frame(), "{number}");
        assert!(checksums_hold(&outcome.frame), "{number}");
    }
    assert!(broken > 500, "the judge finds broken checksums");
}

/// Random errors about packets of random connections, quoted to a random length, also with wrong checksums.
#[test]
fn checksums_in_errors_are_right_after_as_often_as_before() {
    let mut random = Random::new(2);
    let mut broken = 0;
    for number in 0..4_000 {
        let kind = random.choose(&Kind::ALL);
        let tables = tables(kind, 1);
        let mut connection = kind.connection(random.port(), 1, 1024);
        connection.client_addr = SocketAddr::new(random.host(kind.ip), random.port());
        let payload_length = random.below(200);
        let request = Packet {
            ip_options: std::vec![1; if kind.ip == Ip::V4 { random.below(11) * 4 } else { 0 }],
            payload: random.bytes(payload_length),
            ..connection.request(Control::SYN)
        };
        assert_eq!(process(&tables, CLIENTS, &request.frame()).reason, Reason::Forwarded);
        let sent = connection.request_out(&request);
        let frame = sent.frame();
        let least = sent.transport_offset() + 8;
        let end =
            if random.below(3) == 0 { frame.len() } else { least + random.below(frame.len() - least + 1) };
        let mut error = IcmpError {
            from: sent.to,
            to: sent.from,
            src: random.address(kind.ip),
            dst: sent.src.ip(),
            hops: 2 + random.byte() % 254,
            traffic_class: random.byte(),
            may_fragment: false,
            kind: if kind.ip == Ip::V4 { (3, random.byte()) } else { (1, random.byte()) },
            word: core::array::from_fn(|_| random.byte()),
            quote: frame[14..end].to_vec(),
        }
        .frame();
        assert!(error_checksums_hold(&error), "errors are built well");
        if random.below(4) == 0 {
            // The last byte is the error's alone, or also the quoted segment's.
            let last = error.len() - 1;
            error[last] ^= 1 << random.below(8);
            broken += usize::from(!error_checksums_hold(&error));
        }
        let outcome = process(&tables, SERVERS, &error);
        assert_eq!(outcome.reason, Reason::IcmpForwarded, "{number}");
        assert_eq!(
            error_checksums_hold(&outcome.frame),
            error_checksums_hold(&error),
            "{number}: {error:02x?}"
        );
    }
    assert!(broken > 500, "the judge finds broken checksums");
}

/// Bytes of no order, and good frames with some bytes changed or cut off.
#[test]
fn whatever_comes_in_nothing_panics_and_only_what_is_forwarded_is_touched() {
    let mut random = Random::new(42);
    let (mut forwarded, mut relayed) = (0, 0);
    let tables = Kind::ALL.map(|kind| (kind, tables(kind, 2)));
    for number in 0..200_000 {
        let (kind, tables) = &tables[number % tables.len()];
        let connection = kind.connection(random.port() % 64, 1, 1024);
        let mut frame = match random.below(5) {
            4 => {
                let sent = connection.request_out(&connection.request(Control::ACK));
                IcmpError {
                    from: sent.to,
                    to: sent.from,
                    src: sent.dst.ip(),
                    dst: sent.src.ip(),
                    hops: 64,
                    traffic_class: 0,
                    may_fragment: false,
                    kind: (3, 1),
                    word: [0; 4],
                    quote: sent.frame()[14..].to_vec(),
                }
                .frame()
            }
            0 => {
                let length = random.below(100);
                random.bytes(length)
            }
            1 => connection.reply(Control::ACK).frame(),
            _ => connection.request(random.choose(&[Control::SYN, Control::ACK, Control::RST])).frame(),
        };
        if let Some(ether_type) = frame.get_mut(12..14)
            && random.below(8) != 0
        {
            ether_type.copy_from_slice(if kind.ip == Ip::V4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        }
        for _ in 0..random.below(4) {
            let at = random.below(frame.len().max(1));
            if let Some(byte) = frame.get_mut(at) {
                *byte = random.byte();
            }
        }
        if random.below(4) == 0 {
            frame.truncate(random.below(frame.len() + 1));
        }
        let ingress = random.choose(&[CLIENTS, SERVERS, ELSEWHERE]);
        let outcome = process(tables, ingress, &frame);
        match outcome.reason.action() {
            Action::Forward => {
                forwarded += 1;
                relayed += usize::from(outcome.reason == Reason::IcmpForwarded);
                assert_ne!(outcome.egress, 0);
            }
            Action::Answer => {
                assert_eq!(outcome.egress, ingress);
                assert!(checksums_hold(&outcome.frame), "{:02x?}", outcome.frame);
            }
            Action::Pass | Action::Drop => {
                assert_eq!((outcome.egress, &outcome.frame), (0, &frame), "{:?}", outcome.reason);
            }
        }
    }
    assert!(forwarded > 10_000 && relayed > 1_000, "{forwarded} and {relayed} are not many");
    for (_, tables) in &tables {
        check_whole_pairs(tables);
    }
}
