//! Packets that come in parts or have more headers than most: fragments, and IPv6's extension headers.

use core::net::SocketAddr;
use std::{borrow::ToOwned as _, vec, vec::Vec};

use lb_common::{Hop, Protocol, Reason};

use super::{
    CLIENT_PORT, CLIENTS, Case, Connection, FIRST, Ip, Kind, PORT, SERVERS, client_mac, each, hop,
    icmp::{WHOLE, router, some_error, too_big},
    one_arm, set, with,
};
use crate::host::packet::{Control, ETHERNET, Extension, IcmpError, Packet, extended};

/// An identification, where one is enough: with a zero in front it is one for IPv4 too.
const ID: u32 = 0x0000_beef;

/// Where fragments begin, with the transport header in the first one.
const CUTS: [usize; 2] = [32, 72];

/// Bytes of an IPv6 header, and the offset of what it says is next.
const IPV6: usize = 40;
const NEXT: usize = ETHERNET + 6;

/// The packet with more to carry: enough for three fragments, of an odd length.
fn long(packet: Packet) -> Packet {
    Packet { payload: (0..101).map(|n: u8| n ^ 0x5a).collect(), ..packet }
}

/// A packet that comes in, and what it becomes.
pub(crate) struct Way {
    pub(crate) ingress: u32,
    pub(crate) packet: Packet,
    egress: u32,
    becomes: Packet,
}

/// A frame of it.
#[derive(Clone)]
pub(crate) struct Crossing {
    pub(crate) ingress: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) egress: u32,
    pub(crate) becomes: Vec<u8>,
}

impl Way {
    /// From the client.
    fn in_(connection: &Connection, request: Packet) -> Self {
        let (ingress, egress) = (connection.client.interface, connection.server.interface);
        Self { ingress, becomes: connection.request_out(&request), packet: request, egress }
    }

    /// From the backend.
    fn back(connection: &Connection, reply: Packet) -> Self {
        let (ingress, egress) = (connection.server.interface, connection.client.interface);
        Self { ingress, becomes: connection.reply_out(&reply), packet: reply, egress }
    }

    /// A request and a reply, edited alike.
    fn both(connection: &Connection, edit: impl Fn(Packet) -> Packet) -> [Self; 2] {
        [
            Self::in_(connection, edit(connection.request(Control::ACK))),
            Self::back(connection, edit(connection.reply(Control::ACK))),
        ]
    }

    /// A long request and a long reply.
    pub(crate) fn long(connection: &Connection) -> [Self; 2] {
        Self::both(connection, long)
    }

    fn whole(&self) -> Crossing {
        self.crossing(self.packet.frame(), self.becomes.frame())
    }

    /// Its fragments: what is sent, and the fragments of what it becomes as a whole.
    pub(crate) fn fragments(&self, id: u32, cuts: &[usize]) -> Vec<Crossing> {
        self.fragments_of(Packet::frame, id, cuts)
    }

    fn fragments_of(&self, frame: impl Fn(&Packet) -> Vec<u8>, id: u32, cuts: &[usize]) -> Vec<Crossing> {
        let cut = |packet: &Packet| packet.cut(&frame(packet), id, cuts);
        let pairs = cut(&self.packet).into_iter().zip(cut(&self.becomes));
        pairs.map(|(frame, becomes)| self.crossing(frame, becomes)).collect()
    }

    const fn crossing(&self, frame: Vec<u8>, becomes: Vec<u8>) -> Crossing {
        Crossing { ingress: self.ingress, frame, egress: self.egress, becomes }
    }
}

impl Crossing {
    /// The same with padding.
    fn padded(mut self, length: usize) -> Self {
        for frame in [&mut self.frame, &mut self.becomes] {
            frame.resize(frame.len() + length, 0xa5);
        }
        self
    }

    /// The same with a byte before the end inverted.
    fn broken(mut self, from_end: usize) -> Self {
        for frame in [&mut self.frame, &mut self.becomes] {
            let at = frame.len() - from_end;
            frame[at] ^= 0xff;
        }
        self
    }
}

impl Case {
    #[track_caller]
    fn crosses(&mut self, crossing: &Crossing) {
        let Crossing { ingress, frame, egress, becomes } = crossing.clone();
        self.forwards(ingress, frame, egress, becomes);
    }

    /// Expects all of them to cross, in that order.
    #[track_caller]
    fn cross<'a>(&mut self, crossings: impl IntoIterator<Item = &'a Crossing>) {
        for crossing in crossings {
            self.crosses(crossing);
        }
    }

    /// Expects the fragments to be refused: the first for a reason, the others for another one.
    #[track_caller]
    fn refuses_fragments(&mut self, (first, later): (Reason, Reason), ingress: u32, fragments: Vec<Vec<u8>>) {
        for (number, fragment) in fragments.into_iter().enumerate() {
            self.refuses(if number == 0 { first } else { later }, ingress, fragment);
        }
    }
}

