//! What any carrier of the packet path has to fulfil, as tables of cases: frames that come in, what leaves. A function
//! is a rule; it gives a case for every family and protocol that the rule holds for.
//!
//! What is expected is written by the same independent hand as what comes in: a packet as its sender would have sent it,
//! had it been where the balancer pretends to be.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    panic::Location,
};
use std::{borrow::ToOwned as _, boxed::Box, collections::BTreeMap, format, string::String, vec, vec::Vec};

use etherparse::{PacketBuilder, icmpv6::TYPE_NEIGHBOR_SOLICITATION};
use lb_common::{Addr, Hop, Protocol, Reason};

use crate::host::{
    HostFrame, HostTables,
    packet::{Control, ETHERNET, Mac, Packet, ethernet, tagged},
};

/// The interface that clients are behind.
pub const CLIENTS: u32 = 2;
/// The interface that servers are behind.
pub const SERVERS: u32 = 3;
/// One more interface.
pub const ELSEWHERE: u32 = 4;

/// The service's port, and the backends' one.
pub(super) const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
/// The client's port, where one is enough.
const CLIENT_PORT: u16 = 40_000;
/// First port for SNAT.
const FIRST: u16 = super::PORTS.0;

/// An address family, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// What a connection is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its family.
    pub ip: Ip,
    /// Its transport.
    pub protocol: Protocol,
}

impl Kind {
    /// TCP over both families.
    pub const TCP: [Self; 2] = [Self::new(Ip::V4, Protocol::Tcp), Self::new(Ip::V6, Protocol::Tcp)];
    /// UDP over both families.
    pub const UDP: [Self; 2] = [Self::new(Ip::V4, Protocol::Udp), Self::new(Ip::V6, Protocol::Udp)];
    /// Both protocols over IPv4.
    pub const V4: [Self; 2] = [Self::TCP[0], Self::UDP[0]];
    /// Both protocols over IPv6.
    pub const V6: [Self; 2] = [Self::TCP[1], Self::UDP[1]];
    /// Every family with every protocol.
    pub const ALL: [Self; 4] = [Self::TCP[0], Self::UDP[0], Self::TCP[1], Self::UDP[1]];

    const fn new(ip: Ip, protocol: Protocol) -> Self {
        Self { ip, protocol }
    }

    const fn address(self, v4: [u8; 4], network: u16, host: u16) -> IpAddr {
        let [a, b, c, d] = v4;
        match self.ip {
            Ip::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            Ip::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host)),
        }
    }

    /// The virtual address.
    pub const fn vip(self) -> IpAddr {
        self.address([10, 10, 10, 1], 0x10, 1)
    }

    /// A client's address.
    pub const fn client(self, number: u8) -> IpAddr {
        self.address([10, 10, 10, 100 + number], 0x10, 0x100 + number as u16)
    }

    /// A server's address.
    pub const fn server(self, number: u8) -> IpAddr {
        self.address([192, 168, 1, number], 1, number as u16)
    }

    /// Where server `number` listens.
    pub const fn backend(self, number: u8) -> SocketAddr {
        SocketAddr::new(self.server(number), BACKEND_PORT)
    }

    /// The connection from `client_port` of client 1 that the balancer has with server `server` from its `snat_port`.
    pub const fn connection(self, client_port: u16, server: u8, snat_port: u16) -> Connection {
        Connection {
            kind: self,
            client: Side { interface: CLIENTS, mac: client_mac(1) },
            client_addr: SocketAddr::new(self.client(1), client_port),
            vip: SocketAddr::new(self.vip(), PORT),
            server: Side { interface: SERVERS, mac: server_mac(server) },
            backend: self.backend(server),
            snat: SocketAddr::new(self.vip(), snat_port),
        }
    }
}

/// The balancer's MAC address on an interface.
pub const fn own_mac(interface: u32) -> Mac {
    let [low, ..] = interface.to_le_bytes();
    [2, 0, 0, 0, 0, low]
}

/// A client's MAC address.
pub const fn client_mac(number: u8) -> Mac {
    [2, 0, 0, 0xc, 0, number]
}

/// A server's MAC address.
pub const fn server_mac(number: u8) -> Mac {
    [2, 0, 0, 0x5, 0, number]
}

/// The way to server `number`, through that interface.
pub const fn hop(number: u8, interface: u32) -> Hop {
    Hop::new(server_mac(number), own_mac(interface), interface)
}

/// A neighbour of the balancer.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// The balancer's interface.
    pub interface: u32,
    /// The neighbour's MAC address.
    pub mac: Mac,
}

/// A connection through the balancer.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Family and protocol.
    pub kind: Kind,
    /// How the client is reached.
    pub client: Side,
    /// Where the client sends from.
    pub client_addr: SocketAddr,
    /// Where the client sends to.
    pub vip: SocketAddr,
    /// How the backend is reached.
    pub server: Side,
    /// Where the backend listens.
    pub backend: SocketAddr,
    /// Where the backend sees its packets come from.
    pub snat: SocketAddr,
}

impl Connection {
    /// A packet from the client.
    pub fn request(&self, control: Control) -> Packet {
        let to = (own_mac(self.client.interface), self.vip);
        let packet = Packet::new(self.kind.protocol, (self.client.mac, self.client_addr), to);
        Packet { control, ..packet }
    }

    /// What the backend sees of a packet from the client.
    pub fn request_out(&self, request: &Packet) -> Packet {
        Packet {
            from: own_mac(self.server.interface),
            to: self.server.mac,
            src: self.snat,
            dst: self.backend,
            hops: request.hops - 1,
            ..request.clone()
        }
    }

    /// A packet from the backend.
    pub fn reply(&self, control: Control) -> Packet {
        let to = (own_mac(self.server.interface), self.snat);
        let packet = Packet::new(self.kind.protocol, (self.server.mac, self.backend), to);
        Packet { control, ..packet }
    }

    /// What the client sees of a packet from the backend.
    pub fn reply_out(&self, reply: &Packet) -> Packet {
        Packet {
            from: own_mac(self.client.interface),
            to: self.client.mac,
            src: self.vip,
            dst: self.client_addr,
            hops: reply.hops - 1,
            ..reply.clone()
        }
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Gives the action and the counter.
    pub reason: Reason,
    /// Interface through which a forwarded frame leaves; 0 for others.
    pub egress: u32,
    /// The frame as it is afterwards.
    pub frame: Vec<u8>,
}

/// A step of a case, and where in this file it was added.
struct Step {
    added: &'static Location<'static>,
    what: What,
}

enum What {
    /// A frame comes in through the interface `ingress`.
    Frame { ingress: u32, frame: Vec<u8>, expected: Outcome },
    /// Somebody edits services, backends or next hops.
    Edit(Box<dyn Fn(&HostTables)>),
    /// There are so many entries in the flow tables.
    Entries(usize),
}

/// What a carrier of the packet path has to do after the library over [`HostTables`] has done it.
#[derive(Debug)]
pub enum Event<'a> {
    /// Take over services, slots, backends and next hops.
    Configured,
    /// Take that frame, which has come in through interface `ingress`, and make of it what the library made.
    Frame {
        /// The interface.
        ingress: u32,
        /// The frame.
        frame: &'a [u8],
        /// What the library made of it.
        outcome: &'a Outcome,
    },
}

