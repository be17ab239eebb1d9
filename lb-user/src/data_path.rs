//! The data path of `lb run`: the program on its interfaces over maps that are filled. It begins with empty tables, or
//! goes on with those of one that is pinned.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
    process,
    time::{Duration, Instant},
};

use anyhow::bail;
use aya::programs::links::FdLink;
use lb_common::{Hop, Interface, Meta};
use tokio::time::sleep;

use crate::{
    adopt::{self, Found},
    apply::{self, apply},
    detach, edit,
    links::{self, Pinned},
    lock::{self, Lock},
    maps::Maps,
    mtu,
    neighbour::{self, Watch, Way},
    netlink::{Link, Netlink},
    pins::{self, Undo},
    plan::State,
    program::{self, Mode, ModeChoice, Program, SendBack},
    serve::{Order, backend_ips, seconds_since_1970},
    vlan, xdp_features,
};

/// How long to wait for next hops before attaching.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the program of a process that has just been killed may take to go.
const GOING: Duration = Duration::from_secs(1);

/// Between two attempts at the lock for edits, and two looks at a program that is going.
const RETRY: Duration = Duration::from_millis(5);

/// What has been looked up for a start.
struct Prepared {
    netlink: Netlink,
    interfaces: Vec<Link>,
    send_back: SendBack,
}

/// A data path that forwards.
pub(crate) struct DataPath {
    pub(crate) links: Vec<Attached>,
    pub(crate) program: Program,
    pub(crate) maps: Maps,
    pub(crate) ways: BTreeMap<IpAddr, Way>,
    pub(crate) watch: Watch,
    pub(crate) undo: Option<Undo>,
    pub(crate) daemon: Lock,
}

/// An interface with the program on it.
pub(crate) struct Attached {
    pub(crate) link: Link,
    pub(crate) fd: FdLink,
    pub(crate) mode: Mode,
}

impl DataPath {
    /// Checks everything before it touches anything, and undoes everything if one step fails. With it comes the lock for
    /// edits.
    pub(crate) async fn set_up(order: &Order, netlink: &Netlink) -> anyhow::Result<(Self, Lock)> {
        let dir = &order.dir;
        let mut interfaces = find_interfaces(netlink, &order.interfaces).await?;
        edit::refuse_impossible(&neighbour::resolve(netlink, order.backend_ips(), Duration::ZERO).await?)?;
        refuse_second(order)?;
        let held: Vec<u32> = links::pinned(dir)?.into_iter().flatten().map(|link| link.index).collect();
        let free = |link: &&Link| !held.contains(&link.index);
        for link in interfaces.iter_mut().filter(|link| !held.contains(&link.index)) {
            wait_until_gone(netlink, link).await?;
        }
        interfaces.iter().filter(free).try_for_each(program::check_free)?;
        let send_back = send_back(netlink, &interfaces).await;
        let prepared = Prepared { netlink: netlink.clone(), interfaces, send_back };

        pins::prepare(dir)?;
        let edit = lock_edits(dir).await?;
        let data_path = match Found::at(dir)? {
            Some(found) => Self::adopt(order, prepared, found).await?,
            None => Self::begin(order, prepared).await?,
        };
        Ok((data_path, edit))
    }

