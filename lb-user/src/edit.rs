//! The editing commands: `lb service add|rm`, `lb backend add|set|drain|rm`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    iter,
    net::IpAddr,
    path::Path,
    time::Duration,
};

use anyhow::bail;
use lb_common::Hop;

use crate::{
    adopt,
    apply::apply,
    balancer::{Balancer, Keeper},
    model::{Endpoint, Invalid, NewService, ServiceAddress, SnatPool, Weight},
    mtu,
    neighbour::{self, Way},
    netlink::{Netlink, Route},
    plan::{State, Step},
    runtime,
};

/// How long `lb backend add` waits for a next hop to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// More than this is not listed one by one.
const MANY: usize = 8;

/// An edit of a balancer's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    AddService(NewService),
    RemoveService(ServiceAddress),
    AddBackend(ServiceAddress, Endpoint),
    SetWeight(ServiceAddress, Endpoint, Weight),
    DrainBackend(ServiceAddress, Endpoint),
    RemoveBackend(ServiceAddress, Endpoint),
}

impl Edit {
    fn plan(&self, state: &mut State, hops: &HashMap<IpAddr, Hop>) -> Result<Vec<Step>, Invalid> {
        match self {
            Self::AddService(new) => state.add_service(new, hops),
            Self::RemoveService(service) => state.remove_service(*service),
            Self::AddBackend(service, backend) => state.add_backend(*service, *backend, hops),
            Self::SetWeight(service, backend, weight) => state.set_weight(*service, *backend, *weight),
            Self::DrainBackend(service, backend) => state.drain_backend(*service, *backend),
            Self::RemoveBackend(service, backend) => state.remove_backend(*service, *backend),
        }
    }
}

/// Makes the edit on the balancer pinned in `dir`.
pub(crate) fn edit(dir: &Path, command: &str, edit: &Edit) -> anyhow::Result<()> {
    let balancer = Balancer::read(dir, command)?;
    // What cannot be is refused before anybody is asked for a next hop, which can take a second.
    edit.plan(&mut balancer.maps.state()?, &HashMap::new())?;
    let ways = explore(&balancer, edit)?;

    let (_lock, mut maps) = balancer.lock()?;
    // The state may have changed while the lock was somebody else's.
    let steps = edit.plan(&mut maps.state()?, &hops(&ways))?;
    apply(&mut maps, &steps)?;
    // `lb run` finds out too, if there is one.
    mtu::note(&mut maps, &mtus(&ways))
}

/// The ways to what the edit adds, with warnings for what is going to be in the way.
fn explore(balancer: &Balancer, edit: &Edit) -> anyhow::Result<BTreeMap<IpAddr, Way>> {
    match edit {
        Edit::AddService(new) => runtime()?.block_on(async {
            let netlink = Netlink::connect()?;
            if is_in_sight(balancer, &netlink).await? {
                warn_if_foreign(&netlink, &addresses(new)).await?;
            }
            Ok(BTreeMap::new())
        }),
        Edit::AddBackend(_, backend) => runtime()?.block_on(async {
            let netlink = Netlink::connect()?;
            if !is_in_sight(balancer, &netlink).await? {
                log::warn!(
                    "the next hop of backend {} is looked up only when lb run is back: this is another network namespace \
                     than that of the data path",
                    backend.ip()
                );
                return Ok(BTreeMap::new());
            }
            let ways = neighbour::resolve(&netlink, [backend.ip()], PATIENCE).await?;
            refuse_impossible(&ways)?;
            let kept = |index: &u32| balancer.keeper.keeps(*index);
            let attached: Vec<u32> =
                balancer.maps.interfaces()?.into_iter().map(|(index, _)| index).filter(kept).collect();
            warn_of_obstacles(&ways, &attached, matches!(balancer.keeper, Keeper::Daemon));
            Ok(ways)
        }),
        _ => Ok(BTreeMap::new()),
    }
}

/// Whether the network namespace of the data path is this process's. `lb run` has been joined there, if it lives.
async fn is_in_sight(balancer: &Balancer, netlink: &Netlink) -> anyhow::Result<bool> {
    match &balancer.keeper {
        Keeper::Links(links) => Ok(adopt::out_of_sight(links, netlink).await?.is_none()),
        Keeper::Daemon | Keeper::Nothing => Ok(true),
    }
}

/// The addresses that packets of a service are sent to: its own from clients, those for SNAT from backends.
pub(crate) fn addresses(new: &NewService) -> BTreeSet<IpAddr> {
    let snat = new.snat().map(SnatPool::addresses).unwrap_or_default();
    iter::once(new.address().ip()).chain(snat.iter().copied()).collect()
}

/// The ways that are known.
pub(crate) fn hops(ways: &BTreeMap<IpAddr, Way>) -> HashMap<IpAddr, Hop> {
    ways.iter().filter_map(|(ip, way)| Some((*ip, way.hop()?))).collect()
}

/// The MTUs of the ways that are known.
pub(crate) fn mtus(ways: &BTreeMap<IpAddr, Way>) -> HashMap<IpAddr, u32> {
    ways.iter().filter_map(|(ip, way)| Some((*ip, way.mtu()?))).collect()
}

/// Refuses backends that there can never be a way to.
///
/// # Errors
///
/// There is one.
pub(crate) fn refuse_impossible(ways: &BTreeMap<IpAddr, Way>) -> anyhow::Result<()> {
    for (ip, way) in ways {
        if let Way::Never(why) = way {
            bail!("{ip} cannot be a backend: {why}");
        }
    }
    Ok(())
}

/// Warns of backends that cannot be reached yet, or whose replies will not be seen. `tended`: by `lb run`, which lives.
pub(crate) fn warn_of_obstacles(ways: &BTreeMap<IpAddr, Way>, attached: &[u32], tended: bool) {
    let outlook = if tended { "lb run keeps trying" } else { "nobody tries again until lb run is back" };
    let mut warnings = Vec::new();
    for (ip, way) in ways {
        if let Some(why) = neighbour::obstacle(*ip, way) {
            warnings.push(format!("backend {ip} cannot be reached yet: {why}; {outlook}"));
        }
        if let Way::Open { via, .. } | Way::Asking { via } = way
            && ![via.ifindex, via.frames.0].iter().any(|index| attached.contains(index))
        {
            warnings.push(format!(
                "backend {ip} is reached through {}, to which lb is not attached: its replies are not translated; \
                 start lb run with --iface {} too",
                via.interface, via.frames.1
            ));
        }
    }
    let more = warnings.len().saturating_sub(MANY);
    warnings.iter().take(MANY).for_each(|warning| log::warn!("{warning}"));
    if more > 0 {
        log::warn!("and {more} more warnings about backends: see `lb status` for their next hops");
    }
}

/// Warns of addresses that are not this host's: unless somebody routes them here, no packet for them comes.
pub(crate) async fn warn_if_foreign(netlink: &Netlink, ips: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
    let mut foreign = Vec::new();
    for ip in ips {
        if netlink.route(*ip).await? != Route::Local {
            foreign.push(ip.to_string());
        }
    }
    let Some(first) = foreign.first().cloned() else { return Ok(()) };
    let length = if first.contains(':') { 128 } else { 32 };
    if foreign.len() > MANY {
        let more = foreign.len() - MANY;
        foreign.truncate(MANY);
        foreign.push(format!("and {more} more"));
    }
    log::warn!(
        "not addresses of this host: {}; packets for them come here only if a router sends them, \
         `ip addr add {first}/{length} dev IFACE` makes this host answer for one",
        foreign.join(", ")
    );
    Ok(())
}