/// Frames that come in one after another, and what is expected of each.
pub struct Case {
    name: String,
    tables: HostTables,
    steps: Vec<Step>,
    /// The tags of frames on an interface.
    tags: BTreeMap<u32, WireTags>,
}

impl Case {
    /// A service with that many backends, servers 1 and so on, all behind [`SERVERS`].
    pub fn new(name: &str, kind: Kind, backends: u8) -> Self {
        /// As many as a case needs: the kernel makes a table of the usual size anew in some tenths of a second.
        const ENTRIES: usize = 64;
        let tables = HostTables::new();
        tables.set_capacity(ENTRIES);
        let backends: Vec<_> = (1..=backends).map(|n| (kind.backend(n), hop(n, SERVERS))).collect();
        tables.add_service(kind.protocol, SocketAddr::new(kind.vip(), PORT), &backends);
        Self {
            name: format!("{name}, {} over IP{:?}", kind.protocol.name(), kind.ip),
            tables,
            steps: Vec::new(),
            tags: BTreeMap::new(),
        }
    }

    /// Rule, protocol and family.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many flow entries there is room for, for each family.
    pub fn flow_entries(&self) -> usize {
        self.tables.capacity()
    }

    /// The frames that come in: through which interface, what they are, and for what reason they have their verdict.
    pub fn frames(&self) -> impl Iterator<Item = (u32, &[u8], Reason)> {
        self.steps.iter().filter_map(|step| match &step.what {
            What::Frame { ingress, frame, expected } => Some((*ingress, &frame[..], expected.reason)),
            What::Edit(_) | What::Entries(_) => None,
        })
    }

    #[track_caller]
    fn add(&mut self, what: What) {
        self.steps.push(Step { added: Location::caller(), what });
    }

    /// Expects the frame to leave as that.
    #[track_caller]
    fn forwards(&mut self, ingress: u32, frame: Vec<u8>, egress: u32, becomes: Vec<u8>) {
        self.leaves(Reason::Forwarded, ingress, frame, egress, becomes);
    }

    /// Expects the frame to leave as that, for that reason.
    #[track_caller]
    fn leaves(&mut self, reason: Reason, ingress: u32, frame: Vec<u8>, egress: u32, becomes: Vec<u8>) {
        let (frame, becomes) = (self.tagged(ingress, &frame), self.tagged(egress, &becomes));
        let expected = Outcome { reason, egress, frame: becomes };
        self.add(What::Frame { ingress, frame, expected });
    }

    /// Expects the frame not to leave, for that reason, and not to be touched.
    #[track_caller]
    fn refuses(&mut self, reason: Reason, ingress: u32, frame: Vec<u8>) {
        let frame = self.tagged(ingress, &frame);
        let expected = Outcome { reason, egress: 0, frame: frame.clone() };
        self.add(What::Frame { ingress, frame, expected });
    }

    /// Expects a packet from the client to reach the backend.
    #[track_caller]
    fn request(&mut self, connection: &Connection, control: Control) {
        self.request_packet(connection, &connection.request(control));
    }

    #[track_caller]
    fn request_packet(&mut self, connection: &Connection, packet: &Packet) {
        let becomes = connection.request_out(packet).frame();
        self.forwards(connection.client.interface, packet.frame(), connection.server.interface, becomes);
    }

    /// Expects a packet from the backend to reach the client.
    #[track_caller]
    fn reply(&mut self, connection: &Connection, control: Control) {
        self.reply_packet(connection, &connection.reply(control));
    }

    #[track_caller]
    fn reply_packet(&mut self, connection: &Connection, packet: &Packet) {
        let becomes = connection.reply_out(packet).frame();
        self.forwards(connection.server.interface, packet.frame(), connection.client.interface, becomes);
    }

    /// Expects a packet from the client to be refused.
    #[track_caller]
    fn refuses_request(&mut self, reason: Reason, connection: &Connection, control: Control) {
        self.refuses(reason, connection.client.interface, connection.request(control).frame());
    }

    /// Expects a packet from the backend to be refused.
    #[track_caller]
    fn refuses_reply(&mut self, reason: Reason, connection: &Connection, control: Control) {
        self.refuses(reason, connection.server.interface, connection.reply(control).frame());
    }

    /// The handshake, or one datagram each way.
    #[track_caller]
    fn opens(&mut self, connection: &Connection) {
        self.request(connection, Control::SYN);
        self.reply(connection, Control::SYN | Control::ACK);
        if connection.kind.protocol == Protocol::Tcp {
            self.request(connection, Control::ACK);
        }
    }

    /// Both sides say FIN.
    #[track_caller]
    fn closes(&mut self, connection: &Connection) {
        self.request(connection, Control::FIN | Control::ACK);
        self.reply(connection, Control::FIN | Control::ACK);
        self.request(connection, Control::ACK);
    }

    #[track_caller]
    fn edit(&mut self, edit: impl Fn(&HostTables) + 'static) {
        self.add(What::Edit(Box::new(edit)));
    }

    #[track_caller]
    fn has_entries(&mut self, entries: usize) {
        self.add(What::Entries(entries));
    }

