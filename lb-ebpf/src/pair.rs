//! Pairs of flows: allocate a source port, insert both halves or none, and tell when a pair is over.

use lb_common::{
    Delta, Family, FlowKey, Port, Ports, Protocol, Reason, Seen, Service, Side, Tuple, flow::Shared,
    service::MAX_SNAT, table::NotInserted,
};

use crate::{
    parse::Packet,
    tables::{Flow, Flows},
};

/// Source ports that are looked at before a connection is refused: so many rounds of so many. They follow each other,
/// so that a refused client's next attempt looks at others. The verifier follows every one of them.
const ROUNDS: u32 = 4;
const PROBES: u32 = 16;
/// Ports behind one whose pair is half open that are preferred to it if they are free.
const AHEAD: u32 = 3;
/// Places of a full table that are looked at for a pair that gives way: of every ten pairs one is enough for nine of ten searches.
const SAMPLES: u32 = 32;

/// Inserts the pair for the packet's connection to `backend`, the reply's half first: the request's half, once it is
/// there, stands for the whole pair.
///
/// # Errors
///
/// [`Reason::PortsExhausted`] or [`Reason::TableFull`]; neither half is in the table then.
#[inline(always)]
pub fn insert<F: Family, M: Flows<F>>(
    tables: M,
    packet: &Packet<F>,
    service: u32,
    backend: u32,
) -> Result<(), Reason> {
    let target = tables.backend(backend).ok_or(Reason::NoBackend)?;
    let request = &packet.key.tuple;
    // Its destination, the source that the backend is to see, is filled in as ports are tried.
    let mut reply = packet.key.with(Tuple {
        src: F::narrow(&target.addr),
        dst: request.dst,
        ports: Ports::new(target.port, request.ports.dst()),
    });
    let mut shared = Shared {
        addresses: Delta::default(),
        ports: Delta::default(),
        client: packet.back,
        backend,
        now: tables.now(),
    };
    insert_reply(tables, service, target.cursor, &mut reply, request, &mut shared)?;
    match tables.insert(&packet.key, &reply.tuple, Side::Request, &shared) {
        Ok(()) => {
            tables.count_connection(backend);
            Ok(())
        }
        Err(why) => {
            // Nobody else removes what is not over, or takes its place.
            if let Some(flow) = tables.flow(&reply) {
                flow.remove();
            }
            match why {
                // Another CPU was first with a packet of this connection: its pair is as good.
                NotInserted::Exists => Ok(()),
                NotInserted::Full => Err(Reason::TableFull),
            }
        }
    }
}

/// Completes the reply's key with a source port by inserting its half under it; 'no overwrite' decides between CPUs.
#[inline(always)]
fn insert_reply<F: Family, M: Flows<F>>(
    tables: M,
    service: u32,
    cursor: u32,
    key: &mut FlowKey<F>,
    request: &Tuple<F>,
    shared: &mut Shared,
) -> Result<(), Reason> {
    if !tables.has_room() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "any number that no other first packet is likely to have"
        )]
        let number = F::digest(&request.src, &request.dst, request.ports.wire().into()) as u32;
        if !tables.make_room(number) {
            return Err(Reason::TableFull);
        }
    }
    for _ in 0..ROUNDS {
        match tables.find_port(service, cursor, key) {
            Found::Free => {}
            Found::Yielding if remove(tables, key, HALF_OPEN_TOO) => {}
            Found::Yielding | Found::Nothing => continue,
        }
        // To a sum the reply's tuple is as good as its reverse, which requests become.
        shared.addresses = request.address_delta(&key.tuple);
        shared.ports = request.port_delta(&key.tuple);
        match tables.insert(key, request, Side::Reply, shared) {
            Ok(()) => return Ok(()),
            Err(NotInserted::Exists) => {}
            Err(NotInserted::Full) => return Err(Reason::TableFull),
        }
    }
    Err(Reason::PortsExhausted)
}

/// What a search has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Found {
    /// Nothing, so far.
    Nothing,
    /// A port that is free.
    Free,
    /// One whose pair gives way.
    Yielding,
}

impl Found {
    /// From its number, as functions of the XDP program return it.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Nothing,
            1 => Self::Free,
            _ => Self::Yielding,
        }
    }
}

/// Fills in the next source that is free or whose pair gives way. Cursors go round: a pair that is over has been so longest, and its
/// backend is the least likely to still hold it in TIME-WAIT; one that is half open has waited longest, and if ports behind it are
/// not free either, it is a flood's, or is pushed out by one: each first packet takes one place of its own kind.
#[inline(always)]
pub fn find_port<F: Family, M: Flows<F>>(
    tables: M,
    service: u32,
    cursor: u32,
    key: &mut FlowKey<F>,
) -> Found {
    let Some(service) = tables.service(service) else { return Found::Nothing };
    for _ in 0..PROBES {
        let number = tables.take_port(cursor);
        let Some(flow) = flow_at(tables, &service, number, key) else {
            return if service.port_space() == 0 { Found::Nothing } else { Found::Free };
        };
        if flow.is_over() {
            return Found::Yielding;
        }
        if is_half_open(tables, &flow, key.protocol) {
            for ahead in 1..=AHEAD {
                if flow_at(tables, &service, number.wrapping_add(ahead), key).is_none() {
                    return Found::Free;
                }
            }
            let _same = flow_at(tables, &service, number, key);
            return Found::Yielding;
        }
    }
    Found::Nothing
}

