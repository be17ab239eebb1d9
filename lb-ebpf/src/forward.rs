//! Where a packet leaves.

use lb_common::{Family, Hop, Reason, Side, Vlan};

use crate::{
    pair,
    parse::Packet,
    tables::{Flows, Tables},
};

/// The way that the packet takes: to its backend's next hop, or back to where the client's packets come from, which a
/// request keeps up to date.
///
/// # Errors
///
/// [`Reason::NoNextHop`] while the way is not known.
#[inline(always)]
pub fn hop<F: Family, M: Flows<F>>(tables: M, packet: &Packet<F>, flow: &M::Flow) -> Result<Hop, Reason> {
    if flow.side() == Side::Request && flow.client != packet.back {
        pair::relearn(tables, packet, flow);
    }
    way(tables, flow)
}

/// The same, if it is known and in no VLAN, and the client's packets still come from where `back` says.
#[inline(always)]
pub fn known_hop<F: Family, M: Flows<F>>(
    tables: M,
    flow: &M::Flow,
    back: impl FnOnce() -> Hop,
) -> Option<Hop> {
    if flow.side() == Side::Request && flow.client != back() {
        return None;
    }
    way(tables, flow).ok().filter(|hop| hop.tags.is_none())
}

/// The MTU of the way that the flow's packets take, if a packet of that length is larger: to a backend, that of the route; to
/// a client, that of its VLAN's device or of the interface. Nothing is known of what lies beyond.
#[inline(never)]
pub fn too_narrow<F: Family, M: Flows<F>>(tables: M, flow: &M::Flow, length: usize) -> Option<u16> {
    let mtu = if flow.side() == Side::Reply {
        client_mtu(tables, &flow.client)
    } else {
        tables.path_mtu(flow.backend())
    };
    // Larger than any packet is no limit, and 0 is not known.
    u16::try_from(mtu).ok().filter(|mtu| *mtu != 0 && length > usize::from(*mtu))
}

/// The MTU of the way to a client: of the device for its VLAN, else of the interface.
#[inline(always)]
fn client_mtu<M: Tables>(tables: M, client: &Hop) -> u32 {
    let vlan = Vlan { ifindex: client.ifindex, tags: client.tags };
    let of_vlan = if vlan.tags.is_none() { None } else { tables.vlan_mtu(&vlan) };
    of_vlan.unwrap_or_else(|| tables.interface_mtu(client.ifindex))
}

/// The way that packets of a flow take.
///
/// # Errors
///
/// [`Reason::NoNextHop`] while it is not known.
#[inline(always)]
pub fn way<F: Family, M: Flows<F>>(tables: M, flow: &M::Flow) -> Result<Hop, Reason> {
    if flow.side() == Side::Reply {
        return Ok(flow.client);
    }
    let hop = tables.next_hop(flow.backend()).ok_or(Reason::NoNextHop)?;
    if hop.is_known() { Ok(*hop) } else { Err(Reason::NoNextHop) }
}
