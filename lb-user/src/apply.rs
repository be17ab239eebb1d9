//! Carries steps of a plan out on the maps.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    thread,
    time::Duration,
};

use lb_common::{Hop, Service};

use crate::{flows, maps::Maps, plan::Step, reset::Ending};

/// Far longer than one run of the XDP program takes, even on a CPU that is interrupted meanwhile.
const IN_FLIGHT: Duration = Duration::from_millis(10);

/// Carries the steps out in their order. The caller holds the lock for edits.
pub(crate) fn apply(maps: &mut Maps, steps: &[Step]) -> anyhow::Result<()> {
    steps.iter().try_for_each(|step| carry_out(maps, step))?;
    if steps.iter().any(|step| matches!(step, Step::WriteService { .. })) {
        note_own_addresses(maps)
    } else {
        Ok(())
    }
}

/// Tells the data path which addresses services have, and those for SNAT.
pub(crate) fn note_own_addresses(maps: &mut Maps) -> anyhow::Result<()> {
    let wanted: BTreeSet<_> = maps.state()?.services.values().flat_map(Service::own_addresses).collect();
    let present = maps.own_addresses()?;
    wanted.difference(&present).try_for_each(|address| maps.add_own_address(*address))?;
    present.difference(&wanted).try_for_each(|address| maps.remove_own_address(*address))
}

/// Completes or undoes an edit that was killed; says whether there was one. The caller holds the lock for edits.
pub(crate) fn repair(maps: &mut Maps) -> anyhow::Result<bool> {
    if maps.meta()?.edited == 0 {
        return Ok(false);
    }
    let mut state = maps.state()?;
    let mut open = HashMap::new();
    for (index, service) in &state.services {
        if maps.service_index(&service.key)? == Some(*index) {
            open.insert(service.key, *index);
        }
    }
    let steps = state.repair(|key| open.get(key).copied())?;
    apply(maps, &steps)?;
    Ok(true)
}

fn carry_out(maps: &mut Maps, step: &Step) -> anyhow::Result<()> {
    match step {
        Step::ResetBackend { index } => {
            maps.set_hop(*index, Hop::default())?;
            maps.set_path_mtu(*index, 0)?;
            maps.reset_backend_counters(*index)
        }
        Step::WriteHop { index, hop } => maps.set_hop(*index, *hop),
        Step::WriteBackend { index, backend } => maps.set_backend(*index, *backend),
        Step::WriteSlots { offset, backends } => {
            (*offset..).zip(backends).try_for_each(|(slot, backend)| maps.set_slot(slot, *backend))
        }
        Step::ResetTurns { index } => maps.reset_turns(*index),
        Step::WriteService { index, service } => maps.set_service(*index, service),
        Step::Open { key, index } => maps.open_service(key, *index),
        Step::Close { key } => maps.close_service(key),
        Step::Settle => {
            thread::sleep(IN_FLIGHT);
            Ok(())
        }
        Step::EndFlows { backends } => {
            let backends = HashSet::from_iter(backends.iter().copied());
            let ending = Ending::of(maps, &backends)?;
            flows::end(maps, &backends);
            ending.provoke()
        }
        Step::WriteMeta(meta) => maps.set_meta(*meta),
    }
}
