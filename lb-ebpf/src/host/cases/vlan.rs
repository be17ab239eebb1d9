//! VLANs: which frames are of one that the host is in, and what tags they leave with.

use std::{vec, vec::Vec};

use lb_common::{Protocol, Reason, Tag, Tags, Vlan};

use super::{
    CLIENT_PORT, CLIENTS, Case, Connection, FIRST, Kind, SERVERS, each, hop,
    icmp::{WHOLE, router, too_big},
    one_arm,
};
use crate::host::packet::{Control, ETHERNET, Packet, tagged};

/// Tag protocol identifier and tag control information of each tag, outermost first.
pub(super) type WireTags = &'static [(u16, u16)];

/// No tag, a customer's, a service provider's, and one in the other.
const EVERY: [WireTags; 4] = [&[], &[(0x8100, 100)], &[(0x88a8, 4094)], &[(0x88a8, 7), (0x8100, 100)]];

pub(in crate::host) fn tags(of: WireTags) -> Tags {
    of.iter().fold(Tags::NONE, |tags, (tpid, tci)| {
        let tag = Tag::new(*tci, *tpid == 0x88a8).expect("no test has a VLAN of number 0");
        tags.and(tag).expect("no test has three")
    })
}

impl Case {
    /// Puts all of an interface's neighbours into a VLAN.
    #[track_caller]
    fn in_vlan(&mut self, ifindex: u32, of: WireTags) {
        self.tags.insert(ifindex, of);
        self.edit(move |tables| {
            tables.add_vlan(Vlan { ifindex, tags: Tags::NONE }, 0);
            tables.add_vlan(Vlan { ifindex, tags: tags(of) }, 0);
            for (backend, hop) in (0..).zip(tables.next_hops()) {
                if hop.ifindex == ifindex {
                    tables.set_next_hop(backend, hop.tagged(tags(of)));
                }
            }
        });
    }

    /// Opens a connection of its own between clients and servers that are in those VLANs from now on.
    #[track_caller]
    fn opens_in(&mut self, (clients, servers): (WireTags, WireTags), kind: Kind, number: u16) -> Connection {
        self.in_vlan(CLIENTS, clients);
        self.in_vlan(SERVERS, servers);
        let connection = kind.connection(CLIENT_PORT + number, 1, FIRST + number);
        self.opens(&connection);
        connection
    }

    /// The frame with the tags of its interface.
    pub(super) fn tagged(&self, ifindex: u32, frame: &[u8]) -> Vec<u8> {
        match self.tags.get(&ifindex) {
            Some(tags) if frame.len() >= ETHERNET => tagged(frame, tags),
            _ => frame.to_vec(),
        }
    }
}

/// Clients and servers in every two VLANs.
fn every_two() -> impl Iterator<Item = (WireTags, WireTags)> {
    EVERY.into_iter().flat_map(|clients| EVERY.into_iter().map(move |servers| (clients, servers)))
}

