//! Which backend a new connection goes to.

use lb_common::Reason;

use crate::tables::Tables;

/// Index of the backend whose turn it is.
///
/// # Errors
///
/// [`Reason::NoBackend`] for a service without any; [`Reason::NoNextHop`] while the way to it is not known, so that
/// the client's next attempt goes to the next one.
#[inline(never)]
pub fn select<M: Tables>(tables: M, service: u32) -> Result<u32, Reason> {
    // Read once: offset and length are of one table, even while another is being published.
    let table = tables.service(service).ok_or(Reason::NoService)?.table;
    if table.is_empty() {
        return Err(Reason::NoBackend);
    }
    let backend = tables.slot(table.slot(tables.take_turn(service))).ok_or(Reason::NoBackend)?;
    let hop = tables.next_hop(backend).ok_or(Reason::NoBackend)?;
    if hop.is_known() { Ok(backend) } else { Err(Reason::NoNextHop) }
}