    /// Takes all steps with the library, and has `carrier` follow.
    ///
    /// # Errors
    ///
    /// The carrier's first one.
    ///
    /// # Panics
    ///
    /// If the library does something else than is expected.
    pub fn run<E: fmt::Display>(
        &self,
        mut carrier: impl FnMut(&HostTables, Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        carrier(&self.tables, Event::Configured)?;
        for Step { added, what } in &self.steps {
            let place = format!("{} ({added})", self.name);
            match what {
                What::Edit(edit) => {
                    edit(&self.tables);
                    carrier(&self.tables, Event::Configured)?;
                }
                What::Entries(entries) => assert_eq!(self.tables.flow_count(), *entries, "{place}"),
                What::Frame { ingress, frame, expected } => {
                    let outcome = process(&self.tables, *ingress, frame);
                    expected.compare(&outcome, &place);
                    carrier(&self.tables, Event::Frame { ingress: *ingress, frame, outcome: &outcome })
                        .inspect_err(|error| std::eprintln!("{place}: {error}"))?;
                }
            }
        }
        Ok(())
    }
}

impl Outcome {
    /// Panics with what is different, if anything is.
    ///
    /// # Panics
    ///
    /// If `other` is not this.
    pub fn compare(&self, other: &Self, place: &str) {
        assert_eq!((self.reason, self.egress), (other.reason, other.egress), "{place}: reason and egress");
        let differences: BTreeMap<_, _> = self
            .frame
            .iter()
            .zip(&other.frame)
            .enumerate()
            .filter(|(_, (expected, is))| expected != is)
            .collect();
        assert!(
            differences.is_empty() && self.frame.len() == other.frame.len(),
            "{place}: bytes, by offset as expected and as they are: {differences:02x?}"
        );
    }
}

/// Takes a frame down the packet path.
pub fn process(tables: &HostTables, ingress: u32, frame: &[u8]) -> Outcome {
    let mut frame = HostFrame::new(frame);
    let verdict = tables.process(&mut frame, ingress);
    Outcome { reason: verdict.reason, egress: verdict.egress, frame: frame.into_bytes() }
}

/// Hands the rules to a macro, by name, so that every carrier has a test for each: none is forgotten.
#[macro_export]
macro_rules! every_case {
    ($test_all:ident) => {
        $test_all! {
            a_connection_is_translated_in_both_directions,
            payloads_of_any_length_keep_their_checksums,
            with_one_arm_packets_leave_where_they_came_in,
            backends_of_one_service_may_be_behind_several_interfaces,
            connections_take_turns_exactly,
            a_repeated_first_packet_does_not_choose_again,
            a_syn_with_ecn_bits_opens_a_connection,
            a_syn_on_a_connection_that_is_over_is_a_new_one_with_a_port_of_its_own,
            a_syn_on_a_live_connection_stays_with_it,
            a_syn_from_a_backend_begins_nothing,
            one_client_port_to_two_services_that_share_a_backend_gets_two_source_ports,
            source_ports_are_counted_for_each_backend,
            several_snat_addresses_make_a_pool,
            the_port_range_goes_round_past_live_ports_to_those_that_are_over,
            exhausted_ports_refuse_new_connections_only,
            a_full_table_refuses_new_connections_only,
            half_open_connections_give_way_when_ports_are_exhausted,
            half_open_connections_give_way_in_a_full_table,
            without_a_backend_new_connections_are_refused,
            a_removed_backend_keeps_its_connections,
            without_a_next_hop_the_next_attempt_goes_to_the_next_backend,
            a_connection_waits_for_a_lost_next_hop,
            tcp_of_no_connection_passes,
            unfinished_checksums_are_finished,
            unfinished_checksums_are_left_so_in_generic_mode,
            a_right_checksum_that_looks_unfinished_is_right_afterwards,
            what_is_not_for_a_service_passes,
            a_packet_of_no_flow_from_a_backend_passes,
            from_an_address_that_no_client_has_nothing_begins,
            a_backend_may_be_a_client_of_its_own_service,
            the_last_hop_ends_here,
            ipv4_options_are_kept,
            tcp_options_are_kept,
            padding_is_kept,
            a_wrong_checksum_stays_wrong,
            what_is_malformed_passes,
            a_frame_cut_off_anywhere_passes,
            a_packet_cut_off_in_its_headers_passes,
            udp_without_a_checksum_keeps_it_so_over_ipv4,
            udp_without_a_checksum_passes_over_ipv6,
            a_udp_checksum_that_comes_to_zero_is_written_as_its_other_zero,
            the_way_to_the_client_follows_the_client,
            icmp_errors_about_requests_reach_the_client,
            icmp_errors_about_replies_reach_the_backend,
            icmp_errors_with_one_arm_leave_where_they_came_in,
            icmp_errors_quote_as_much_as_they_like,
            icmp_errors_quote_ipv4_options,
            icmp_errors_quote_udp_without_a_checksum,
            an_icmp_error_leaves_no_trace,
            the_last_hop_of_an_icmp_error_ends_here,
            an_icmp_error_waits_for_a_lost_next_hop,
            icmp_errors_about_no_connection_pass,
            icmp_errors_that_quote_something_else_pass,
            malformed_icmp_errors_pass,
            other_icmp_passes,
            time_exceeded_quotes_as_much_as_the_rfcs_want,
            time_exceeded_quotes_ipv4_options,
            with_one_arm_answers_leave_where_their_packets_came_in,
            what_must_not_be_answered_is_dropped,
            what_is_larger_than_its_way_out_is_answered_with_the_mtu,
            an_mtu_that_is_not_known_is_no_limit,
            fragments_are_translated_like_the_whole,
            large_fragments_are_translated,
            with_one_arm_fragments_leave_where_they_came_in,
            fragments_keep_ipv4_options,
            fragments_of_udp_without_a_checksum_keep_it_so_over_ipv4,
            a_first_fragment_of_udp_without_a_checksum_passes_over_ipv6,
            padding_of_fragments_is_kept,
            a_wrong_checksum_of_fragments_stays_wrong,
            a_first_fragment_opens_a_connection,
            fragments_of_tcp_of_no_connection_pass,
            later_fragments_come_in_any_order,
            fragments_of_several_datagrams_come_mixed,
            an_identification_is_its_senders_own,
            an_identification_is_its_protocols_own_over_ipv4,
            every_bit_of_an_identification_counts,
            an_identification_is_that_of_the_last_first_fragment,
            what_follows_a_first_fragment_that_passed_passes,
            what_follows_a_first_fragment_that_was_dropped_is_dropped,
            a_dropped_datagram_may_be_sent_again,
            a_first_fragment_whose_hops_end_here_is_answered,
            a_first_fragment_larger_than_its_way_out_is_answered,
            a_later_fragment_whose_hops_end_here_is_answered_over_ipv6_only,
            each_fragment_has_one_hop_less,
            fragments_to_others_pass,
            fragments_of_other_protocols_pass,
            a_first_fragment_without_a_whole_transport_header_passes,
            a_first_fragment_may_end_in_tcp_options,
            a_fragment_cut_off_anywhere_passes,
            fragments_follow_their_connections_way,
            fragments_of_a_ping_do_not_disturb_those_of_a_connection,
            extension_headers_are_passed_over,
            a_connection_may_open_behind_extension_headers,
            up_to_eight_extension_headers_are_passed_over,
            atomic_fragments_are_whole_packets,
            fragments_may_be_behind_extension_headers,
            extension_headers_in_a_first_fragment_leave_all_of_it_to_the_kernel,
            other_protocols_behind_extension_headers_pass,
            what_is_refused_is_refused_behind_extension_headers,
            the_last_hop_ends_here_behind_extension_headers,
            extension_headers_longer_than_the_packet_pass,
            packets_cut_off_in_extension_headers_pass,
            icmp_errors_behind_extension_headers_are_translated,
            other_icmp_behind_extension_headers_passes,
            icmp_errors_quote_extension_headers,
            icmp_errors_that_quote_no_end_of_extension_headers_pass,
            icmp_errors_quote_first_fragments,
            icmp_errors_that_quote_later_fragments_pass,
            routing_headers_with_addresses_left_are_passed_over,
            numbers_of_extension_headers_are_no_such_over_ipv4,
            an_extension_header_is_known_by_its_number,
            frames_get_the_tags_of_their_way,
            tags_are_kept_where_the_way_has_the_same,
            a_priority_without_a_vlan_is_no_tag,
            icmp_errors_get_the_tags_of_their_way,
            answers_have_the_tags_of_what_they_answer,
            fragments_get_the_tags_of_their_way,
            what_is_larger_than_its_vlan_takes_is_answered,
            the_way_to_the_client_follows_it_into_another_vlan,
            where_the_host_has_no_vlans_tags_are_kept,
            frames_of_vlans_without_a_device_pass,
            frames_cut_off_in_their_tags_pass,
        }
    };
}

fn each(name: &str, kinds: &[Kind], backends: u8, steps: impl Fn(Kind, &mut Case)) -> Vec<Case> {
    kinds
        .iter()
        .map(|kind| {
            let mut case = Case::new(name, *kind, backends);
            steps(*kind, &mut case);
            case
        })
        .collect()
}

macro_rules! rules {
    ($($(#[doc = $doc:literal])* $name:ident($kinds:expr, $backends:literal, $kind:pat, $case:ident) $steps:block)*) => {
        $(
            $(#[doc = $doc])*
            pub fn $name() -> Vec<Case> {
                each(stringify!($name), &$kinds, $backends, |$kind: Kind, $case: &mut Case| $steps)
            }
        )*
    };
}

// Behind the macro that they are written with.
mod icmp;
mod parts;
mod vlan;

use self::vlan::WireTags;
pub use self::{icmp::*, parts::*, vlan::*};

rules! {
    /// From the first packet to the last.
    a_connection_is_translated_in_both_directions(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        case.request(&connection, Control::PSH | Control::ACK);
        case.reply(&connection, Control::PSH | Control::ACK);
        case.closes(&connection);
        case.has_entries(2);
    }

    /// Odd lengths, none, and the most that an Ethernet frame carries.
    payloads_of_any_length_keep_their_checksums(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for length in [0, 1, 2, 3, 64, 1001, 1440] {
            let payload: Vec<u8> = (0..length).map(|n: u32| n.to_be_bytes()[3] ^ 0x5a).collect();
            let request = Packet { payload: payload.clone(), ..connection.request(Control::ACK) };
            case.request_packet(&connection, &request);
            let reply = Packet { payload, ..connection.reply(Control::ACK) };
            case.reply_packet(&connection, &reply);
        }
    }

    /// Clients and servers on one switch, the balancer beside them.
    with_one_arm_packets_leave_where_they_came_in(Kind::ALL, 1, kind, case) {
        let connection = one_arm(kind.connection(CLIENT_PORT, 1, FIRST));
        case.opens(&connection);
        case.closes(&connection);
    }

    /// Each next hop says which.
    backends_of_one_service_may_be_behind_several_interfaces(Kind::ALL, 3, kind, case) {
        case.edit(|tables| {
            tables.set_next_hop(1, hop(2, ELSEWHERE));
            tables.set_next_hop(2, hop(3, CLIENTS));
        });
        for (server, interface) in [(1, SERVERS), (2, ELSEWHERE), (3, CLIENTS)] {
            let connection = kind.connection(CLIENT_PORT + u16::from(server), server, FIRST);
            case.opens(&Connection { server: Side { interface, ..connection.server }, ..connection });
        }
    }

    /// Four backends and eight connections: 1 2 3 4 1 2 3 4.
    connections_take_turns_exactly(Kind::ALL, 4, kind, case) {
        for (number, server) in (0..).zip([1, 2, 3, 4, 1, 2, 3, 4]) {
            case.opens(&kind.connection(CLIENT_PORT + number, server, FIRST + number / 4));
        }
        case.has_entries(16);
    }

    /// Retransmitted before there is an answer.
    a_repeated_first_packet_does_not_choose_again(Kind::ALL, 4, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.request(&connection, Control::SYN);
        case.request(&connection, Control::SYN);
        case.request(&connection, Control::SYN);
        case.has_entries(2);
        // Nor does it take a turn.
        case.opens(&kind.connection(CLIENT_PORT + 1, 2, FIRST));
    }

    /// RFC 3168 section 6.1.1.
    a_syn_with_ecn_bits_opens_a_connection(Kind::TCP, 1, kind, case) {
        case.request(&kind.connection(CLIENT_PORT, 1, FIRST), Control::SYN | Control::ECE | Control::CWR);
    }

    /// RFC 5382 REQ-1; the backend may hold the old one in TIME-WAIT.
    a_syn_on_a_connection_that_is_over_is_a_new_one_with_a_port_of_its_own(Kind::TCP, 2, kind, case) {
        let closed = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&closed);
        case.closes(&closed);
        let reset_by_backend = kind.connection(CLIENT_PORT, 2, FIRST);
        case.opens(&reset_by_backend);
        case.refuses_reply(Reason::NoService, &closed, Control::ACK);
        case.reply(&reset_by_backend, Control::RST);
        let reset_by_client = kind.connection(CLIENT_PORT, 1, FIRST + 1);
        case.opens(&reset_by_client);
        case.request(&reset_by_client, Control::RST | Control::ACK);
        case.opens(&kind.connection(CLIENT_PORT, 2, FIRST + 1));
        case.has_entries(2);
    }

    /// Whatever its state, as long as it is not over: RFC 9293 section 3.10.7.4 has the backend judge.
    a_syn_on_a_live_connection_stays_with_it(Kind::TCP, 2, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        case.request(&connection, Control::SYN);
        case.request(&connection, Control::FIN | Control::ACK);
        case.request(&connection, Control::SYN);
        case.has_entries(2);
    }

    /// Not even where the connection is over.
    a_syn_from_a_backend_begins_nothing(Kind::TCP, 2, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.request(&connection, Control::SYN);
        case.reply(&connection, Control::SYN);
        case.closes(&connection);
        case.reply(&connection, Control::SYN);
        case.has_entries(2);
    }

    /// After translation the tuples must differ.
    one_client_port_to_two_services_that_share_a_backend_gets_two_source_ports(Kind::ALL, 1, kind, case) {
        let other = SocketAddr::new(kind.vip(), PORT + 1);
        case.edit(move |tables| {
            tables.add_service(kind.protocol, other, &[(kind.backend(1), hop(1, SERVERS))]);
        });
        let first = kind.connection(CLIENT_PORT, 1, FIRST);
        let second = Connection { vip: other, ..kind.connection(CLIENT_PORT, 1, FIRST + 1) };
        case.opens(&first);
        case.opens(&second);
        case.reply(&first, Control::ACK);
        case.has_entries(4);
    }

    /// One port serves every backend at once.
    source_ports_are_counted_for_each_backend(Kind::ALL, 2, kind, case) {
        for (client_port, server, snat_port) in [(1, 1, FIRST), (2, 2, FIRST), (3, 1, FIRST + 1), (4, 2, FIRST + 1)] {
            case.opens(&kind.connection(client_port, server, snat_port));
        }
    }

    /// All ports of one, then of the next.
    several_snat_addresses_make_a_pool(Kind::ALL, 1, kind, case) {
        let second = kind.server(254);
        case.edit(move |tables| {
            tables.edit_service(0, |service| {
                (service.first_port, service.ports, service.snat_len) = (5000, 2, 2);
                (service.snat[1], _) = Addr::new(second);
            });
        });
        for (client_port, snat, snat_port) in
            [(1, kind.vip(), 5000), (2, kind.vip(), 5001), (3, second, 5000), (4, second, 5001)]
        {
            let connection = kind.connection(client_port, 1, snat_port);
            case.opens(&Connection { snat: SocketAddr::new(snat, snat_port), ..connection });
        }
        case.refuses_request(Reason::PortsExhausted, &kind.connection(5, 1, 0), Control::SYN);
    }

    /// So that a port rests as long as possible before it is taken again.
    the_port_range_goes_round_past_live_ports_to_those_that_are_over(Kind::TCP, 1, kind, case) {
        case.edit(|tables| tables.edit_service(0, |service| (service.first_port, service.ports) = (5000, 3)));
        let [a, b, c] = [5000, 5001, 5002].map(|port| kind.connection(port, 1, port));
        for connection in [a, b, c] {
            case.opens(&connection);
        }
        case.closes(&b);
        let d = kind.connection(CLIENT_PORT, 1, 5001);
        case.opens(&d);
        case.has_entries(6);
        for connection in [a, c, d] {
            case.request(&connection, Control::ACK);
            case.reply(&connection, Control::ACK);
        }
        case.refuses_request(Reason::Stray, &b, Control::ACK);
        case.request(&a, Control::RST);
        case.opens(&kind.connection(CLIENT_PORT + 1, 1, 5000));
    }

    /// Nothing of them is left behind, and other backends do not suffer.
    exhausted_ports_refuse_new_connections_only(Kind::ALL, 2, kind, case) {
        case.edit(|tables| tables.edit_service(0, |service| (service.first_port, service.ports) = (5000, 1)));
        let [first, second] = [(1, 1), (2, 2)].map(|(port, server)| kind.connection(port, server, 5000));
        case.opens(&first);
        case.opens(&second);
        case.refuses_request(Reason::PortsExhausted, &kind.connection(3, 1, 0), Control::SYN);
        case.refuses_request(Reason::PortsExhausted, &kind.connection(4, 2, 0), Control::SYN);
        case.has_entries(4);
        case.request(&first, Control::ACK);
        case.reply(&second, Control::ACK);
    }

    /// What is half open gives way to what comes after it, and what is established does not.
    half_open_connections_give_way_when_ports_are_exhausted(Kind::ALL, 1, kind, case) {
        case.edit(|tables| tables.edit_service(0, |service| (service.first_port, service.ports) = (5000, 2)));
        let established = kind.connection(1, 1, 5000);
        case.opens(&established);
        let first = kind.connection(2, 1, 5001);
        case.request(&first, Control::SYN);
        if kind.protocol == Protocol::Tcp {
            case.reply(&first, Control::SYN | Control::ACK);
        }
        for client_port in 3..9 {
            // Only one port is left to them all.
            case.request(&kind.connection(client_port, 1, 5001), Control::SYN);
            case.has_entries(4);
        }
        if kind.protocol == Protocol::Tcp {
            case.refuses_request(Reason::Stray, &first, Control::ACK);
        }
        case.opens(&kind.connection(9, 1, 5001));
        case.refuses_request(Reason::PortsExhausted, &kind.connection(10, 1, 0), Control::SYN);
        case.request(&established, Control::ACK);
        case.reply(&established, Control::ACK);
    }

    /// And those that there are go on.
    without_a_backend_new_connections_are_refused(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        case.edit(|tables| tables.publish(0, &[]));
        case.refuses_request(Reason::NoBackend, &kind.connection(1, 1, 0), Control::SYN);
        case.has_entries(2);
        case.request(&connection, Control::ACK);
        case.reply(&connection, Control::ACK);
    }

    /// The others take its turns.
    a_removed_backend_keeps_its_connections(Kind::ALL, 3, kind, case) {
        let old = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&old);
        case.edit(|tables| tables.publish(0, &[1, 2]));
        for (client_port, server, snat_port) in [(1, 3, FIRST), (2, 2, FIRST), (3, 3, FIRST + 1)] {
            case.opens(&kind.connection(client_port, server, snat_port));
        }
        case.request(&old, Control::ACK);
        case.reply(&old, Control::ACK);
    }

    /// No flow is made meanwhile.
    without_a_next_hop_the_next_attempt_goes_to_the_next_backend(Kind::ALL, 2, kind, case) {
        case.edit(|tables| tables.set_next_hop(0, Hop::default()));
        let connection = kind.connection(CLIENT_PORT, 2, FIRST);
        case.refuses_request(Reason::NoNextHop, &connection, Control::SYN);
        case.has_entries(0);
        case.opens(&connection);
        case.edit(|tables| tables.set_next_hop(0, hop(1, SERVERS)));
        case.opens(&kind.connection(CLIENT_PORT + 1, 1, FIRST));
    }

    /// Its packets go nowhere else.
    a_connection_waits_for_a_lost_next_hop(Kind::ALL, 2, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        case.edit(|tables| tables.set_next_hop(0, Hop::default()));
        case.refuses_request(Reason::NoNextHop, &connection, Control::ACK);
        case.reply(&connection, Control::ACK);
        case.edit(|tables| tables.set_next_hop(0, hop(1, ELSEWHERE)));
        let moved = Connection { server: Side { interface: ELSEWHERE, ..connection.server }, ..connection };
        case.request(&moved, Control::ACK);
    }

    /// The kernel resets it.
    tcp_of_no_connection_passes(Kind::TCP, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for control in [
            Control::ACK,
            Control::SYN | Control::ACK,
            Control::SYN | Control::RST,
            Control::SYN | Control::FIN,
            Control::FIN | Control::ACK,
            Control::RST,
            Control::NONE,
        ] {
            case.refuses_request(Reason::Stray, &connection, control);
        }
        case.has_entries(0);
    }

    /// As a stack leaves them to a network card: with the sum of the pseudo header, not complemented.
    unfinished_checksums_are_finished(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let unfinished = Packet::frame_with_unfinished_checksum;
        for length in [0, 1, 2, 3, 15, 16, 17, 700, 1_401] {
            let control = if length == 0 { Control::SYN } else { Control::ACK };
            let payload: Vec<u8> = (0..length).map(|at: u16| at.to_le_bytes()[0] ^ 0x5a).collect();
            // Padding is none of it.
            let trailer = vec![0xff; 3];
            let sent = |packet: Packet| Packet { payload: payload.clone(), trailer: trailer.clone(), ..packet };
            let request = sent(connection.request(control));
            let becomes = connection.request_out(&request).frame();
            case.forwards(CLIENTS, unfinished(&request), SERVERS, becomes);
            let reply = sent(connection.reply(control | Control::ACK));
            let becomes = connection.reply_out(&reply).frame();
            case.forwards(SERVERS, unfinished(&reply), CLIENTS, becomes);
        }
    }

    /// There the kernel finishes them when they leave, from the sum of what is then the pseudo header.
    unfinished_checksums_are_left_so_in_generic_mode(Kind::ALL, 1, kind, case) {
        case.edit(|tables| tables.set_generic(CLIENTS));
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for control in [Control::SYN, Control::SYN, Control::ACK, Control::FIN | Control::ACK] {
            let request = connection.request(control);
            let becomes = connection.request_out(&request).frame_with_unfinished_checksum();
            case.forwards(CLIENTS, request.frame_with_unfinished_checksum(), SERVERS, becomes);
        }
        // The other direction's interface is not in that mode.
        let reply = connection.reply(Control::SYN | Control::ACK);
        let becomes = connection.reply_out(&reply).frame();
        case.forwards(SERVERS, reply.frame_with_unfinished_checksum(), CLIENTS, becomes);
    }

    /// One in 65 536 is the sum of its pseudo header.
    a_right_checksum_that_looks_unfinished_is_right_afterwards(Kind::ALL, 1, kind, case) {
        for generic in [false, true] {
            if generic {
                case.edit(|tables| tables.set_generic(CLIENTS));
            }
            let (port, snat) = if generic { (CLIENT_PORT, FIRST) } else { (CLIENT_PORT + 1, FIRST) };
            let connection = kind.connection(port, 1, snat + u16::from(generic));
            let with = |payload: [u8; 2]| Packet { payload: payload.to_vec(), ..connection.request(Control::SYN) };
            // A word of payload that makes up for the rest (RFC 1071): what the checksum is without it, less what it is to be.
            let zero = with([0; 2]);
            let at = zero.checksum_offset();
            let word = |frame: &[u8]| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
            let sum = word(&zero.frame()) + (0xffff - word(&zero.frame_with_unfinished_checksum()));
            let payload = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("a folded sum");
            let request = with(payload.to_be_bytes());
            assert_eq!(request.frame(), request.frame_with_unfinished_checksum(), "that is what it is about");
            case.request_packet(&connection, &request);
        }
    }

    /// Byte for byte.
    what_is_not_for_a_service_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (reason, frame) in foreign(&connection.request(Control::SYN)) {
            case.refuses(reason, CLIENTS, frame);
        }
        case.has_entries(2);
    }

    /// Another server, another port, another protocol than the flow's.
    a_packet_of_no_flow_from_a_backend_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let reply = connection.reply(Control::ACK);
        let protocol = if kind.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        for stranger in [
            Packet { src: kind.backend(2), ..reply.clone() },
            Packet { src: SocketAddr::new(kind.server(1), BACKEND_PORT + 1), ..reply.clone() },
            Packet { dst: SocketAddr::new(kind.vip(), FIRST + 1), ..reply.clone() },
            Packet { dst: SocketAddr::new(kind.server(254), FIRST), ..reply.clone() },
            Packet { protocol, ..reply.clone() },
        ] {
            case.refuses(Reason::NoService, SERVERS, stranger.frame());
        }
    }

