//! ICMP errors: those about connections, which are translated like their packets, and others, which pass.

use core::net::{IpAddr, SocketAddr};
use std::{vec, vec::Vec};

use lb_common::{Hop, Protocol, Reason};

use super::{
    CLIENT_PORT, CLIENTS, Case, Connection, ELSEWHERE, FIRST, Ip, Kind, SERVERS, client_mac, each, hop,
    one_arm, own_mac, set, with, with_zero_sum,
};
use crate::host::packet::{Control, ETHERNET, IcmpError, Packet, TRAFFIC_CLASS};

/// Type and code.
pub(super) type Error = (u8, u8);

/// RFC 792: unreachable in several ways, fragmentation needed, source quench, time exceeded, parameter problem. RFC 4443:
/// unreachable, too big, time exceeded, parameter problem.
fn errors(kind: Kind) -> &'static [Error] {
    match kind.ip {
        Ip::V4 => &[(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (4, 0), (11, 0), (11, 1), (12, 0)],
        Ip::V6 => &[(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 1)],
    }
}

/// 'Fragmentation needed' or 'packet too big'.
pub(super) fn too_big(kind: Kind) -> Error {
    match kind.ip {
        Ip::V4 => (3, 4),
        Ip::V6 => (2, 0),
    }
}

/// A router that no packet of a connection is addressed to.
pub(super) fn router(kind: Kind) -> IpAddr {
    kind.address([172, 16, 0, 9], 0x99, 9)
}

/// All of the transport.
pub(super) const WHOLE: usize = usize::MAX;

/// A packet from its network header on, with so many bytes of its transport at the most.
fn quote(frame: &[u8], packet: &Packet, transport: usize) -> Vec<u8> {
    let end = packet.transport_offset().saturating_add(transport).min(frame.len());
    frame[ETHERNET..end].to_vec()
}

impl Connection {
    /// An error that `from` sends about what the backend is sent, quoted as `quote`.
    pub(super) fn error_at_server(&self, from: IpAddr, kind: Error, quote: Vec<u8>) -> IcmpError {
        IcmpError {
            from: self.server.mac,
            to: own_mac(self.server.interface),
            src: from,
            dst: self.snat.ip(),
            hops: 61,
            traffic_class: 0xc0,
            may_fragment: false,
            kind,
            word: [0, 0, 5, 0],
            quote,
        }
    }

    /// What the client sees of it.
    pub(super) fn error_at_server_out(&self, error: &IcmpError, quote: Vec<u8>) -> IcmpError {
        IcmpError {
            from: own_mac(self.client.interface),
            to: self.client.mac,
            src: self.vip.ip(),
            dst: self.client_addr.ip(),
            hops: error.hops - 1,
            quote,
            ..error.clone()
        }
    }

    /// An error that `from` sends about what the client is sent.
    pub(super) fn error_at_client(&self, from: IpAddr, kind: Error, quote: Vec<u8>) -> IcmpError {
        IcmpError {
            from: self.client.mac,
            to: own_mac(self.client.interface),
            src: from,
            dst: self.vip.ip(),
            hops: 61,
            traffic_class: 0xc0,
            may_fragment: false,
            kind,
            word: [0, 0, 5, 0],
            quote,
        }
    }

    /// What the backend sees of it.
    pub(super) fn error_at_client_out(&self, error: &IcmpError, quote: Vec<u8>) -> IcmpError {
        IcmpError {
            from: own_mac(self.server.interface),
            to: self.server.mac,
            src: self.snat.ip(),
            dst: self.backend.ip(),
            hops: error.hops - 1,
            quote,
            ..error.clone()
        }
    }

    /// Some hops on, where it caused an error.
    fn travelled(packet: &Packet) -> Packet {
        Packet { hops: 3, ..packet.clone() }
    }
}