    /// Begins with empty tables. The caller holds the lock for edits.
    async fn begin(order: &Order, prepared: Prepared) -> anyhow::Result<Self> {
        let Prepared { netlink, interfaces, send_back } = prepared;
        let dir = &order.dir;
        let Some(daemon) = lock::daemon(dir)? else { return Err(already_runs(dir)) };
        let undo = Undo::of(dir);
        if pins::present(dir) {
            log::info!("removing what a killed lb run left at {}", dir.display());
        }
        pins::remove_program(dir)?;
        pins::remove_maps(dir)?;

        let meta = order.meta();
        let mut program = Program::load(dir, &meta, order.log_level, send_back)?;
        let mut maps = Maps::begin(dir, meta)?;
        maps.scatter_cursors()?;
        let ways = neighbour::resolve(&netlink, order.backend_ips(), PATIENCE).await?;
        apply(&mut maps, &order.plan(&edit::hops(&ways))?)?;
        program.join(&mut maps)?;
        let mut links = attach(&mut program, &mut maps, &interfaces, &interfaces, order.mode)?;
        vlan::publish(&mut maps, &vlan::all(&netlink).await?)?;
        mtu::publish(&mut maps, &edit::mtus(&ways), &mtus_of(&links))?;
        if order.persist {
            links::create(dir)?;
            links = pin(&mut program, links, &interfaces, dir)?;
        }
        let watch = Watch::new(netlink, ways.clone());
        Ok(Self { links, program, maps, ways, watch, undo: Some(undo), daemon })
    }

    /// Goes on with a data path that runs, under a program of its own. Until it relieves who has it, nothing changes.
    /// The caller holds the lock for edits.
    async fn adopt(order: &Order, prepared: Prepared, found: Found) -> anyhow::Result<Self> {
        let Prepared { netlink, interfaces, send_back } = prepared;
        let dir = &order.dir;
        found.check(order, &interfaces, &netlink).await?;
        let modes = found.modes()?;
        let Found { mut maps, links: pinned } = found;
        let kept = interfaces.iter().filter(|link| modes.get(&link.index) == Some(&Mode::Native));
        for link in kept {
            if !takes(link, &interfaces) {
                bail!("{}; or begin anew with --mode generic, after `lb detach`", deaf(link));
            }
        }
        let mut program = Program::load(dir, &maps.meta()?, order.log_level, send_back)?;
        if apply::repair(&mut maps)? {
            log::info!("an edit that was killed has been repaired");
        }
        let state = maps.state()?;
        let ways = neighbour::resolve(&netlink, backend_ips(&state), PATIENCE).await?;
        let daemon = relieve(order)?;

        program.join(&mut maps)?;
        let (mut links, dropped) = take_over(&mut program, &interfaces, pinned, &modes)?;
        let new: Vec<Link> = interfaces
            .iter()
            .filter(|link| links.iter().all(|attached| attached.link.index != link.index))
            .cloned()
            .collect();
        // One that redirects to the other is to have its mode.
        let only_generic = !links.is_empty() && links.iter().all(|attached| attached.mode == Mode::Generic);
        let choice = if only_generic { ModeChoice::Generic } else { order.mode };
        links.extend(attach(&mut program, &mut maps, &new, &interfaces, choice)?);
        for Pinned { index, .. } in dropped {
            links::unpin(dir, index)?;
        }
        for (index, _) in maps.interfaces()? {
            if links.iter().all(|attached| attached.link.index != index) {
                maps.remove_interface(index)?;
            }
        }
        let vlans = vlan::all(&netlink).await?;
        let watch = Watch::new(netlink, ways.clone()).holding(&hops_in_use(&maps, &state)?);
        publish_hops(&mut maps, &watch.hops())?;
        vlan::publish(&mut maps, &vlans)?;
        mtu::publish(&mut maps, &edit::mtus(&ways), &mtus_of(&links))?;
        maps.set_meta(Meta { pid: process::id(), since: seconds_since_1970(), ..maps.meta()? })?;
        let undo = if order.persist {
            links = pin(&mut program, links, &new, dir)?;
            None
        } else {
            // From here on all of it goes with this process.
            links::unpin_all(dir)?;
            pins::remove_program(dir)?;
            Some(Undo::of(dir))
        };

        for difference in adopt::differences(order, &state) {
            log::warn!("what runs goes on as it is, and has not got {difference} adds it");
        }
        Ok(Self { links, program, maps, ways, watch, undo, daemon })
    }
}