    /// RFC 1812 section 5.3.7, RFC 6890, RFC 4291 section 2: those of no one host, and our own. Nor does it take a turn.
    from_an_address_that_no_client_has_nothing_begins(Kind::ALL, 2, kind, case) {
        let pool = kind.server(254);
        case.edit(move |tables| {
            tables.edit_service(0, |service| {
                // The service's own address is not one of its SNAT addresses here.
                (service.snat[0], _) = Addr::new(pool);
                (service.snat[1], _) = Addr::new(kind.server(253));
                service.snat_len = 2;
            });
        });
        let connection = Connection { snat: SocketAddr::new(pool, FIRST), ..kind.connection(CLIENT_PORT, 1, FIRST) };
        let of_nobody: &[&str] = match kind.ip {
            Ip::V4 => &["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255"],
            Ip::V6 => &["::", "::1", "ff02::1", "ff0e::1234"],
        };
        let own = [kind.vip(), pool, kind.server(253)];
        let request = connection.request(Control::SYN);
        for source in of_nobody.iter().map(|source| source.parse().expect("an address")).chain(own) {
            for port in [PORT, CLIENT_PORT] {
                let src = SocketAddr::new(source, port);
                case.refuses(Reason::Martian, CLIENTS, Packet { src, ..request.clone() }.frame());
                // Not even an error is sent there.
                case.refuses(Reason::Martian, CLIENTS, Packet { src, hops: 1, ..request.clone() }.frame());
            }
            // To another port it is no concern of ours.
            let (src, dst) = (SocketAddr::new(source, CLIENT_PORT), SocketAddr::new(kind.vip(), PORT + 1));
            case.refuses(Reason::NoService, CLIENTS, Packet { src, dst, ..request.clone() }.frame());
        }
        case.has_entries(0);
        case.opens(&connection);
    }

