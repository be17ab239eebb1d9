//! Tables: the only way to state that outlives a packet. In the kernel they are maps, in tests plain collections.

use core::ops::Deref;

use lb_common::{
    Addr, Backend, Datagram, DatagramKey, Family, FlowEntry, FlowKey, Hop, Reason, Seen, Service, ServiceKey,
    Side, Tick, Tuple, Vlan, datagram::Piece, flow::Shared, table::NotInserted,
};

use crate::{
    connect,
    icmp::Icmp,
    pair::{self, Found},
    parse::{Networks, Packet},
};

/// What is shared by both families. Tables are handles: copying one copies nothing of what it holds.
pub trait Tables: Copy {
    /// A value in a table.
    type Ref<T: Copy + 'static>: Deref<Target = T>;

    /// The time.
    fn now(self) -> Tick;
    /// Index of the service that packets with that destination are for.
    fn service_index(self, key: &ServiceKey) -> Option<u32>;
    /// The service with that index.
    fn service(self, index: u32) -> Option<Self::Ref<Service>>;
    /// Index of the backend in that slot.
    fn slot(self, index: u32) -> Option<u32>;
    /// The backend with that index.
    fn backend(self, index: u32) -> Option<Self::Ref<Backend>>;
    /// The way to the backend with that index.
    fn next_hop(self, backend: u32) -> Option<Self::Ref<Hop>>;
    /// The smallest MTU of all ways out: what is not larger fits, whatever its way is.
    fn smallest_mtu(self) -> u32;
    /// The MTU on the way to the backend with that index; 0 while it is not known.
    fn path_mtu(self, backend: u32) -> u32;
    /// The MTU of that interface; 0 while it is not known.
    fn interface_mtu(self, ifindex: u32) -> u32;
    /// Whether what comes in through that interface meets the program in the network stack, not in the driver.
    fn is_generic(self, ifindex: u32) -> bool;
    /// The MTU of the host's device for that VLAN, 0 while unknown; `None` if it has none. Without tags, whether it has any for VLANs of
    /// that interface.
    fn vlan_mtu(self, vlan: &Vlan) -> Option<u32>;
    /// Calls [`Networks::of`], in the kernel a function of its own.
    #[inline(always)]
    fn networks_of(self, vlan: &Vlan) -> Networks {
        Networks::of(self, vlan)
    }
    /// How many connections the service has had before this one; no two callers get the same answer.
    fn take_turn(self, service: u32) -> u64;
    /// The next number in the sequence of SNAT ports at that cursor; no two callers get the same answer.
    fn take_port(self, cursor: u32) -> u32;
    /// How many answers this CPU has given in the tick `now` before this one.
    fn take_answer(self, now: Tick) -> u32;
    /// What became of the first fragment of that datagram, of which one more piece has come: with that.
    fn datagram(self, key: &DatagramKey, piece: Piece) -> Option<Datagram>;
    /// Notes what became of it.
    fn note_datagram(self, key: &DatagramKey, datagram: &Datagram);
    /// Forgets it: all fragments have come.
    fn forget_datagram(self, key: &DatagramKey);
    /// Whether that address, of the family with that number, is a service's or one for SNAT.
    fn is_own(self, addr: &Addr, family: u16) -> bool;
    /// Counts a verdict.
    fn count(self, reason: Reason);
    /// Counts a packet of `bytes` between a backend and its clients.
    fn count_traffic(self, backend: u32, side: Side, bytes: usize);
    /// Counts a new connection to a backend.
    fn count_connection(self, backend: u32);
}

/// The flow table of one family.
pub trait Flows<F: Family>: Tables {
    /// An entry in the table.
    type Flow: Flow<F>;

    /// The entry of packets with that key.
    fn flow(self, key: &FlowKey<F>) -> Option<Self::Flow>;
    /// The same as fast as can be, for the one look-up that every packet needs.
    #[inline(always)]
    fn likely_flow(self, key: &FlowKey<F>) -> Option<Self::Flow> {
        self.flow(key)
    }
    /// Whether there is room for two entries more.
    fn has_room(self) -> bool;
    /// Calls [`pair::find_port`]; there may be a cheaper way to do that than in line.
    #[inline(always)]
    fn find_port(self, service: u32, cursor: u32, key: &mut FlowKey<F>) -> Found {
        pair::find_port(self, service, cursor, key)
    }
    /// The key of the flow in some place of the table, if there is one; numbers that follow each other lead to places far apart.
    fn sample(self, number: u32) -> Option<FlowKey<F>>;
    /// Calls [`pair::make_room`]; likewise.
    #[inline(always)]
    fn make_room(self, number: u32) -> bool {
        pair::make_room(self, number)
    }
    /// Calls [`connect::connect`]; there may be a cheaper way to do that than in line.
    ///
    /// # Errors
    ///
    /// Those of the function.
    #[inline(always)]
    fn connect(self, packet: &Packet<F>) -> Result<(), Reason>
    where
        F: Icmp,
    {
        connect::connect(self, packet)
    }
    /// Adds an entry for packets with that key, never over an existing one; the rest is as [`FlowEntry::begin`] takes it.
    ///
    /// # Errors
    ///
    /// Says which of the two reasons there is for not adding it.
    fn insert(
        self,
        key: &FlowKey<F>,
        partner: &Tuple<F>,
        side: Side,
        shared: &Shared,
    ) -> Result<(), NotInserted>;
}

/// An entry in a flow table. Other CPUs may write it at any time, so that what is read is a scalar's latest value and
/// never a promise about two of them together.
pub trait Flow<F: Family>: Deref<Target = FlowEntry<F>> {
    /// Writes down what this direction has seen, and when.
    fn record(&self, seen: Seen, now: Tick);
    /// Writes down a new way to the client.
    fn set_client(&self, client: Hop);
    /// Writes down how the other direction has ended.
    fn set_partner_end(&self, end: Seen);
    /// Removes this entry, and never one that has come in its place; says whether this call did.
    fn remove(&self) -> bool;
}