async fn find_interfaces(netlink: &Netlink, names: &[String]) -> anyhow::Result<Vec<Link>> {
    let mut links: Vec<Link> = Vec::new();
    for name in names {
        let Some(link) = netlink.link_by_name(name).await? else {
            bail!("there is no interface {name}: `ip link` lists those that there are");
        };
        if link.mac.is_none() {
            bail!("{name} is not an Ethernet interface: give one that clients or backends are behind");
        }
        if links.iter().any(|other| other.index == link.index) {
            bail!("interface {name} is given twice: name it once");
        }
        if !link.up {
            log::warn!("interface {name} is down: `ip link set {name} up`");
        }
        links.push(link);
    }
    Ok(links)
}

/// Waits a moment if an interface has a program that may be about to go.
async fn wait_until_gone(netlink: &Netlink, link: &mut Link) -> anyhow::Result<()> {
    let begin = Instant::now();
    while program::may_be_going(link) && begin.elapsed() < GOING {
        sleep(RETRY).await;
        if let Some(present) = netlink.link_by_index(link.index).await? {
            *link = present;
        }
    }
    Ok(())
}

/// Refuses to be the second daemon, unless the data path can be had without a gap.
fn refuse_second(order: &Order) -> anyhow::Result<()> {
    let dir = &order.dir;
    let can_relieve = order.persist && links::directory(dir).exists();
    if lock::daemon_lives(dir)? && !can_relieve { Err(already_runs(dir)) } else { Ok(()) }
}

/// Becomes the daemon of a data path that can be adopted, in the place of who may be it.
fn relieve(order: &Order) -> anyhow::Result<Lock> {
    refuse_second(order)?;
    if lock::daemon_lives(&order.dir)? {
        let pid = detach::stop(&order.dir)?;
        log::info!("relieved lb run (process {pid})");
    }
    lock::daemon(&order.dir)?.ok_or_else(|| already_runs(&order.dir))
}

fn already_runs(dir: &Path) -> anyhow::Error {
    let who = lock::daemon_process(dir).map_or_else(String::new, |pid| format!(" (process {pid})"));
    let other = if links::directory(dir).exists() {
        "give --persist to take over from it without a gap"
    } else {
        "give another --pin-dir"
    };
    anyhow::anyhow!(
        "lb run is already running at {}{who}: stop it with `lb detach`, or {other}",
        dir.display()
    )
}

/// Makes the pin directory, and waits for the right to edit what is pinned there.
async fn lock_edits(dir: &Path) -> anyhow::Result<Lock> {
    loop {
        pins::create(dir)?;
        if let Some(lock) = lock::try_edit(dir)? {
            return Ok(lock);
        }
        sleep(RETRY).await;
    }
}

/// Pins the program and its links to those interfaces.
fn pin(
    program: &mut Program,
    links: Vec<Attached>,
    interfaces: &[Link],
    dir: &Path,
) -> anyhow::Result<Vec<Attached>> {
    program.pin(dir)?;
    let is_new = |link: &Link| interfaces.iter().any(|interface| interface.index == link.index);
    links
        .into_iter()
        .map(|attached| {
            if !is_new(&attached.link) {
                return Ok(attached);
            }
            let fd = links::pin(dir, attached.link.index, attached.fd)?;
            Ok(Attached { fd, ..attached })
        })
        .collect()
}

/// Replaces the program of pinned links to these interfaces; those that hold it nowhere, or where it is not wanted any
/// more, are the second list.
fn take_over(
    program: &mut Program,
    interfaces: &[Link],
    pinned: Vec<Pinned>,
    modes: &BTreeMap<u32, Mode>,
) -> anyhow::Result<(Vec<Attached>, Vec<Pinned>)> {
    let (mut links, mut others) = (Vec::new(), Vec::new());
    for pinned in pinned {
        let wanted = interfaces.iter().find(|link| pinned.holds && link.index == pinned.index);
        match (wanted, modes.get(&pinned.index)) {
            (Some(link), Some(mode)) => {
                let fd = program.replace(pinned.link, link)?;
                links.push(Attached { link: link.clone(), fd, mode: *mode });
            }
            _ => others.push(pinned),
        }
    }
    Ok((links, others))
}