    /// Also of itself: it is its own turn at times.
    a_backend_may_be_a_client_of_its_own_service(Kind::ALL, 2, kind, case) {
        for (client_port, server) in [(CLIENT_PORT, 1), (CLIENT_PORT + 1, 2), (BACKEND_PORT, 1)] {
            let snat_port = if client_port == BACKEND_PORT { FIRST + 1 } else { FIRST };
            let connection = kind.connection(client_port, server, snat_port);
            case.opens(&Connection {
                client: Side { interface: SERVERS, mac: server_mac(1) },
                client_addr: SocketAddr::new(kind.server(1), client_port),
                ..connection
            });
        }
        case.has_entries(6);
    }

    /// RFC 1812 section 5.3.1, RFC 8200 section 3: of what we forward; what is not ours may be for this host.
    the_last_hop_ends_here(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for hops in [0, 1] {
            let first = Packet { hops, ..connection.request(Control::SYN) };
            case.says_time_exceeded(CLIENTS, &first);
            let elsewhere = Packet { dst: SocketAddr::new(kind.vip(), PORT + 1), ..first };
            case.refuses(Reason::NoService, CLIENTS, elsewhere.frame());
        }
        case.has_entries(0);
        case.opens(&connection);
        for hops in [0, 1] {
            let request = Packet { hops, ..connection.request(Control::ACK) };
            case.says_time_exceeded(CLIENTS, &request);
            let reply = Packet { hops, ..connection.reply(Control::ACK) };
            case.says_time_exceeded(SERVERS, &reply);
        }
        for hops in [2, 255] {
            case.request_packet(&connection, &Packet { hops, ..connection.request(Control::ACK) });
            case.reply_packet(&connection, &Packet { hops, ..connection.reply(Control::ACK) });
        }
    }

