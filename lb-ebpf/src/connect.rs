//! A packet of no known flow: is it for a service, and may a connection begin with it?

use lb_common::{Family, Reason, ServiceKey};

use crate::{
    icmp::Icmp,
    pair,
    parse::Packet,
    select,
    tables::{Flows, Tables},
};

/// Makes the pair of flows that the packet belongs to. Nothing of the packet is changed, so that every error leaves
/// it as it came.
///
/// # Errors
///
/// The reason why there is no connection.
#[inline(always)]
pub fn connect<F: Icmp, M: Flows<F>>(tables: M, packet: &Packet<F>) -> Result<(), Reason> {
    let service = find_service(tables, packet)?;
    if !packet.opens() {
        return Err(Reason::Stray);
    }
    check_source::<F, M>(tables, &packet.key.tuple.src, service)?;
    packet.may_travel()?;
    let backend = select::select(tables, service)?;
    pair::insert(tables, packet, service, backend)
}

/// Index of the service that the packet is for.
// Out of line like what follows: each step has the stack for itself, of which BPF has 512 bytes.
#[inline(never)]
fn find_service<F: Family, M: Tables>(tables: M, packet: &Packet<F>) -> Result<u32, Reason> {
    let key = ServiceKey {
        addr: F::widen(packet.key.tuple.dst),
        port: packet.key.tuple.ports.dst(),
        protocol: packet.protocol.number(),
        family: F::NUMBER,
    };
    tables.service_index(&key).ok_or(Reason::NoService)
}

/// Whether a client of the service can have that address: a host can, and it is none of ours (RFC 1812 section 5.3.7).
///
/// # Errors
///
/// [`Reason::Martian`] if not.
#[inline(never)]
fn check_source<F: Icmp, M: Tables>(tables: M, source: &F::Address, service: u32) -> Result<(), Reason> {
    let service = tables.service(service).ok_or(Reason::NoService)?;
    // Places of the pool that are not used hold zeros, which are no host's address either.
    let ours = |addr| F::is_same(source, &F::narrow(addr));
    if !F::is_one_host(source) || ours(&service.key.addr) || service.snat.iter().any(ours) {
        return Err(Reason::Martian);
    }
    Ok(())
}