impl Case {
    /// Expects an error about a request, quoted up to that many bytes of the transport, to reach the client.
    #[track_caller]
    pub(super) fn error_about_request(
        &mut self,
        connection: &Connection,
        from: IpAddr,
        kind: Error,
        (request, transport): (&Packet, usize),
    ) {
        let out = Connection::travelled(request);
        let sent = Packet { hops: 3, ..connection.request_out(&out) };
        let error = connection.error_at_server(from, kind, quote(&sent.frame(), &sent, transport));
        let becomes = connection.error_at_server_out(&error, quote(&out.frame(), &out, transport));
        self.relays(connection.server.interface, error.frame(), connection.client.interface, becomes.frame());
    }

    /// Expects an error about a reply to reach the backend.
    #[track_caller]
    pub(super) fn error_about_reply(
        &mut self,
        connection: &Connection,
        from: IpAddr,
        kind: Error,
        (reply, transport): (&Packet, usize),
    ) {
        let out = Connection::travelled(reply);
        let sent = Packet { hops: 3, ..connection.reply_out(&out) };
        let error = connection.error_at_client(from, kind, quote(&sent.frame(), &sent, transport));
        let becomes = connection.error_at_client_out(&error, quote(&out.frame(), &out, transport));
        self.relays(connection.client.interface, error.frame(), connection.server.interface, becomes.frame());
    }

    /// Expects an ICMP error to leave as that.
    #[track_caller]
    pub(super) fn relays(&mut self, ingress: u32, frame: Vec<u8>, egress: u32, becomes: Vec<u8>) {
        self.leaves(Reason::IcmpForwarded, ingress, frame, egress, becomes);
    }
}

impl Case {
    /// Expects the packet to be answered with 'time exceeded'.
    #[track_caller]
    pub(super) fn says_time_exceeded(&mut self, ingress: u32, packet: &Packet) {
        let kind = if packet.src.is_ipv4() { (11, 0) } else { (3, 0) };
        self.answers(Reason::TtlExpired, ingress, packet, kind, [0; 4]);
    }

    /// Expects the packet to be answered with the MTU of its way out.
    #[track_caller]
    pub(super) fn says_too_big(&mut self, ingress: u32, packet: &Packet, mtu: u8) {
        let kind = if packet.src.is_ipv4() { (3, 4) } else { (2, 0) };
        self.answers(Reason::TooBig, ingress, packet, kind, [0, 0, 5, mtu]);
    }

    /// Expects the packet to be answered by whom it was sent to, who is here.
    #[track_caller]
    fn answers(&mut self, reason: Reason, ingress: u32, packet: &Packet, kind: Error, word: [u8; 4]) {
        self.answers_frame(reason, ingress, packet, packet.frame(), kind, word);
    }

    /// Likewise, where the packet, or what is a part of it, is in another frame.
    #[track_caller]
    pub(super) fn answers_frame(
        &mut self,
        reason: Reason,
        ingress: u32,
        packet: &Packet,
        frame: Vec<u8>,
        kind: Error,
        word: [u8; 4],
    ) {
        // RFC 1812 section 4.3.2: 576 bytes in all, internetwork control, and the type of service of the packet (RFC 1349
        // section 3: four bits); RFC 4443 section 2.4: the minimum MTU.
        let (most, traffic_class) =
            if packet.src.is_ipv4() { (576 - 28, 0xc0 | TRAFFIC_CLASS & 0x1e) } else { (1280 - 48, 0) };
        let whole = &frame[ETHERNET..frame.len() - packet.trailer.len()];
        let length = whole.len().min(most);
        let answer = IcmpError {
            from: packet.to,
            to: packet.from,
            src: packet.dst.ip(),
            dst: packet.src.ip(),
            hops: 64,
            traffic_class,
            may_fragment: true,
            kind,
            word,
            quote: whole[..length].to_vec(),
        };
        self.leaves(reason, ingress, frame, ingress, answer.frame());
    }
}