    /// RFC 1812 section 5.2.4 would have some of them acted upon, but not here.
    ipv4_options_are_kept(Kind::V4, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for words in 1..=10 {
            // No operation (RFC 791 section 3.1), as often as fits.
            let ip_options = vec![1; words * 4];
            let request = Packet { ip_options: ip_options.clone(), ..connection.request(Control::ACK) };
            case.request_packet(&connection, &request);
            case.reply_packet(&connection, &Packet { ip_options, ..connection.reply(Control::ACK) });
        }
    }

    /// A SYN has a maximum segment size, and often much more.
    tcp_options_are_kept(Kind::TCP, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for words in 1..=10 {
            let tcp_options = vec![1; words * 4];
            let request = Packet { tcp_options: tcp_options.clone(), ..connection.request(Control::SYN) };
            case.request_packet(&connection, &request);
            case.reply_packet(&connection, &Packet { tcp_options, ..connection.reply(Control::ACK) });
        }
    }

    /// It is part of no checksum, whatever is in it.
    padding_is_kept(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for length in 1..=18 {
            let short = |packet| Packet { payload: vec![], trailer: vec![0xa5; length], ..packet };
            case.request_packet(&connection, &short(connection.request(Control::ACK)));
            case.reply_packet(&connection, &short(connection.reply(Control::ACK)));
        }
    }

