//! Pairs of flows: allocate a source port, insert both halves or none, and tell when a pair is over.

use lb_common::{
    Delta, Family, FlowEntry, FlowKey, Port, Ports, Reason, Seen, Service, Side, Tuple, flow::Shared,
    service::MAX_SNAT,
};

use crate::{
    parse::Packet,
    tables::{Flow, Flows, NotInserted},
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
#[inline(never)]
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
        service,
        born: tables.now(),
    };
    let source = tables.service(service).ok_or(Reason::NoService)?;
    insert_reply(tables, &source, target.cursor, &mut reply, request, &mut shared)?;
    match insert_half(tables, &packet.key, &reply.tuple, Side::Request, &shared) {
        Ok(()) => {
            tables.count_connection(backend);
            Ok(())
        }
        Err(why) => {
            tables.remove(&reply);
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
        if !find_port(tables, service, cursor, key) {
            continue;
        }
        // To a sum the reply's tuple is as good as its reverse, which requests become.
        shared.addresses = request.address_delta(&key.tuple);
        shared.ports = request.port_delta(&key.tuple);
        match insert_half(tables, key, request, Side::Reply, shared) {
            Ok(()) => return Ok(()),
            Err(NotInserted::Exists) => {}
            Err(NotInserted::Full) => return Err(Reason::TableFull),
        }
    }
    Err(Reason::PortsExhausted)
}

/// Fills in the next source that is free or whose pair is over; says whether there was one. Cursors go round, so that
/// such a pair is the one that has been over longest, and its backend the least likely to still hold it in TIME-WAIT.
#[inline(never)]
fn find_port<F: Family, M: Flows<F>>(
    tables: M,
    service: &Service,
    cursor: u32,
    key: &mut FlowKey<F>,
) -> bool {
    for _ in 0..PROBES {
        let Some((snat, snat_port)) = source::<F>(service, tables.take_port(cursor)) else { return false };
        key.tuple.dst = snat;
        key.tuple.ports = Ports::new(key.tuple.ports.src(), snat_port);
        match tables.flow(key) {
            None => return true,
            Some(flow) if flow.is_over() => break,
            Some(_) => {}
        }
    }
    tables.flow(key).is_none_or(|flow| flow.is_over() && remove(tables, key, &flow))
}

/// Inserts the half with that key, the other half's packets being those of `partner`.
// A function of its own, not for its callers' sake: an entry takes a fifth of the BPF stack, here only while needed.
#[inline(never)]
fn insert_half<F: Family, M: Flows<F>>(
    tables: M,
    key: &FlowKey<F>,
    partner: &Tuple<F>,
    side: Side,
    shared: &Shared,
) -> Result<(), NotInserted> {
    tables.insert(key, &FlowEntry::new(partner, side, shared))
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
pub fn makes_way<F: Family, M: Flows<F>>(tables: M, key: &FlowKey<F>, flow: &M::Flow) -> bool {
    let over = flow.side == Side::Request && flow.is_over();
    if over {
        // If another CPU removes it, that one inserts the new pair, or this one does: 'no overwrite' decides.
        let _removed = remove(tables, key, flow);
    }
    over
}

/// Removes the pair that is over and has that half; says whether this CPU did.
///
/// Elements are removed by key, and another CPU may have removed the pair and put a new one under the same key since this
/// one looked. So whoever removes first claims the reply's half, and then looks again.
#[inline(always)]
fn remove<F: Family, M: Flows<F>>(tables: M, key: &FlowKey<F>, flow: &M::Flow) -> bool {
    let partner_key = flow.partner(key.protocol);
    let reply_key = if flow.side == Side::Reply { key } else { &partner_key };
    let Some(reply) = tables.flow(reply_key) else { return false };
    if !reply.claim() {
        return false;
    }
    if !tables.flow(reply_key).is_some_and(|reply| reply.is_over()) {
        reply.release();
        return false;
    }
    tables.remove(key);
    tables.remove(&partner_key);
    true
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