/// The other protocol.
const fn other(kind: Kind) -> Kind {
    let protocol = match kind.protocol {
        Protocol::Tcp => Protocol::Udp,
        Protocol::Udp => Protocol::Tcp,
    };
    Kind { protocol, ..kind }
}

/// The fragment with another number for what it is a part of.
fn of_protocol(kind: Kind, fragment: &[u8], number: u8) -> Vec<u8> {
    let at = if kind.ip == Ip::V4 { ETHERNET + 9 } else { ETHERNET + IPV6 };
    with(fragment, at, number)
}

/// Sets of extension headers as hosts send them: RFC 8200 section 4.1 has an order for them.
fn usual_extensions() -> Vec<Vec<Extension>> {
    use Extension::{Atomic, Destination, HopByHop, Routing};
    vec![
        vec![HopByHop(6)],
        vec![HopByHop(254)],
        vec![Destination(6)],
        vec![Destination(14)],
        vec![Routing(0, 6)],
        vec![Routing(0, 38)],
        vec![Atomic(ID)],
        vec![HopByHop(14), Destination(6), Routing(0, 22), Atomic(ID), Destination(30)],
        // And as nobody sends them, but may (section 4.1: 'in any order and occurring any number of times').
        vec![Destination(6), HopByHop(6)],
        vec![Atomic(1), Atomic(2)],
        vec![Destination(254), Destination(254), Destination(254)],
    ]
}