    /// By as much as before: whoever is to find the error still finds it.
    a_wrong_checksum_stays_wrong(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let request = connection.request(Control::ACK);
        let broken = |packet: &Packet| {
            let mut frame = packet.frame();
            let last = frame.len() - 1;
            frame[last] ^= 0xff;
            frame
        };
        case.forwards(CLIENTS, broken(&request), SERVERS, broken(&connection.request_out(&request)));
        let reply = connection.reply(Control::ACK);
        case.forwards(SERVERS, broken(&reply), CLIENTS, broken(&connection.reply_out(&reply)));
    }

    /// The kernel throws it away, and counts it.
    what_is_malformed_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (interface, packet) in
            [(CLIENTS, connection.request(Control::SYN)), (SERVERS, connection.reply(Control::ACK))]
        {
            for frame in malformed(kind, &packet) {
                case.refuses(Reason::Malformed, interface, frame);
            }
        }
        case.has_entries(2);
    }

    /// What the network header announces is not there.
    a_frame_cut_off_anywhere_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (interface, packet) in
            [(CLIENTS, connection.request(Control::SYN)), (SERVERS, connection.reply(Control::ACK))]
        {
            let frame = packet.frame();
            for length in ETHERNET..frame.len() {
                case.refuses(Reason::Malformed, interface, frame[..length].to_owned());
            }
        }
    }

    /// The network header announces no more than there is, but that is not a transport header; the frame may be longer.
    a_packet_cut_off_in_its_headers_passes(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (interface, packet) in
            [(CLIENTS, connection.request(Control::SYN)), (SERVERS, connection.reply(Control::ACK))]
        {
            let mut frame = packet.frame();
            let transport = packet.transport_offset();
            let headers = if kind.protocol == Protocol::Tcp { 20 } else { 8 };
            for length in 0..headers {
                match kind.ip {
                    Ip::V4 => set(&mut frame, ETHERNET + 2, transport - ETHERNET + length),
                    Ip::V6 => set(&mut frame, ETHERNET + 4, length),
                }
                case.refuses(Reason::Malformed, interface, frame.clone());
                case.refuses(Reason::Malformed, interface, frame[..transport + length].to_owned());
            }
        }
    }

    /// RFC 768: 'an all zero transmitted checksum value means that the transmitter generated no checksum'.
    udp_without_a_checksum_keeps_it_so_over_ipv4([Kind::UDP[0]], 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let (request, reply) = (connection.request(Control::NONE), connection.reply(Control::NONE));
        let request_out = connection.request_out(&request).frame_without_checksum();
        case.forwards(CLIENTS, request.frame_without_checksum(), SERVERS, request_out);
        let reply_out = connection.reply_out(&reply).frame_without_checksum();
        case.forwards(SERVERS, reply.frame_without_checksum(), CLIENTS, reply_out);
    }

    /// RFC 8200 section 8.1 has receivers discard it; a translation would leave it without any protection.
    udp_without_a_checksum_passes_over_ipv6([Kind::UDP[1]], 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let (request, reply) = (connection.request(Control::NONE), connection.reply(Control::NONE));
        case.refuses(Reason::NoChecksum, CLIENTS, request.frame_without_checksum());
        case.has_entries(0);
        case.opens(&connection);
        case.refuses(Reason::NoChecksum, SERVERS, reply.frame_without_checksum());
    }

    /// RFC 768: 'if the computed checksum is zero, it is transmitted as all ones'. Coming in, too.
    a_udp_checksum_that_comes_to_zero_is_written_as_its_other_zero(Kind::UDP, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let request = connection.request(Control::NONE);
        let zero_out = with_zero_sum(&request, |packet| connection.request_out(packet));
        assert_eq!(checksum(&connection.request_out(&zero_out)), [0xff; 2]);
        case.request_packet(&connection, &zero_out);
        case.request_packet(&connection, &with_zero_sum(&request, Packet::clone));
        let reply = connection.reply(Control::NONE);
        case.reply_packet(&connection, &with_zero_sum(&reply, |packet| connection.reply_out(packet)));
        case.reply_packet(&connection, &with_zero_sum(&reply, Packet::clone));
    }

    /// To another router, to another interface; replies go where requests last came from.
    the_way_to_the_client_follows_the_client(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for (interface, number) in [(CLIENTS, 2), (ELSEWHERE, 2), (SERVERS, 3), (CLIENTS, 1)] {
            let client = Side { interface, mac: client_mac(number) };
            let moved = Connection { client, ..connection };
            case.request(&moved, Control::ACK);
            case.reply(&moved, Control::ACK);
        }
        case.has_entries(2);
    }
}

/// Nothing of them is left behind. With an odd number of entries, half a pair would fit.
pub fn a_full_table_refuses_new_connections_only() -> Vec<Case> {
    let rule = |capacity: usize| {
        each("a_full_table_refuses_new_connections_only", &Kind::ALL, 2, move |kind, case| {
            case.tables.set_capacity(capacity);
            let connections = [(1, 1), (2, 2)].map(|(port, server)| kind.connection(port, server, FIRST));
            for connection in &connections {
                case.opens(connection);
            }
            for client_port in [3, 4, 3] {
                case.refuses_request(Reason::TableFull, &kind.connection(client_port, 1, 0), Control::SYN);
            }
            case.has_entries(4);
            for connection in &connections {
                case.request(connection, Control::ACK);
                case.reply(connection, Control::ACK);
            }
        })
    };
    rule(4).into_iter().chain(rule(5)).collect()
}

/// Whichever ports they have.
pub fn half_open_connections_give_way_in_a_full_table() -> Vec<Case> {
    each("half_open_connections_give_way_in_a_full_table", &Kind::ALL, 1, |kind, case| {
        case.tables.set_capacity(4);
        case.edit(|tables| tables.edit_service(0, |service| (service.first_port, service.ports) = (5000, 4)));
        let established = kind.connection(1, 1, 5000);
        case.opens(&established);
        case.request(&kind.connection(2, 1, 5001), Control::SYN);
        for (client_port, snat_port) in [(3, 5002), (4, 5003), (5, 5001)] {
            case.request(&kind.connection(client_port, 1, snat_port), Control::SYN);
            case.has_entries(4);
        }
        let last = kind.connection(6, 1, 5002);
        case.opens(&last);
        for client_port in [7, 8] {
            case.refuses_request(Reason::TableFull, &kind.connection(client_port, 1, 0), Control::SYN);
        }
        for connection in [established, last] {
            case.request(&connection, Control::ACK);
            case.reply(&connection, Control::ACK);
        }
    })
}