/// An error about the first request of a connection that there may be.
pub(super) fn some_error(connection: &Connection) -> IcmpError {
    let sent = connection.request_out(&connection.request(Control::ACK));
    let kind = too_big(connection.kind);
    connection.error_at_server(router(connection.kind), kind, quote(&sent.frame(), &sent, WHOLE))
}

rules! {
    /// From the backend, and from a router on the way to it: what is unreachable, closed, too big or out of hops.
    icmp_errors_about_requests_reach_the_client(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for error in errors(kind) {
            for from in [kind.server(1), router(kind)] {
                for control in [Control::SYN, Control::ACK] {
                    let request = connection.request(control);
                    case.error_about_request(&connection, from, *error, (&request, WHOLE));
                    case.error_about_request(&connection, from, *error, (&request, 8));
                }
            }
        }
        case.has_entries(2);
    }

    /// From the client, and from a router on the way to it.
    icmp_errors_about_replies_reach_the_backend(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for error in errors(kind) {
            for from in [kind.client(1), router(kind)] {
                let reply = connection.reply(Control::ACK);
                case.error_about_reply(&connection, from, *error, (&reply, WHOLE));
                case.error_about_reply(&connection, from, *error, (&reply, 8));
            }
        }
        case.has_entries(2);
    }

    /// Clients and servers on one switch.
    icmp_errors_with_one_arm_leave_where_they_came_in(Kind::ALL, 1, kind, case) {
        let connection = one_arm(kind.connection(CLIENT_PORT, 1, FIRST));
        case.opens(&connection);
        let (request, reply) = (connection.request(Control::ACK), connection.reply(Control::ACK));
        case.error_about_request(&connection, router(kind), too_big(kind), (&request, 8));
        case.error_about_reply(&connection, router(kind), too_big(kind), (&reply, 8));
    }

    /// RFC 792: eight bytes of the transport; RFC 1812 section 4.3.2.3 and RFC 4443: as much as fits. TCP's checksum may be
    /// there or not, or one byte of it, which stays as it is.
    icmp_errors_quote_as_much_as_they_like(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let payload = vec![0x5a; 1001];
        let request = Packet { payload: payload.clone(), ..connection.request(Control::ACK) };
        let reply = Packet { payload, ..connection.reply(Control::ACK) };
        for transport in [8, 9, 10, 16, 18, 19, 20, 21, 28, 101, 528, 1000] {
            case.error_about_request(&connection, router(kind), too_big(kind), (&request, transport));
            case.error_about_reply(&connection, router(kind), too_big(kind), (&reply, transport));
        }
        if kind.protocol == Protocol::Tcp {
            let sent = connection.request_out(&request);
            let half = quote(&sent.frame(), &sent, 17);
            let error = connection.error_at_server(router(kind), too_big(kind), half.clone());
            let out = Packet { hops: sent.hops, ..request };
            let becomes = [&quote(&out.frame(), &out, 16)[..], &half[half.len() - 1..]].concat();
            let becomes = connection.error_at_server_out(&error, becomes);
            case.relays(SERVERS, error.frame(), CLIENTS, becomes.frame());
        }
    }

    /// Of every length.
    icmp_errors_quote_ipv4_options(Kind::V4, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for words in 1..=10 {
            let ip_options = vec![1; words * 4];
            let request = Packet { ip_options: ip_options.clone(), ..connection.request(Control::ACK) };
            let reply = Packet { ip_options, ..connection.reply(Control::ACK) };
            for transport in [8, 18, WHOLE] {
                case.error_about_request(&connection, router(kind), (3, 1), (&request, transport));
                case.error_about_reply(&connection, router(kind), (3, 1), (&reply, transport));
            }
        }
    }

    /// None stays none (RFC 768), and one that comes to zero is written as its other zero.
    icmp_errors_quote_udp_without_a_checksum(Kind::UDP, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let request = connection.request(Control::NONE);
        if kind.ip == Ip::V4 {
            let sent = connection.request_out(&request);
            let out = Packet { hops: sent.hops, ..request.clone() };
            let error =
                connection.error_at_server(router(kind), (3, 3), quote(&sent.frame_without_checksum(), &sent, WHOLE));
            let becomes =
                connection.error_at_server_out(&error, quote(&out.frame_without_checksum(), &out, WHOLE));
            case.relays(SERVERS, error.frame(), CLIENTS, becomes.frame());
        }
        for zero in [with_zero_sum(&request, Packet::clone), with_zero_sum(&request, |r| connection.request_out(r))] {
            case.error_about_request(&connection, router(kind), too_big(kind), (&zero, WHOLE));
        }
    }

    /// It ends no connection, begins none, keeps none alive, and shows no new way to the client.
    an_icmp_error_leaves_no_trace(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.refuses(Reason::IcmpOfNoConnection, SERVERS, some_error(&connection).frame());
        case.has_entries(0);
        case.opens(&connection);
        let reply = connection.reply(Control::FIN | Control::ACK);
        let sent = connection.reply_out(&reply);
        let error = IcmpError {
            from: client_mac(9),
            to: own_mac(ELSEWHERE),
            ..connection.error_at_client(router(kind), too_big(kind), quote(&sent.frame(), &sent, WHOLE))
        };
        let out = Packet { hops: sent.hops, ..reply };
        let becomes = connection.error_at_client_out(&error, quote(&out.frame(), &out, WHOLE));
        case.relays(ELSEWHERE, error.frame(), SERVERS, becomes.frame());
        case.reply(&connection, Control::ACK);
        case.has_entries(2);
    }

    /// And is not answered: RFC 1122 section 3.2.2, RFC 4443 section 2.4.
    the_last_hop_of_an_icmp_error_ends_here(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for hops in [0, 1] {
            case.refuses(Reason::TtlExpiredUnanswered, SERVERS, IcmpError { hops, ..some_error(&connection) }.frame());
        }
    }

    /// Like the packets of the connection.
    an_icmp_error_waits_for_a_lost_next_hop(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        case.edit(|tables| tables.set_next_hop(0, Hop::default()));
        let sent = connection.reply_out(&connection.reply(Control::ACK));
        let error = connection.error_at_client(router(kind), too_big(kind), quote(&sent.frame(), &sent, 8));
        case.refuses(Reason::NoNextHop, CLIENTS, error.frame());
        case.edit(|tables| tables.set_next_hop(0, hop(1, SERVERS)));
        case.error_about_reply(&connection, router(kind), too_big(kind), (&connection.reply(Control::ACK), 8));
    }

    /// The host's own connections have errors too.
    icmp_errors_about_no_connection_pass(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let sent = connection.request_out(&connection.request(Control::ACK));
        let protocol = if kind.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        for stranger in [
            Packet { src: SocketAddr::new(sent.src.ip(), FIRST + 1), ..sent.clone() },
            Packet { dst: SocketAddr::new(kind.server(2), sent.dst.port()), ..sent.clone() },
            Packet { dst: SocketAddr::new(sent.dst.ip(), 22), ..sent.clone() },
            Packet { protocol, ..sent.clone() },
            // What the other side sends is not what is sent from here.
            connection.reply(Control::ACK),
        ] {
            let quote = quote(&stranger.frame(), &stranger, WHOLE);
            let error = IcmpError {
                dst: stranger.src.ip(),
                ..connection.error_at_server(router(kind), too_big(kind), quote)
            };
            case.refuses(Reason::IcmpOfNoConnection, SERVERS, error.frame());
        }
        case.has_entries(2);
    }

    /// Other transports.
    icmp_errors_that_quote_something_else_pass(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let error = some_error(&connection);
        let quoting = |quote: Vec<u8>| IcmpError { quote, ..error.clone() }.frame();
        let (protocol_at, numbers) = match kind.ip {
            Ip::V4 => (9, [1, 47, 50, 132]),
            Ip::V6 => (6, [58, 50, 51, 59]),
        };
        for number in numbers {
            case.refuses(Reason::OtherProtocol, SERVERS, quoting(with(&error.quote, protocol_at, number)));
        }
    }

    /// Too short, contradicting themselves, or not for the sender of what they quote.
    malformed_icmp_errors_pass(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let error = some_error(&connection);
        let least = if kind.ip == Ip::V4 { 28 } else { 48 };
        for length in 0..least {
            let quote = error.quote[..length].to_vec();
            case.refuses(Reason::Malformed, SERVERS, IcmpError { quote, ..error.clone() }.frame());
            // Or only the packet is that short, and the frame is padded.
            let mut frame = error.frame();
            match kind.ip {
                Ip::V4 => set(&mut frame, ETHERNET + 2, 20 + 8 + length),
                Ip::V6 => set(&mut frame, ETHERNET + 4, 8 + length),
            }
            case.refuses(Reason::Malformed, SERVERS, frame);
        }
        for length in 0..8 {
            let mut frame = error.frame();
            match kind.ip {
                Ip::V4 => set(&mut frame, ETHERNET + 2, 20 + length),
                Ip::V6 => set(&mut frame, ETHERNET + 4, length),
            }
            case.refuses(Reason::Malformed, SERVERS, frame);
        }
        let versions: &[u8] = match kind.ip {
            // Another version, a header too short.
            Ip::V4 => &[0x65, 0x05, 0x44, 0x40],
            Ip::V6 => &[0x45, 0x05],
        };
        for version in versions {
            let quote = with(&error.quote, 0, *version);
            case.refuses(Reason::Malformed, SERVERS, IcmpError { quote, ..error.clone() }.frame());
        }
        for dst in [kind.server(254), kind.server(1)] {
            case.refuses(Reason::Malformed, SERVERS, IcmpError { dst, ..error.clone() }.frame());
        }
    }

    /// RFC 792: the header and eight bytes at least; RFC 1812 section 4.3.2.3: 576 bytes in all; RFC 4443 section 2.4(c): as
    /// much as the minimum MTU has room for. No padding.
    time_exceeded_quotes_as_much_as_the_rfcs_want(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for length in [0, 1, 2, 3, 4, 5, 100, 507, 508, 509, 520, 521, 1171, 1172, 1185, 1186, 1440] {
            let payload = vec![0xc3; length];
            let request = Packet { hops: 1, payload: payload.clone(), ..connection.request(Control::ACK) };
            case.says_time_exceeded(CLIENTS, &request);
            case.says_time_exceeded(SERVERS, &Packet { hops: 1, payload, ..connection.reply(Control::ACK) });
        }
        for length in [1, 18] {
            let trailer = vec![0xa5; length];
            case.says_time_exceeded(CLIENTS, &Packet { hops: 1, trailer, ..connection.request(Control::ACK) });
        }
    }

    /// The answer itself has none.
    time_exceeded_quotes_ipv4_options(Kind::V4, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for words in 1..=10 {
            let ip_options = vec![1; words * 4];
            case.says_time_exceeded(CLIENTS, &Packet { hops: 1, ip_options, ..connection.request(Control::SYN) });
        }
    }

    /// Clients and servers on one switch.
    with_one_arm_answers_leave_where_their_packets_came_in(Kind::ALL, 1, kind, case) {
        let connection = one_arm(kind.connection(CLIENT_PORT, 1, FIRST));
        case.opens(&connection);
        case.says_time_exceeded(SERVERS, &Packet { hops: 1, ..connection.request(Control::ACK) });
        case.says_time_exceeded(SERVERS, &Packet { hops: 1, ..connection.reply(Control::ACK) });
    }

    /// RFC 1122 section 3.2.2, RFC 4443 section 2.4(e): to many hosts. What is from none does not come so far.
    what_must_not_be_answered_is_dropped(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let request = Packet { hops: 1, ..connection.request(Control::SYN) };
        for to in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            case.refuses(Reason::TtlExpiredUnanswered, CLIENTS, Packet { to, ..request.clone() }.frame());
        }
        for source in match kind.ip {
            Ip::V4 => ["1.0.0.1", "126.0.0.1", "128.0.0.1", "223.255.255.254"],
            Ip::V6 => ["fe80::1", "fd00::1", "2001:db8::", "64:ff9b::1"],
        } {
            let src = SocketAddr::new(source.parse().expect("an address"), CLIENT_PORT);
            case.says_time_exceeded(CLIENTS, &Packet { src, ..request.clone() });
        }
    }

    /// RFC 1191, RFC 4443 section 3.2. As large as the MTU is not too large, and padding does not count.
    what_is_larger_than_its_way_out_is_answered_with_the_mtu(Kind::ALL, 2, kind, case) {
        /// 0x500 and a little.
        const MTU: [u8; 3] = [0, 8, 12];
        case.edit(|tables| {
            let mtu = |number: usize| 0x500 + u32::from(MTU[number]);
            tables.set_path_mtu(0, mtu(1));
            tables.set_path_mtu(1, mtu(2));
            tables.set_interface_mtu(CLIENTS, mtu(0));
            tables.set_interface_mtu(SERVERS, 1500);
        });
        let length = |packet: Packet, mtu: u8, more: usize| {
            let headers = packet.transport_offset() - ETHERNET + if kind.protocol == Protocol::Tcp { 20 } else { 8 };
            Packet { payload: vec![7; 0x500 + usize::from(mtu) - headers + more], ..packet }
        };
        let connections = [1, 2].map(|server| kind.connection(CLIENT_PORT + u16::from(server), server, FIRST));
        for (connection, mtu) in connections.iter().zip(&MTU[1..]) {
            case.opens(connection);
            let request = |more| length(connection.request(Control::ACK), *mtu, more);
            case.request_packet(connection, &request(0));
            case.request_packet(connection, &Packet { trailer: vec![1; 40], ..request(0) });
            for more in [1, 2, 100] {
                case.says_too_big(CLIENTS, &request(more), *mtu);
            }
            let reply = |more| length(connection.reply(Control::ACK), MTU[0], more);
            case.reply_packet(connection, &reply(0));
            case.says_too_big(SERVERS, &reply(1), MTU[0]);
        }
        // Before anything else, its hops count.
        let expired = Packet { hops: 1, ..length(connections[0].request(Control::ACK), MTU[1], 1) };
        case.says_time_exceeded(CLIENTS, &expired);
        // To nobody who may not be told.
        let to_all = Packet { to: [0xff; 6], ..length(connections[0].request(Control::ACK), MTU[1], 1) };
        case.refuses(Reason::TooBigUnanswered, CLIENTS, to_all.frame());
    }

    /// While it is being looked up.
    an_mtu_that_is_not_known_is_no_limit(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let large = |packet| Packet { payload: vec![9; 1440], ..packet };
        case.request_packet(&connection, &large(connection.request(Control::ACK)));
        case.edit(|tables| {
            tables.set_path_mtu(0, 0);
            tables.set_interface_mtu(SERVERS, 1280);
        });
        case.request_packet(&connection, &large(connection.request(Control::ACK)));
        case.reply_packet(&connection, &large(connection.reply(Control::ACK)));
    }

    /// The kernel answers pings, follows redirects, and knows its neighbours.
    other_icmp_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let types: &[u8] = match kind.ip {
            Ip::V4 => &[0, 1, 2, 5, 8, 9, 10, 13, 14, 17, 255],
            Ip::V6 => &[0, 5, 127, 128, 129, 133, 134, 135, 136, 137, 255],
        };
        for number in types {
            let error = IcmpError { kind: (*number, 0), ..some_error(&connection) };
            case.refuses(Reason::OtherProtocol, SERVERS, error.frame());
        }
    }
}