rules! {
    /// Of later ones, which have no ports and no checksum, what is behind the network header stays as it is.
    fragments_are_translated_like_the_whole(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (id, cuts) in (ID..).zip([&[24][..], &CUTS, &[32], &[104], &[24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104]]) {
            for way in Way::long(&connection) {
                case.cross(&way.fragments(id, cuts));
            }
        }
        case.has_entries(2);
    }

    /// As much as an Ethernet frame carries.
    large_fragments_are_translated(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for length in [1449, 2900, 4001] {
            for way in Way::both(&connection, |packet| Packet { payload: vec![0x96; length], ..packet }) {
                let cuts: Vec<_> = (1432..length).step_by(1432).collect();
                case.cross(&way.fragments(ID, &cuts));
            }
        }
    }

    /// Clients and servers on one switch.
    with_one_arm_fragments_leave_where_they_came_in(Kind::ALL, 1, kind, case) {
        let connection = one_arm(kind.connection(CLIENT_PORT, 1, FIRST));
        case.opens(&connection);
        for way in Way::long(&connection) {
            case.cross(&way.fragments(ID, &CUTS));
        }
    }

    /// In each of them.
    fragments_keep_ipv4_options(Kind::V4, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for words in 1..=10 {
            for way in Way::both(&connection, |packet| Packet { ip_options: vec![1; words * 4], ..long(packet) }) {
                case.cross(&way.fragments(ID, &CUTS));
            }
        }
    }

    /// RFC 768.
    fragments_of_udp_without_a_checksum_keep_it_so_over_ipv4([Kind::UDP[0]], 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for way in Way::long(&connection) {
            case.cross(&way.fragments_of(Packet::frame_without_checksum, ID, &CUTS));
        }
    }

    /// RFC 8200 section 8.1; also where the datagram is not whole.
    a_first_fragment_of_udp_without_a_checksum_passes_over_ipv6([Kind::UDP[1]], 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let request = long(connection.request(Control::NONE));
        let fragments = request.cut(&request.frame_without_checksum(), ID, &CUTS);
        case.refuses(Reason::NoChecksum, CLIENTS, fragments[0].clone());
        case.has_entries(0);
    }

    /// Most have one to end on that is shorter than Ethernet's least.
    padding_of_fragments_is_kept(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for length in [1, 2, 7, 18] {
            for way in Way::long(&connection) {
                for fragment in way.fragments(ID, &[24, 104]) {
                    case.crosses(&fragment.padded(length));
                }
            }
        }
    }

    /// By as much as before, whichever fragment the error is in.
    a_wrong_checksum_of_fragments_stays_wrong(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for way in Way::long(&connection) {
            for from_end in [1, 4] {
                for fragment in way.fragments(ID, &CUTS) {
                    case.crosses(&fragment.broken(from_end));
                }
            }
        }
    }

    /// With its ports, as a whole packet would; the others follow it.
    a_first_fragment_opens_a_connection(Kind::ALL, 2, kind, case) {
        for (number, server) in (0..).zip([1, 2, 1]) {
            let connection = kind.connection(CLIENT_PORT + number, server, FIRST + number / 2);
            let request = long(connection.request(Control::SYN));
            case.cross(&Way::in_(&connection, request).fragments(ID, &CUTS));
            let reply = long(connection.reply(Control::SYN | Control::ACK));
            case.cross(&Way::back(&connection, reply).fragments(ID, &CUTS));
            case.has_entries(2 * usize::from(number + 1));
        }
    }

    /// As a whole packet would; nothing opens a connection after it.
    fragments_of_tcp_of_no_connection_pass(Kind::TCP, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for (id, control) in (ID..).zip([Control::ACK, Control::SYN | Control::ACK, Control::RST, Control::NONE]) {
            let fragments = long(connection.request(control)).fragments(id, &CUTS);
            case.refuses_fragments((Reason::Stray, Reason::Fragment), CLIENTS, fragments);
        }
        case.has_entries(0);
    }

    /// Their order does not matter once the first has come, and what comes twice is sent twice.
    later_fragments_come_in_any_order(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for way in Way::long(&connection) {
            let fragments = way.fragments(ID, &[32, 48, 64, 80]);
            for order in [[0, 4, 3, 2, 1], [0, 2, 1, 4, 3], [0, 1, 1, 0, 1]] {
                case.cross(order.map(|number| &fragments[number]));
            }
        }
    }

    /// Each follows the one with its own identification.
    fragments_of_several_datagrams_come_mixed(Kind::ALL, 2, kind, case) {
        let connections = [1, 2].map(|server| kind.connection(CLIENT_PORT + u16::from(server), server, FIRST));
        let mut datagrams = Vec::new();
        for (connection, id) in connections.iter().zip([ID, 0x1234]) {
            case.opens(connection);
            for (way, id) in Way::long(connection).iter().zip([id, id + 1]) {
                datagrams.push(way.fragments(id, &CUTS));
            }
        }
        for number in 0..3 {
            case.cross(datagrams.iter().map(|fragments| &fragments[number]));
        }
        for number in [0, 2, 1] {
            case.cross(datagrams.iter().rev().map(|fragments| &fragments[number]));
        }
    }

    /// RFC 791 section 3.2, RFC 8200 section 4.5: it is one of source and destination.
    an_identification_is_its_senders_own(Kind::ALL, 2, kind, case) {
        let first = kind.connection(CLIENT_PORT, 1, FIRST);
        let second = Connection {
            client_addr: SocketAddr::new(kind.client(2), CLIENT_PORT),
            ..kind.connection(CLIENT_PORT, 2, FIRST)
        };
        let mut datagrams = Vec::new();
        for connection in [first, second] {
            case.opens(&connection);
            datagrams.extend(Way::long(&connection).map(|way| way.fragments(ID, &CUTS)));
        }
        for number in 0..3 {
            case.cross(datagrams.iter().map(|fragments| &fragments[number]));
        }
    }

    /// RFC 791 section 3.2: and of the protocol.
    an_identification_is_its_protocols_own_over_ipv4(Kind::V4, 1, kind, case) {
        let others = other(kind);
        case.edit(move |tables| {
            let vip = SocketAddr::new(others.vip(), PORT);
            tables.add_service(others.protocol, vip, &[(others.backend(2), hop(2, SERVERS))]);
        });
        let mut datagrams = Vec::new();
        for connection in [kind.connection(CLIENT_PORT, 1, FIRST), others.connection(CLIENT_PORT, 2, FIRST)] {
            case.opens(&connection);
            datagrams.extend(Way::long(&connection).map(|way| way.fragments(ID, &CUTS)));
        }
        for number in 0..3 {
            case.cross(datagrams.iter().map(|fragments| &fragments[number]));
        }
    }

    /// All 32 bits of it, of which IPv4 has 16.
    every_bit_of_an_identification_counts(Kind::ALL, 2, kind, case) {
        let connections = [1, 2].map(|server| kind.connection(CLIENT_PORT + u16::from(server), server, FIRST));
        for connection in &connections {
            case.opens(connection);
        }
        let [one, two] = connections.map(|connection| Way::in_(&connection, long(connection.request(Control::ACK))));
        let bits = if kind.ip == Ip::V4 { 16 } else { 32 };
        let one = one.fragments(ID, &CUTS);
        case.crosses(&one[0]);
        for bit in 0..bits {
            let two = two.fragments(ID ^ 1 << bit, &CUTS);
            case.cross([&two[0], &one[1], &two[1]]);
        }
    }

    /// It has come round: later fragments are those of the new datagram.
    an_identification_is_that_of_the_last_first_fragment(Kind::ALL, 2, kind, case) {
        let connections = [1, 2].map(|server| kind.connection(CLIENT_PORT + u16::from(server), server, FIRST));
        for _ in 0..2 {
            for connection in &connections {
                let request = long(connection.request(Control::SYN));
                case.cross(&Way::in_(connection, request).fragments(ID, &CUTS));
            }
        }
        let elsewhere = Packet {
            dst: SocketAddr::new(kind.vip(), PORT + 1),
            ..long(connections[0].request(Control::SYN))
        };
        case.refuses_fragments((Reason::NoService, Reason::Fragment), CLIENTS, elsewhere.fragments(ID, &CUTS));
        case.cross(&Way::in_(&connections[0], long(connections[0].request(Control::ACK))).fragments(ID, &CUTS));
    }

    /// To a port of ours that is no service's.
    what_follows_a_first_fragment_that_passed_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let (request, reply) = (long(connection.request(Control::SYN)), long(connection.reply(Control::ACK)));
        for (interface, packet) in [
            (CLIENTS, Packet { dst: SocketAddr::new(kind.vip(), PORT + 1), ..request.clone() }),
            (CLIENTS, Packet { protocol: other(kind).protocol, ..request }),
            (SERVERS, Packet { dst: SocketAddr::new(kind.vip(), FIRST + 1), ..reply }),
        ] {
            let fragments = packet.fragments(ID, &CUTS);
            case.refuses_fragments((Reason::NoService, Reason::Fragment), interface, fragments);
        }
        case.has_entries(2);
    }

    /// Whatever it was dropped for.
    what_follows_a_first_fragment_that_was_dropped_is_dropped(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let request = |client_port: u16| {
            let connection = kind.connection(client_port, 1, FIRST);
            long(connection.request(Control::SYN))
        };
        let refused = |case: &mut Case, reason: Reason, packet: Packet, id: u32| {
            let fragments = packet.fragments(id, &CUTS);
            case.refuses_fragments((reason, Reason::FragmentDropped), CLIENTS, fragments);
        };
        case.edit(|tables| tables.set_next_hop(0, Hop::default()));
        refused(case, Reason::NoNextHop, request(1), ID);
        refused(case, Reason::NoNextHop, request(CLIENT_PORT), ID + 1);
        case.edit(|tables| {
            tables.set_next_hop(0, hop(1, SERVERS));
            tables.edit_service(0, |service| service.ports = 1);
        });
        refused(case, Reason::PortsExhausted, request(1), ID + 2);
        case.edit(|tables| tables.publish(0, &[]));
        refused(case, Reason::NoBackend, request(1), ID + 3);
        let from_us = Packet { src: SocketAddr::new(kind.vip(), CLIENT_PORT), ..request(1) };
        refused(case, Reason::Martian, from_us, ID + 4);
        case.has_entries(2);
        // That of a connection goes on.
        for way in Way::long(&connection) {
            case.cross(&way.fragments(ID + 5, &CUTS));
        }
    }

    /// Though the next of its identification has a backend.
    a_dropped_datagram_may_be_sent_again(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.edit(|tables| tables.publish(0, &[]));
        let request = long(connection.request(Control::SYN));
        let reasons = (Reason::NoBackend, Reason::FragmentDropped);
        case.refuses_fragments(reasons, CLIENTS, request.fragments(ID, &CUTS));
        case.edit(|tables| tables.publish(0, &[0]));
        case.cross(&Way::in_(&connection, request).fragments(ID, &CUTS));
    }

    /// The answer quotes it, as much as there is; the others come to nothing.
    a_first_fragment_whose_hops_end_here_is_answered(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let message = if kind.ip == Ip::V4 { (11, 0) } else { (3, 0) };
        let ends = |case: &mut Case, ingress, packet: Packet, id: u32| {
            let mut fragments = Packet { hops: 1, ..packet.clone() }.fragments(id, &CUTS);
            let first = fragments.remove(0);
            case.answers_frame(Reason::TtlExpired, ingress, &packet, first, message, [0; 4]);
            // Whether they still have hops left or not.
            fragments[0] = packet.fragments(id, &CUTS).swap_remove(1);
            for fragment in fragments {
                case.refuses(Reason::FragmentDropped, ingress, fragment);
            }
        };
        ends(case, CLIENTS, long(connection.request(Control::SYN)), ID);
        case.has_entries(0);
        case.opens(&connection);
        ends(case, CLIENTS, long(connection.request(Control::ACK)), ID);
        ends(case, SERVERS, long(connection.reply(Control::ACK)), ID);
    }

    /// RFC 1191, RFC 4443 section 3.2: whose first one it is may send smaller ones.
    a_first_fragment_larger_than_its_way_out_is_answered(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        case.edit(|tables| tables.set_path_mtu(0, 0x508));
        let packet = Packet { payload: vec![3; 1400], ..connection.request(Control::ACK) };
        let message = too_big(kind);
        let fragments = packet.fragments(ID, &[1296]);
        case.answers_frame(Reason::TooBig, CLIENTS, &packet, fragments[0].clone(), message, [0, 0, 5, 8]);
        case.refuses(Reason::FragmentDropped, CLIENTS, fragments[1].clone());
        // Of a few bytes less all are sent on.
        case.cross(&Way::in_(&connection, packet).fragments(ID, &[1224]));
    }

    /// RFC 1122 section 3.2.2: no ICMP error is sent about a 'non-initial fragment'. RFC 4443 section 2.4 has no such rule.
    a_later_fragment_whose_hops_end_here_is_answered_over_ipv6_only(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (way, expired) in Way::long(&connection)
            .into_iter()
            .zip(Way::both(&connection, |packet| Packet { hops: 1, ..long(packet) }))
        {
            case.crosses(&way.fragments(ID, &CUTS)[0]);
            for fragment in expired.packet.fragments(ID, &CUTS).split_off(1) {
                match kind.ip {
                    Ip::V4 => case.refuses(Reason::TtlExpiredUnanswered, way.ingress, fragment),
                    Ip::V6 => {
                        case.answers_frame(Reason::TtlExpired, way.ingress, &way.packet, fragment, (3, 0), [0; 4]);
                    }
                }
            }
        }
    }


    /// Each fragment has hops of its own.
    each_fragment_has_one_hop_less(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let of_hops = |hops: u8| Way::both(&connection, |packet| Packet { hops, ..long(packet) });
        let ways: Vec<_> = [2, 255, 3].map(of_hops).into_iter().collect();
        for direction in 0..2 {
            for (number, ways) in ways.iter().enumerate() {
                case.crosses(&ways[direction].fragments(ID, &CUTS)[number]);
            }
        }
    }

    /// They are not for us: not even their first fragment is waited for.
    fragments_to_others_pass(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (id, host) in (ID..).zip([kind.server(254), kind.server(1), kind.client(7)]) {
            let request = long(connection.request(Control::SYN));
            let fragments = Packet { dst: SocketAddr::new(host, PORT), ..request }.fragments(id, &CUTS);
            for number in [2, 1] {
                case.refuses(Reason::Fragment, CLIENTS, fragments[number].clone());
            }
            case.refuses_fragments((Reason::NoService, Reason::Fragment), CLIENTS, fragments);
        }
        case.has_entries(2);
    }

    /// Also those of pings to us, and of ICMP errors; and an identification is not taken for that of a connection's packet.
    fragments_of_other_protocols_pass(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let request = long(connection.request(Control::ACK));
        for id in [ID, ID + 1] {
            for number in [if kind.ip == Ip::V4 { 1 } else { 58 }, 47, 50, 132] {
                for fragment in request.fragments(id, &CUTS) {
                    case.refuses(Reason::OtherProtocol, CLIENTS, of_protocol(kind, &fragment, number));
                }
            }
            case.cross(&Way::in_(&connection, request.clone()).fragments(id, &CUTS));
        }
    }

    /// RFC 1858, RFC 7112: no ports can be trusted to be there. What is in the padding is no transport header.
    a_first_fragment_without_a_whole_transport_header_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let cuts: &[_] = if kind.protocol == Protocol::Tcp { &[0, 8, 16] } else { &[0] };
        for way in [Control::SYN, Control::ACK].map(|control| Way::in_(&connection, long(connection.request(control))))
            .iter().chain(&Way::long(&connection))
        {
            for cut in cuts {
                let whole = way.packet.frame();
                let first = way.packet.fragments(ID, &[*cut]).swap_remove(0);
                case.refuses(Reason::Malformed, way.ingress, first.clone());
                for padding in [4, 12, 40] {
                    case.refuses(Reason::Malformed, way.ingress, [&first[..], &vec![0x50; padding]].concat());
                    // The padding looks like the rest of the header.
                    let rest = &whole[way.packet.transport_offset() + cut..][..padding];
                    case.refuses(Reason::Malformed, way.ingress, [&first[..], rest].concat());
                }
            }
        }
        case.has_entries(2);
    }

    /// Nothing reads them here.
    a_first_fragment_may_end_in_tcp_options(Kind::TCP, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for control in [Control::SYN, Control::ACK] {
            let packet = Packet { tcp_options: vec![1; 40], ..connection.request(control) };
            for cut in [24, 32, 56, 64] {
                case.cross(&Way::in_(&connection, packet.clone()).fragments(ID, &[cut]));
            }
        }
    }

    /// What the network header announces is not there.
    a_fragment_cut_off_anywhere_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for way in Way::long(&connection) {
            for fragment in way.fragments(ID, &CUTS) {
                case.crosses(&fragment);
                for length in [ETHERNET, ETHERNET + 1, ETHERNET + 20, fragment.frame.len() - 1] {
                    case.refuses(Reason::Malformed, way.ingress, fragment.frame[..length].to_owned());
                }
            }
        }
    }

    /// A later fragment shows none, but goes where the connection goes.
    fragments_follow_their_connections_way(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let [request, reply] = Way::long(&connection).map(|way| way.fragments(ID, &CUTS));
        case.cross([&request[0], &reply[0]]);
        let mut moved = connection;
        moved.client.mac = client_mac(2);
        case.request(&moved, Control::ACK);
        let [_, moved_reply] = Way::long(&moved).map(|way| way.fragments(ID, &CUTS));
        case.crosses(&moved_reply[1]);
        case.crosses(&request[1]);
        case.crosses(&reply[2]);
        case.edit(|tables| tables.set_next_hop(0, Hop::default()));
        case.refuses(Reason::NoNextHop, CLIENTS, request[2].frame.clone());
    }

    /// They are the host's.
    fragments_of_a_ping_do_not_disturb_those_of_a_connection([Kind::UDP[0], Kind::UDP[1]], 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let number = if kind.ip == Ip::V4 { 1 } else { 58 };
        let datagram = Way::in_(&connection, long(connection.request(Control::NONE))).fragments(ID, &CUTS);
        let pings = datagram.iter().map(|fragment| of_protocol(kind, &fragment.frame, number));
        for (fragment, ping) in datagram.iter().zip(pings.collect::<Vec<_>>()) {
            case.crosses(fragment);
            case.refuses(Reason::OtherProtocol, CLIENTS, ping);
        }
    }

    /// Neither are they read nor written.
    extension_headers_are_passed_over(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for extensions in usual_extensions() {
            for way in Way::both(&connection, |packet| Packet { extensions: extensions.clone(), ..packet }) {
                case.crosses(&way.whole());
                case.crosses(&way.whole().padded(18));
                case.crosses(&way.whole().broken(1));
            }
        }
        case.has_entries(2);
    }

    /// As behind none.
    a_connection_may_open_behind_extension_headers(Kind::V6, 1, kind, case) {
        for (number, extensions) in (0..).zip(usual_extensions()) {
            let connection = kind.connection(CLIENT_PORT + number, 1, FIRST + number);
            let edit = |packet: Packet| Packet { extensions: extensions.clone(), ..packet };
            case.crosses(&Way::in_(&connection, edit(connection.request(Control::SYN))).whole());
            let answer = edit(connection.reply(Control::SYN | Control::ACK));
            case.crosses(&Way::back(&connection, answer).whole());
            case.reply(&connection, Control::ACK);
        }
        case.has_entries(22);
    }

    /// RFC 8200 has no limit; that many are more than anybody sends.
    up_to_eight_extension_headers_are_passed_over(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for extension in [Extension::Destination(6), Extension::Atomic(ID), Extension::Routing(0, 6)] {
            for number in 1..=12 {
                let extensions = vec![extension; number];
                for way in Way::both(&connection, |packet| Packet { extensions: extensions.clone(), ..packet }) {
                    if number <= 8 {
                        case.crosses(&way.whole());
                    } else {
                        case.refuses(Reason::Extension, way.ingress, way.packet.frame());
                    }
                }
            }
        }
    }

    /// RFC 6946: alone it is no datagram, whatever else has its identification.
    atomic_fragments_are_whole_packets(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for way in Way::long(&connection) {
            let fragments = way.fragments(ID, &CUTS);
            let atomic = Packet { extensions: vec![Extension::Atomic(ID)], ..way.packet.clone() };
            let elsewhere = Packet { src: SocketAddr::new(way.packet.src.ip(), 7), ..atomic.clone() };
            let reason = match way.ingress {
                CLIENTS if kind.protocol == Protocol::Tcp => Reason::Stray,
                CLIENTS => Reason::Forwarded,
                _ => Reason::NoService,
            };
            case.crosses(&fragments[0]);
            if reason != Reason::Forwarded {
                case.refuses(reason, way.ingress, elsewhere.frame());
            }
            case.cross(&fragments[1..]);
        }
        for way in Way::both(&connection, |packet| Packet { extensions: vec![Extension::Atomic(ID)], ..packet }) {
            case.crosses(&way.whole());
        }
    }

    /// RFC 8200 section 4.5: each fragment has those that routers read.
    fragments_may_be_behind_extension_headers(Kind::V6, 1, kind, case) {
        use Extension::{Destination, HopByHop, Routing};
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for extensions in [
            vec![HopByHop(6)],
            vec![HopByHop(30)],
            vec![Routing(0, 22)],
            vec![HopByHop(14), Destination(6), Routing(0, 22)],
            vec![HopByHop(6); 7],
        ] {
            for way in Way::both(&connection, |packet| Packet { extensions: extensions.clone(), ..long(packet) }) {
                case.cross(&way.fragments(ID, &CUTS));
            }
        }
        // With the fragment header, one too many.
        let many = Packet { extensions: vec![HopByHop(6); 8], ..long(connection.request(Control::ACK)) };
        case.refuses_fragments((Reason::Extension, Reason::Extension), CLIENTS, many.fragments(ID, &CUTS));
    }

    /// RFC 8200 section 4.5 has destination options fragmented with what they are before; only the first fragment says so.
    extension_headers_in_a_first_fragment_leave_all_of_it_to_the_kernel(Kind::V6, 1, kind, case) {
        use Extension::{Destination, HopByHop};
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for extensions in [vec![Destination(6)], vec![HopByHop(6), Destination(14)]] {
            for way in Way::both(&connection, |packet| Packet { extensions: extensions.clone(), ..long(packet) }) {
                for (number, fragment) in way.fragments(ID, &[48, 72]).into_iter().enumerate() {
                    let reason = if number == 0 { Reason::Extension } else { Reason::OtherProtocol };
                    case.refuses(reason, fragment.ingress, fragment.frame);
                }
            }
        }
    }

    /// What is there is the host's, or nobody's.
    other_protocols_behind_extension_headers_pass(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        // Authentication, ESP, none, mobility, host identity, GRE, SCTP, and IPv4's ICMP.
        for number in [51, 50, 59, 135, 139, 47, 132, 1] {
            for extensions in usual_extensions().into_iter().take(7) {
                let packet = Packet { extensions, ..connection.request(Control::ACK) };
                let frame = with(&packet.frame(), ETHERNET + IPV6, number);
                case.refuses(Reason::OtherProtocol, CLIENTS, frame);
            }
        }
    }

    /// As in front of none.
    what_is_refused_is_refused_behind_extension_headers(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let refused = if kind.protocol == Protocol::Tcp { Reason::Stray } else { Reason::NoChecksum };
        for extensions in usual_extensions() {
            let request = Packet { extensions, ..connection.request(Control::ACK) };
            let frame =
                if kind.protocol == Protocol::Tcp { request.frame() } else { request.frame_without_checksum() };
            case.refuses(refused, CLIENTS, frame);
            let elsewhere = Packet { dst: SocketAddr::new(kind.vip(), PORT + 1), ..request.clone() };
            case.refuses(Reason::NoService, CLIENTS, elsewhere.frame());
            let from_nobody = Packet {
                src: SocketAddr::new(kind.vip(), CLIENT_PORT),
                control: Control::SYN,
                ..request
            };
            case.refuses(Reason::Martian, CLIENTS, from_nobody.frame());
        }
        case.has_entries(0);
    }

    /// The answer quotes them, too.
    the_last_hop_ends_here_behind_extension_headers(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for extensions in usual_extensions() {
            for way in Way::both(&connection, |packet| Packet { extensions: extensions.clone(), hops: 1, ..packet }) {
                case.says_time_exceeded(way.ingress, &way.packet);
            }
        }
    }

    /// Their lengths say more than the packet has.
    extension_headers_longer_than_the_packet_pass(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for way in Way::both(&connection, |packet| Packet { extensions: vec![Extension::Destination(6)], ..packet }) {
            let frame = way.packet.frame();
            // Beyond the packet, and also beyond the frame.
            for (length, padding) in [(20, 0), (20, 400), (255, 0), (255, 100)] {
                let frame = [&with(&frame, ETHERNET + IPV6 + 1, length)[..], &vec![0x60; padding]].concat();
                case.refuses(Reason::Malformed, way.ingress, frame);
            }
        }
    }

    /// The packet ends in one, or in the transport header behind it; the frame may be longer.
    packets_cut_off_in_extension_headers_pass(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let headers = if kind.protocol == Protocol::Tcp { 20 } else { 8 };
        for extensions in [vec![Extension::HopByHop(6), Extension::Destination(14)], vec![Extension::Atomic(ID)]] {
            let request = Packet { extensions, ..connection.request(Control::ACK) };
            let mut frame = request.frame();
            let behind = request.transport_offset() - ETHERNET - IPV6;
            for length in 0..behind + headers {
                set(&mut frame, ETHERNET + 4, length);
                case.refuses(Reason::Malformed, CLIENTS, frame.clone());
                if length >= behind {
                    case.refuses(Reason::Malformed, CLIENTS, frame[..ETHERNET + IPV6 + length].to_owned());
                }
            }
            // There is nothing to read of the header.
            for length in [0, 1, 7] {
                set(&mut frame, ETHERNET + 4, length);
                case.refuses(Reason::Extension, CLIENTS, frame[..ETHERNET + IPV6 + length].to_owned());
            }
        }
    }

    /// Routers and hosts may put them there.
    icmp_errors_behind_extension_headers_are_translated(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let (request, reply) = (connection.request(Control::ACK), connection.reply(Control::ACK));
        let quote = |packet: &Packet| packet.frame().split_off(ETHERNET);
        for extensions in usual_extensions() {
            let error = connection.error_at_server(router(kind), (1, 4), quote(&connection.request_out(&request)));
            let out = Packet { hops: request.hops - 1, ..request.clone() };
            let becomes = connection.error_at_server_out(&error, quote(&out));
            let [error, becomes] = [error, becomes].map(|error| extended(&error.frame(), &extensions));
            case.relays(SERVERS, error, CLIENTS, becomes);
            let error = connection.error_at_client(router(kind), (1, 4), quote(&connection.reply_out(&reply)));
            let out = Packet { hops: reply.hops - 1, ..reply.clone() };
            let becomes = connection.error_at_client_out(&error, quote(&out));
            let [error, becomes] = [error, becomes].map(|error| extended(&error.frame(), &extensions));
            case.relays(CLIENTS, error, SERVERS, becomes);
        }
    }

    /// Pings, and what neighbours and multicast routers say (RFC 3810 section 5 has a hop-by-hop option before it).
    other_icmp_behind_extension_headers_passes(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for number in [0, 128, 129, 130, 133, 135, 143] {
            let message = IcmpError { kind: (number, 0), ..some_error(&connection) }.frame();
            for extensions in usual_extensions() {
                case.refuses(Reason::OtherProtocol, SERVERS, extended(&message, &extensions));
            }
        }
    }

    /// The quoted ones stay as they are.
    icmp_errors_quote_extension_headers(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for extensions in usual_extensions() {
            let [request, reply] = [connection.request(Control::ACK), connection.reply(Control::ACK)]
                .map(|packet| Packet { extensions: extensions.clone(), ..packet });
            for transport in [8, 17, 18, 20, WHOLE] {
                if transport == 17 && kind.protocol == Protocol::Tcp {
                    // Half a checksum, of which `icmp_errors_quote_as_much_as_they_like` knows.
                    continue;
                }
                case.error_about_request(&connection, router(kind), too_big(kind), (&request, transport));
                case.error_about_reply(&connection, router(kind), too_big(kind), (&reply, transport));
            }
        }
    }

    /// Or too many of them, or none to its end.
    icmp_errors_that_quote_no_end_of_extension_headers_pass(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let sent = |extensions: Vec<Extension>| {
            let request = connection.request_out(&connection.request(Control::ACK));
            Packet { extensions, ..request }.frame().split_off(ETHERNET)
        };
        let error = |quote: Vec<u8>| connection.error_at_server(router(kind), too_big(kind), quote).frame();
        let many = sent(vec![Extension::Destination(6); 9]);
        case.refuses(Reason::Extension, SERVERS, error(many));
        let two = sent(vec![Extension::HopByHop(6), Extension::Destination(14)]);
        for (length, reason) in [
            (IPV6, Reason::Extension),
            (IPV6 + 7, Reason::Extension),
            (IPV6 + 8, Reason::Extension),
            (IPV6 + 16, Reason::Malformed),
            (IPV6 + 24, Reason::Malformed),
            (IPV6 + 31, Reason::Malformed),
        ] {
            case.refuses(reason, SERVERS, error(two[..length].to_owned()));
        }
        for number in [50, 51, 58, 59] {
            let quote = with(&sent(vec![Extension::Destination(6)]), IPV6, number);
            case.refuses(Reason::OtherProtocol, SERVERS, error(quote));
        }
    }

    /// A router that has it can say of which packet it is; its transport checksum is that of the whole, and changes as that.
    icmp_errors_quote_first_fragments(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let quote = |packet: &Packet| {
            packet.fragments(ID, &CUTS).swap_remove(0).split_off(ETHERNET)
        };
        let least = if kind.ip == Ip::V4 { 28 } else { 56 };
        let [request, reply] = Way::long(&connection);
        for length in [least, least + 10, least + 12, 1000] {
            let cut = |mut quote: Vec<u8>| {
                quote.truncate(length);
                quote
            };
            let out = Packet { hops: request.becomes.hops, ..request.packet.clone() };
            let error = connection.error_at_server(router(kind), too_big(kind), cut(quote(&request.becomes)));
            let becomes = connection.error_at_server_out(&error, cut(quote(&out)));
            case.relays(SERVERS, error.frame(), CLIENTS, becomes.frame());
            let out = Packet { hops: reply.becomes.hops, ..reply.packet.clone() };
            let error = connection.error_at_client(router(kind), too_big(kind), cut(quote(&reply.becomes)));
            let becomes = connection.error_at_client_out(&error, cut(quote(&out)));
            case.relays(CLIENTS, error.frame(), SERVERS, becomes.frame());
        }
    }

    /// They have no ports; no router that follows RFC 1122 section 3.2.2 sends one.
    icmp_errors_that_quote_later_fragments_pass(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let [request, reply] = Way::long(&connection);
        for way in [&request, &reply] {
            case.cross(&way.fragments(ID, &CUTS));
        }
        for fragment in request.becomes.fragments(ID, &CUTS).split_off(1) {
            let quote = fragment[ETHERNET..].to_owned();
            let error = connection.error_at_server(router(kind), too_big(kind), quote);
            case.refuses(Reason::Fragment, SERVERS, error.frame());
        }
        for fragment in reply.becomes.fragments(ID, &CUTS).split_off(1) {
            let quote = fragment[ETHERNET..].to_owned();
            let error = connection.error_at_client(router(kind), too_big(kind), quote);
            case.refuses(Reason::Fragment, CLIENTS, error.frame());
        }
    }

    /// RFC 8200 section 4.4 has them visited first; the kernel passes them on as well, and so are they here.
    routing_headers_with_addresses_left_are_passed_over(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for left in [1, 2, 255] {
            let routing = Extension::Routing(left, 38);
            for extensions in [vec![routing], vec![Extension::HopByHop(6), routing, Extension::Destination(6)]] {
                for way in Way::both(&connection, |packet| Packet { extensions: extensions.clone(), ..packet }) {
                    case.crosses(&way.whole());
                }
            }
        }
    }

    /// It is IPv4's number of none of them.
    numbers_of_extension_headers_are_no_such_over_ipv4(Kind::V4, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let good = connection.request(Control::ACK).frame();
        for number in [0, 43, 44, 60] {
            case.refuses(Reason::OtherProtocol, CLIENTS, with(&good, ETHERNET + 9, number));
        }
    }

    /// What follows IPv6's own header must be one of them to be passed over.
    an_extension_header_is_known_by_its_number(Kind::V6, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let request = Packet { extensions: vec![Extension::Destination(6)], ..connection.request(Control::ACK) };
        for number in [1, 4, 41, 47, 50, 51, 59, 61, 135, 139, 140, 253, 254, 255] {
            case.refuses(Reason::OtherProtocol, CLIENTS, with(&request.frame(), NEXT, number));
        }
    }
}