/// The same connection where clients are on the servers' interface.
const fn one_arm(connection: Connection) -> Connection {
    Connection { client: Side { interface: SERVERS, mac: connection.client.mac }, ..connection }
}

/// Writes a 16-bit number.
fn set(frame: &mut [u8], offset: usize, number: usize) {
    let number = u16::try_from(number).expect("a 16-bit number");
    frame[offset..][..2].copy_from_slice(&number.to_be_bytes());
}

/// A packet's transport checksum.
fn checksum(packet: &Packet) -> [u8; 2] {
    let frame = packet.frame();
    let offset = packet.checksum_offset();
    [frame[offset], frame[offset + 1]]
}

/// `packet` with a payload such that the checksum of what it becomes comes to zero.
fn with_zero_sum(packet: &Packet, becomes: impl Fn(&Packet) -> Packet) -> Packet {
    let mut packet = Packet { payload: vec![0, 0], ..packet.clone() };
    // Adding a checksum to what it is the checksum of makes the sum all ones, whose complement is zero.
    packet.payload = checksum(&becomes(&packet)).to_vec();
    packet
}

/// Frames that contradict themselves, made from a good one.
fn malformed(kind: Kind, packet: &Packet) -> Vec<Vec<u8>> {
    let good = packet.frame();
    let transport = packet.transport_offset();
    let announced = good.len() - ETHERNET;
    let with_byte = |offset: usize, byte: u8| {
        let mut frame = good.clone();
        frame[offset] = byte;
        frame
    };
    let with_number = |offset: usize, number: usize| {
        let mut frame = good.clone();
        set(&mut frame, offset, number);
        frame
    };
    let mut frames = match kind.ip {
        Ip::V4 => vec![
            with_byte(ETHERNET, 0x65),
            with_byte(ETHERNET, 0x05),
            with_byte(ETHERNET, 0x40),
            with_byte(ETHERNET, 0x44),
            // Longer than the packet.
            with_byte(ETHERNET, 0x4f),
            with_number(ETHERNET + 2, announced + 1),
            with_number(ETHERNET + 2, 0xffff),
            with_number(ETHERNET + 2, 19),
            with_number(ETHERNET + 2, 0),
        ],
        Ip::V6 => vec![
            with_byte(ETHERNET, 0x45),
            with_byte(ETHERNET, 0x00),
            with_number(ETHERNET + 4, announced - 40 + 1),
            with_number(ETHERNET + 4, 0xffff),
            with_number(ETHERNET + 4, 0),
        ],
    };
    if kind == Kind::UDP[0] {
        // A header too short, behind which the fields would look like a UDP header: the source port as its length.
        let lookalike = Packet { src: SocketAddr::new(packet.src.ip(), 8), ..packet.clone() };
        frames.push(with(&lookalike.frame(), ETHERNET, 0x44));
    }
    let payload = announced - (transport - ETHERNET);
    frames.extend(match kind.protocol {
        Protocol::Tcp => vec![
            with_byte(transport + 12, 0x00),
            with_byte(transport + 12, 0x40),
            // Longer than the segment.
            with_byte(transport + 12, 0xf0),
        ],
        Protocol::Udp => vec![
            with_number(transport + 4, 0),
            with_number(transport + 4, 7),
            with_number(transport + 4, payload + 1),
            with_number(transport + 4, 0xffff),
        ],
    });
    frames
}

/// Frames that are for no service, made from one that is, with what counts them.
fn foreign(request: &Packet) -> Vec<(Reason, Vec<u8>)> {
    let (to, from) = (request.to, request.from);
    let (vip, client) = (request.dst.ip(), request.src.ip());
    let elsewhere = |ip: IpAddr, port: u16| {
        (Reason::NoService, Packet { dst: SocketAddr::new(ip, port), ..request.clone() }.frame())
    };
    let protocol = if request.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
    let good = request.frame();
    let multicast = [0x33, 0x33, 0, 0, 0, 1];
    let mut frames = vec![
        elsewhere(vip, 22),
        elsewhere(vip, PORT + 1),
        elsewhere(vip, BACKEND_PORT),
        elsewhere(client, PORT),
        (Reason::NoService, Packet { protocol, ..request.clone() }.frame()),
        // More tags than are looked at.
        (Reason::NotIp, tagged(&good, &[(0x88a8, 100), (0x8100, 200), (0x8100, 200)])),
        // LLDP, EAPOL, spanning tree (a length in place of a type), an Ethernet header and no more.
        (Reason::NotIp, ethernet([1, 0x80, 0xc2, 0, 0, 0xe], from, 0x88cc, &[2, 7, 4])),
        (Reason::NotIp, ethernet(to, from, 0x888e, &[1, 1, 0, 0])),
        (Reason::NotIp, ethernet([1, 0x80, 0xc2, 0, 0, 0], from, 38, &[0x42, 0x42, 3, 0])),
        (Reason::NotIp, ethernet(to, from, 0x0806, &[])),
        // The other version's number in the Ethernet header.
        (
            Reason::Malformed,
            ethernet(to, from, if vip.is_ipv4() { 0x86dd } else { 0x0800 }, &good[ETHERNET..]),
        ),
    ];
    match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            let ip = || PacketBuilder::ethernet2(from, to).ipv4(client.octets(), vip.octets(), 64);
            let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
            arp.extend([&from[..], &client.octets(), &[0; 6], &vip.octets()].concat());
            frames.push((Reason::NotIp, ethernet([0xff; 6], from, 0x0806, &arp)));
            let mut ping = Vec::new();
            ip().icmpv4_echo_request(1, 2).write(&mut ping, b"ping").expect("a short packet");
            frames.push((Reason::OtherProtocol, ping));
            // GRE, ESP, SCTP, and the number that stands for IPv6's fragment header.
            frames.extend(
                [47, 50, 132, 44]
                    .map(|protocol| (Reason::OtherProtocol, with(&good, ETHERNET + 9, protocol))),
            );
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            let ip = |to| PacketBuilder::ethernet2(from, to).ipv6(client.octets(), vip.octets(), 255);
            let mut ping = Vec::new();
            ip(to).icmpv6_echo_request(1, 2).write(&mut ping, b"ping").expect("a short packet");
            frames.push((Reason::OtherProtocol, ping));
            let mut solicitation = Vec::new();
            let step = ip(multicast).icmpv6_raw(TYPE_NEIGHBOR_SOLICITATION, 0, [0; 4]);
            step.write(&mut solicitation, &vip.octets()).expect("a short packet");
            frames.push((Reason::OtherProtocol, solicitation));
            // ESP, authentication, none, mobility, and IPv4's ICMP.
            frames.extend(
                [50, 51, 59, 135, 1].map(|next| (Reason::OtherProtocol, with(&good, ETHERNET + 6, next))),
            );
        }
        (client, vip) => panic!("{client} and {vip} are of two families"),
    }
    frames
}

/// The frame with one byte changed.
fn with(frame: &[u8], offset: usize, byte: u8) -> Vec<u8> {
    let mut frame = frame.to_owned();
    frame[offset] = byte;
    frame
}