rules! {
    /// From the first packet to the last, whatever tags they have come with.
    frames_get_the_tags_of_their_way(Kind::ALL, 1, kind, case) {
        for (port, vlans) in (0..).zip(every_two()) {
            let connection = case.opens_in(vlans, kind, port);
            case.request(&connection, Control::PSH | Control::ACK);
            case.reply(&connection, Control::PSH | Control::ACK);
            case.request_packet(&connection, &Packet { trailer: Vec::from([0; 6]), ..connection.request(Control::ACK) });
            case.closes(&connection);
        }
    }

    /// With what they say of priority.
    tags_are_kept_where_the_way_has_the_same(Kind::ALL, 1, kind, case) {
        let connection = one_arm(kind.connection(CLIENT_PORT, 1, FIRST));
        case.in_vlan(SERVERS, &[(0x8100, 100)]);
        case.opens(&connection);
        case.in_vlan(SERVERS, &[(0x88a8, 7), (0x8100, 100)]);
        let connection = Connection { snat: (kind.vip(), FIRST + 1).into(), ..connection };
        let connection = Connection { client_addr: (kind.client(1), CLIENT_PORT + 1).into(), ..connection };
        case.opens(&connection);
        case.tags.insert(SERVERS, &[(0x88a8, 0xa007), (0x8100, 0x7064)]);
        case.request(&connection, Control::ACK);
        case.reply(&connection, Control::ACK);
    }

    /// IEEE 802.1Q: a priority tag.
    a_priority_without_a_vlan_is_no_tag(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        for control in [Control::SYN, Control::ACK] {
            let request = connection.request(control);
            let becomes = connection.request_out(&request).frame();
            case.forwards(CLIENTS, tagged(&request.frame(), &[(0x8100, 0xe000)]), SERVERS, becomes);
            case.reply(&connection, Control::SYN | Control::ACK);
        }
        case.in_vlan(CLIENTS, &[(0x8100, 100)]);
        case.tags.remove(&CLIENTS);
        let request = connection.request(Control::ACK);
        let becomes = connection.request_out(&request).frame();
        case.forwards(CLIENTS, tagged(&request.frame(), &[(0x88a8, 0xe000), (0x8100, 100)]), SERVERS, becomes);
    }

    /// Both ways.
    icmp_errors_get_the_tags_of_their_way(Kind::ALL, 1, kind, case) {
        for (port, vlans) in (0..).zip(every_two()) {
            let connection = case.opens_in(vlans, kind, port);
            let (request, reply) = (connection.request(Control::ACK), connection.reply(Control::ACK));
            case.error_about_request(&connection, router(kind), too_big(kind), (&request, WHOLE));
            case.error_about_reply(&connection, kind.client(1), too_big(kind), (&reply, 8));
        }
    }

    /// 'Time exceeded', with their priority.
    answers_have_the_tags_of_what_they_answer(Kind::ALL, 1, kind, case) {
        for (port, vlans) in (0..).zip(every_two()) {
            let connection = case.opens_in(vlans, kind, port);
            case.says_time_exceeded(CLIENTS, &Packet { hops: 1, ..connection.request(Control::ACK) });
            case.says_time_exceeded(SERVERS, &Packet { hops: 1, ..connection.reply(Control::ACK) });
        }
        case.tags.insert(CLIENTS, &[(0x88a8, 0xa007), (0x8100, 0x7064)]);
        let connection = kind.connection(CLIENT_PORT + 12, 1, FIRST + 12);
        case.says_time_exceeded(CLIENTS, &Packet { hops: 1, ..connection.request(Control::ACK) });
    }

    /// Each of them.
    fragments_get_the_tags_of_their_way(Kind::ALL, 1, kind, case) {
        for (port, vlans) in (0..).zip(every_two()) {
            let connection = case.opens_in(vlans, kind, port);
            let request = Packet { payload: (0..101).collect(), ..connection.request(Control::ACK) };
            let (id, cuts) = (u32::from(port), [32, 72]);
            let becomes = connection.request_out(&request).fragments(id, &cuts);
            for (frame, becomes) in request.fragments(id, &cuts).into_iter().zip(becomes) {
                case.forwards(CLIENTS, frame, SERVERS, becomes);
            }
        }
    }

    /// With the MTU of the device for the client's VLAN, not with that of the interface below.
    what_is_larger_than_its_vlan_takes_is_answered(Kind::ALL, 1, kind, case) {
        const MTU: u8 = 8;
        case.in_vlan(CLIENTS, EVERY[3]);
        case.in_vlan(SERVERS, EVERY[1]);
        case.edit(|tables| {
            tables.set_interface_mtu(CLIENTS, 1500);
            tables.add_vlan(Vlan { ifindex: CLIENTS, tags: tags(EVERY[3]) }, 0x500 + u32::from(MTU));
        });
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        let reply = |more| {
            let reply = connection.reply(Control::ACK);
            let headers = reply.transport_offset() - ETHERNET + if kind.protocol == Protocol::Tcp { 20 } else { 8 };
            Packet { payload: vec![7; 0x500 + usize::from(MTU) - headers + more], ..reply }
        };
        case.reply_packet(&connection, &reply(0));
        case.says_too_big(SERVERS, &reply(1), MTU);
    }

    /// As into another network.
    the_way_to_the_client_follows_it_into_another_vlan(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.opens(&connection);
        for clients in EVERY.into_iter().rev() {
            case.in_vlan(CLIENTS, clients);
            case.request(&connection, Control::ACK);
            case.reply(&connection, Control::ACK);
        }
    }

    /// They are the network's business: requests go on with them, and replies go back with those of the client.
    where_the_host_has_no_vlans_tags_are_kept(Kind::ALL, 1, kind, case) {
        for (port, (clients, servers)) in (0..).zip(every_two()) {
            let connection = kind.connection(CLIENT_PORT + port, 1, FIRST + port);
            // With one arm as with two.
            let connection = if port % 2 == 0 { connection } else { one_arm(connection) };
            let (ingress, egress) = (connection.client.interface, connection.server.interface);
            for control in [Control::SYN, Control::ACK, Control::ACK] {
                let request = connection.request(control);
                let becomes = connection.request_out(&request).frame();
                case.forwards(ingress, tagged(&request.frame(), clients), egress, tagged(&becomes, clients));
                let reply = connection.reply(control | Control::ACK);
                let becomes = connection.reply_out(&reply).frame();
                case.forwards(egress, tagged(&reply.frame(), servers), ingress, tagged(&becomes, clients));
            }
        }
    }

    /// As the kernel has it: what is in another network is none of this host's business.
    frames_of_vlans_without_a_device_pass(Kind::ALL, 1, kind, case) {
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        case.in_vlan(CLIENTS, &[(0x8100, 100)]);
        case.in_vlan(SERVERS, &[(0x88a8, 7), (0x8100, 200)]);
        case.opens(&connection);
        case.tags.clear();
        let (request, reply) = (connection.request(Control::ACK).frame(), connection.reply(Control::ACK).frame());
        for tags in [
            &[(0x8100, 101)][..], &[(0x88a8, 100)], &[(0x8100, 0xfff)], &[(0x8100, 200)],
            &[(0x8100, 100), (0x8100, 100)], &[(0x88a8, 7), (0x8100, 200)],
        ] {
            case.refuses(Reason::OtherVlan, CLIENTS, tagged(&request, tags));
        }
        for tags in [&[(0x8100, 100)][..], &[(0x88a8, 7)], &[(0x8100, 7), (0x8100, 200)], &[(0x88a8, 7), (0x88a8, 200)]] {
            case.refuses(Reason::OtherVlan, SERVERS, tagged(&reply, tags));
        }
        case.refuses(Reason::NotIp, SERVERS, tagged(&reply, &[(0x88a8, 7), (0x8100, 200), (0x8100, 200)]));
    }

    /// Also behind the type that says that there is one.
    frames_cut_off_in_their_tags_pass(Kind::ALL, 1, kind, case) {
        case.edit(|tables| tables.add_vlan(Vlan { ifindex: CLIENTS, tags: tags(EVERY[3]) }, 0));
        case.edit(|tables| tables.set_next_hop(0, hop(1, SERVERS)));
        let connection = kind.connection(CLIENT_PORT, 1, FIRST);
        let frame = tagged(&connection.request(Control::SYN).frame(), EVERY[3]);
        for length in ETHERNET..ETHERNET + 8 {
            case.refuses(Reason::Malformed, CLIENTS, frame[..length].to_vec());
        }
    }
}
