//! Pairs of flows: allocate a source port, insert both halves or none, and tell when a pair is over.

use lb_common::{
    Delta, Family, FlowKey, Port, Ports, Reason, Seen, Service, Side, Tuple, flow::Shared, service::MAX_SNAT,
    table::NotInserted,
};

use crate::{
    parse::Packet,
    tables::{Flow, Flows},
};

/// Source ports that are looked at before a connection is refused: so many rounds of so many. They follow each other,
/// so that a refused client's next attempt looks at others. The verifier follows every one of them.
const ROUNDS: u32 = 4;
const PROBES: u32 = 16;

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
    let source = tables.service(service).ok_or(Reason::NoService)?;
    insert_reply(tables, &source, target.cursor, &mut reply, request, &mut shared)?;
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
    service: &Service,
    cursor: u32,
    key: &mut FlowKey<F>,
    request: &Tuple<F>,
    shared: &mut Shared,
) -> Result<(), Reason> {
    for _ in 0..ROUNDS {
        match find_port(tables, service, cursor, key) {
            Found::Free => {}
            Found::Over if remove(tables, key) => {}
            Found::Over | Found::Nothing => continue,
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

/// What a search for a source port has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Found {
    /// Nothing, so far.
    Nothing,
    /// One that is free.
    Free,
    /// One whose pair is over.
    Over,
}

/// Fills in the next source that is free or whose pair is over. Cursors go round, so that such a pair is the one that has
/// been over longest, and its backend the least likely to still hold it in TIME-WAIT.
#[inline(never)]
fn find_port<F: Family, M: Flows<F>>(
    tables: M,
    service: &Service,
    cursor: u32,
    key: &mut FlowKey<F>,
) -> Found {
    for _ in 0..PROBES {
        let Some((snat, snat_port)) = source::<F>(service, tables.take_port(cursor)) else { break };
        key.tuple.dst = snat;
        key.tuple.ports = Ports::new(key.tuple.ports.src(), snat_port);
        match tables.flow(key) {
            None => return Found::Free,
            Some(flow) if flow.is_over() => return Found::Over,
            Some(_) => {}
        }
    }
    Found::Nothing
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
        remove(tables, key);
    }
    over
}

/// Removes the pair that has that half, if it is over; says whether this CPU has removed it or found none. The request's half
/// stands for the pair: who removes that one removes the other.
// Out of line, and so it looks again for what its callers have found.
#[inline(never)]
fn remove<F: Family, M: Flows<F>>(tables: M, key: &FlowKey<F>) -> bool {
    let Some(flow) = tables.flow(key) else { return true };
    if !flow.is_over() {
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