/// How to send frames back through these interfaces so that they arrive.
async fn send_back(netlink: &Netlink, interfaces: &[Link]) -> SendBack {
    for peer in interfaces.iter().filter_map(|link| link.peer) {
        if !netlink.has_program(peer).await {
            return SendBack::ByRedirect;
        }
    }
    SendBack::ByTx
}

/// Attaches to these interfaces, of all that the program is on, or to none: links that were made are dropped with the error.
fn attach(
    program: &mut Program,
    maps: &mut Maps,
    interfaces: &[Link],
    all: &[Link],
    choice: ModeChoice,
) -> anyhow::Result<Vec<Attached>> {
    let mut links = attach_in(program, interfaces, choice)?;
    if let Some(Attached { link, .. }) =
        links.iter().find(|attached| attached.mode == Mode::Native && !takes(&attached.link, all))
    {
        let why = deaf(link);
        if choice == ModeChoice::Native {
            bail!("{why}; or use --mode generic");
        }
        log::warn!(
            "{why}; using generic mode, which is slower, and in which more at once than an MTU does not pass: where senders are \
             behind a veth, `ethtool -K DEV tx off` there keeps uploads and downloads from stalling"
        );
        // Detached first: an interface has one mode at a time.
        links.clear();
        links = attach_in(program, interfaces, ModeChoice::Generic)?;
    }
    for Attached { link, mode, .. } in &links {
        let interface = Interface { since: seconds_since_1970(), mode: mode.number(), mtu: link.mtu };
        maps.add_interface(link.index, interface)?;
    }
    Ok(links)
}

fn attach_in(
    program: &mut Program,
    interfaces: &[Link],
    choice: ModeChoice,
) -> anyhow::Result<Vec<Attached>> {
    let attach = |link: &Link| {
        program.attach(link, choice).map(|(fd, mode)| Attached { link: link.clone(), fd, mode })
    };
    interfaces.iter().map(attach).collect()
}

/// Why an interface cannot be one of several in native mode.
fn deaf(link: &Link) -> String {
    let remedy = match link.peer {
        Some(_) => ": on the other end of this veth, set `ethtool -K DEV gro on`",
        None => "",
    };
    format!(
        "the driver of {} does not take packets that are redirected to it in native mode{remedy}",
        link.name
    )
}

pub(crate) fn mtus_of(links: &[Attached]) -> HashMap<u32, u32> {
    links.iter().map(|attached| (attached.link.index, attached.link.mtu)).collect()
}

/// Whether the driver takes the packets that will be redirected to it, if any will. A kernel that does not tell gets the
/// benefit of the doubt.
fn takes(link: &Link, interfaces: &[Link]) -> bool {
    let redirected_to = interfaces.len() > 1 || link.peer.is_some();
    !redirected_to || xdp_features::of(link.index).map_or(true, xdp_features::Features::transmits)
}

/// Writes the ways that backends are now reached by. The caller holds the lock for edits.
pub(crate) fn publish_hops(maps: &mut Maps, hops: &HashMap<IpAddr, Hop>) -> anyhow::Result<()> {
    for (index, backend) in maps.state()?.backends {
        if let Some(hop) = hops.get(&backend.addr.ip(backend.family))
            && maps.hop(index)? != *hop
        {
            maps.set_hop(index, *hop)?;
        }
    }
    Ok(())
}

/// The ways that the data path uses now, where it knows one.
fn hops_in_use(maps: &Maps, state: &State) -> anyhow::Result<HashMap<IpAddr, Hop>> {
    let mut hops = HashMap::new();
    for (index, backend) in &state.backends {
        let hop = maps.hop(*index)?;
        if hop.is_known() {
            hops.insert(backend.addr.ip(backend.family), hop);
        }
    }
    Ok(hops)
}