/// Fills in that source; the flow that has it.
#[inline(always)]
fn flow_at<F: Family, M: Flows<F>>(
    tables: M,
    service: &Service,
    number: u32,
    key: &mut FlowKey<F>,
) -> Option<M::Flow> {
    let (snat, snat_port) = source::<F>(service, number)?;
    key.tuple.dst = snat;
    key.tuple.ports = Ports::new(key.tuple.ports.src(), snat_port);
    tables.flow(key)
}

/// Makes room in a full table: removes a pair that gives way, if there is one among some; which those are depends on `number`.
#[inline(always)]
pub fn make_room<F: Family, M: Flows<F>>(tables: M, number: u32) -> bool {
    for step in 0..SAMPLES {
        if let Some(key) = tables.sample(number.wrapping_add(step))
            && remove(tables, &key, HALF_OPEN_TOO)
        {
            return true;
        }
    }
    false
}

/// Whether a pair that is half open gives way, like one that is over.
const HALF_OPEN_TOO: bool = true;

/// Whether the pair that has that half is no connection yet: nothing has come back, or the client has not confirmed what has.
#[inline(always)]
fn is_half_open<F: Family, M: Flows<F>>(tables: M, flow: &M::Flow, protocol: u32) -> bool {
    // Without its other half, a pair is just being made.
    let Some(other) = tables.flow(&flow.partner(protocol)) else { return false };
    let (request, reply) =
        if flow.side() == Side::Request { (flow.seen, other.seen) } else { (other.seen, flow.seen) };
    let is_confirmed = request.has(Seen::ACK) || protocol != u32::from(Protocol::Tcp.number());
    !reply.has(Seen::PACKET) || !is_confirmed
}

/// The `number`-th of the service's source addresses and ports, going round.
#[inline(always)]
fn source<F: Family>(service: &Service, number: u32) -> Option<(F::Address, Port)> {
    let number = number.checked_rem(service.port_space())?;
    let ports = u32::from(service.ports);
    // The mask changes nothing; the verifier loses the bound of a quotient, and keeps that of a mask.
    let addr = service.snat.get(number.checked_div(ports)? as usize & (MAX_SNAT - 1))?;
    #[expect(clippy::cast_possible_truncation, reason = "smaller than `ports`, a u16")]
    let offset = number.checked_rem(ports)? as u16;
    Some((F::narrow(addr), Port::new(service.first_port.wrapping_add(offset))))
}

/// Whether a SYN on a known flow begins a new connection, in place of one that is over, which is removed. The new one
/// gets a source port of its own, for the backend may hold the old one in TIME-WAIT.
#[inline(never)]
pub fn makes_way<F: Family, M: Flows<F>>(tables: M, key: &FlowKey<F>) -> bool {
    let over = tables.flow(key).is_some_and(|flow| flow.side() == Side::Request && flow.is_over());
    if over {
        // If another CPU removes it, that one inserts the new pair, or this one does: 'no overwrite' decides.
        remove(tables, key, !HALF_OPEN_TOO);
    }
    over
}

/// Removes the pair that has that half, if it gives way; says whether this CPU has removed it or found none. The request's half
/// stands for the pair: who removes that one removes the other.
// Out of line, and so it looks again for what its callers have found.
#[inline(never)]
fn remove<F: Family, M: Flows<F>>(tables: M, key: &FlowKey<F>, half_open_too: bool) -> bool {
    let Some(flow) = tables.flow(key) else { return true };
    let gives_way = flow.is_over() || half_open_too && is_half_open(tables, &flow, key.protocol);
    if !gives_way {
        return false;
    }
    // The other half may be gone, and another pair's be under its key.
    let partner = tables.flow(&flow.partner(key.protocol)).filter(|half| half.is_answered_by(&key.tuple));
    match partner {
        Some(request) if flow.side() == Side::Reply => request.remove() && flow.remove(),
        Some(reply) => flow.remove() && reply.remove(),
        None => flow.remove(),
    }
}

/// Tells the other half that this direction has ended.
// Twice a connection.
#[inline(never)]
pub fn tell_end<F: Family, M: Flows<F>>(tables: M, key: &FlowKey<F>, flow: &M::Flow, end: Seen) {
    if let Some(partner) = tables.flow(&flow.partner(key.protocol)) {
        partner.set_partner_end(end);
    }
}

/// Writes the packet's sender down as the way to the client, in both halves.
// Rare: a client's router changed.
#[inline(never)]
pub fn relearn<F: Family, M: Flows<F>>(tables: M, packet: &Packet<F>, flow: &M::Flow) {
    flow.set_client(packet.back);
    if let Some(partner) = tables.flow(&flow.partner(packet.key.protocol)) {
        partner.set_client(packet.back);
    }
}

const _: () = assert!(MAX_SNAT.is_power_of_two(), "a mask bounds the index");
