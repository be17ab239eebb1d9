//! `lb run`: set the balancer up or adopt one that goes on without its daemon, serve, and leave nothing behind, or with
//! `--persist` all that forwards.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    convert::Infallible,
    io::{self, Write as _},
    iter,
    net::IpAddr,
    path::PathBuf,
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use aya::programs::links::FdLink;
use aya_log::EbpfLogger;
use futures_util::{FutureExt as _, future::pending};
use lb_common::{Addr, Hop, LAYOUT_VERSION, Meta, Vlan};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

use crate::{
    apply,
    data_path::{Attached, DataPath, mtus_of, publish_hops},
    edit,
    events::Events,
    fragments::Fragments,
    host, links,
    lock::{self, Lock},
    maps::Maps,
    model::{MaxFlows, NewService, PortRange, SnatPool},
    mtu,
    neighbour::{News, Watch},
    netlink::{Link, Netlink},
    pins::{self, Undo},
    plan::{State, Step},
    program::{ModeChoice, Program},
    runtime, sweep, vlan,
};

/// How soon an edit is noticed.
const NOTICE: Duration = Duration::from_millis(200);

/// How often unknown next hops are asked for, and known ones looked after.
const TEND: Duration = Duration::from_secs(1);

/// How often everything is looked at without news: those can get lost when there are very many.
const REVIEW: Duration = Duration::from_secs(60);

/// News are gathered for this long, and for as many times as long as looking at the last ones took.
const GATHER: Duration = Duration::from_millis(5);
const GATHER_TIMES: u32 = 20;

/// How often messages of the XDP program are shown.
const FLUSH: Duration = Duration::from_millis(100);

/// Between two attempts at the lock for edits.
const RETRY: Duration = Duration::from_millis(5);

/// What `lb run` is to do.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) dir: PathBuf,
    pub(crate) interfaces: Vec<String>,
    pub(crate) services: Vec<NewService>,
    pub(crate) mode: ModeChoice,
    pub(crate) snat: SnatPool,
    /// `None`: the default, or what is there.
    pub(crate) ports: Option<PortRange>,
    /// `None`: the default, or what is there.
    pub(crate) max_flows: Option<MaxFlows>,
    pub(crate) persist: bool,
    /// What hashes of flows begin with: nobody else is to know it.
    pub(crate) secret: u64,
    pub(crate) log_level: log::LevelFilter,
}

impl Order {
    pub(crate) fn ports(&self) -> PortRange {
        self.ports.unwrap_or(PortRange::DEFAULT)
    }

    pub(crate) fn max_flows(&self) -> MaxFlows {
        self.max_flows.unwrap_or(MaxFlows::DEFAULT)
    }

    pub(crate) fn backend_ips(&self) -> BTreeSet<IpAddr> {
        self.services.iter().flat_map(NewService::backends).map(|backend| backend.ip()).collect()
    }

    /// The record of a balancer that begins with this order.
    pub(crate) fn meta(&self) -> Meta {
        let mut meta = Meta {
            layout_version: LAYOUT_VERSION,
            pid: process::id(),
            since: seconds_since_1970(),
            first_port: self.ports().first(),
            ports: self.ports().len(),
            secret: self.secret,
            flow_entries: self.max_flows().entries(),
            ..Meta::default()
        };
        let places = iter::zip(&mut meta.snat, &mut meta.snat_family);
        for ((addr, family), ip) in places.zip(self.snat.addresses()) {
            (*addr, *family) = Addr::new(*ip);
        }
        meta
    }

    pub(crate) fn plan(&self, hops: &HashMap<IpAddr, Hop>) -> anyhow::Result<Vec<Step>> {
        let mut state = State::new(self.meta());
        let mut steps = vec![Step::WriteMeta(state.meta)];
        for service in &self.services {
            steps.extend(state.add_service(service, hops)?);
        }
        Ok(steps)
    }
}

pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Sets up, serves until a signal comes, and cleans up.
pub(crate) fn run(order: &Order) -> anyhow::Result<()> {
    host::check_rights("lb run")?;
    host::check_kernel()?;
    pins::check(&order.dir)?;
    order.plan(&HashMap::new())?;
    warn_of_ephemeral_ports(order.ports());
    if host::in_own_mount_namespace() {
        log::warn!(
            "this process has a mount namespace of its own, as `ip netns exec` and containers make: `lb status` and \
             the rest work only in it; `nsenter --net=/run/netns/NAME` avoids that"
        );
    }
    runtime()?.block_on(async {
        let mut stop = Stop::listen()?;
        let balancer = tokio::select! {
            balancer = Running::start(order) => balancer?,
            () = stop.requested() => return Ok(()),
        };
        balancer.serve_until(&mut stop).await
    })
}

fn warn_of_ephemeral_ports(ports: PortRange) {
    if let Some(own) = host::ephemeral_ports()
        && own.overlaps(&ports)
    {
        log::warn!(
            "--snat-ports {ports} overlaps this host's own ephemeral ports {own}: connections of the host itself from \
             a SNAT address can be taken for a backend's replies"
        );
    }
}

/// The signals that end `lb run`. A terminal that is closed ends it too, as it should be ended.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// A balancer that is attached. Fields are dropped in their order: first the links, last the lock.
struct Running {
    links: Vec<(Link, FdLink)>,
    /// The program, and who takes its early fragments; taken out to serve.
    program: Option<(Program, Fragments)>,
    maps: Maps,
    watch: Watch,
    /// Of the interfaces in `links`.
    mtus: HashMap<u32, u32>,
    /// That the host has devices for.
    vlans: BTreeMap<Vlan, u32>,
    events: Events,
    log_level: log::LevelFilter,
    dir: PathBuf,
    /// What to do at the end; `None` if the data path is to go on.
    undo: Option<Undo>,
    _daemon: Lock,
}

impl Running {
    /// Checks everything before it touches anything, and undoes everything if one step fails.
    async fn start(order: &Order) -> anyhow::Result<Self> {
        let netlink = Netlink::connect()?;
        let mut events = Events::listen()?;
        // Edits and other starts wait until the balancer is there.
        let (data_path, _edit) = DataPath::set_up(order, &netlink).await?;
        // In the reverse of the order in which they are dropped if something fails yet.
        let DataPath { daemon, undo, watch, ways, maps, program, links } = data_path;
        let state = maps.state()?;
        let attached: Vec<u32> = links.iter().map(|attached| attached.link.index).collect();
        edit::warn_of_obstacles(&ways, &attached, true);
        edit::warn_if_foreign(&netlink, &own_ips(&state)).await?;
        let vlans = maps.vlans()?;
        vlan::warn_of_offload(&vlans, links.iter().map(|attached| &attached.link));
        events.know(links.iter().map(|attached| &attached.link));
        let modes = links.iter().map(|attached| (attached.link.index, attached.mode)).collect();
        let fragments = Fragments::open(&order.dir, modes)?;
        say_ready(&links, &state)?;
        let undo = match undo {
            Some(undo) if order.persist => {
                undo.keep();
                None
            }
            undo => undo,
        };
        Ok(Self {
            mtus: mtus_of(&links),
            vlans,
            links: links.into_iter().map(|Attached { link, fd, .. }| (link, fd)).collect(),
            program: Some((program, fragments)),
            maps,
            watch,
            events,
            log_level: order.log_level,
            dir: order.dir.clone(),
            undo,
            _daemon: daemon,
        })
    }

    async fn serve_until(mut self, stop: &mut Stop) -> anyhow::Result<()> {
        let sweeper = sweep::forever(Maps::open(&self.dir)?);
        let (mut program, fragments) = self.program.take().context("nobody serves twice")?;
        let logs = logs(&mut program, self.log_level)?;
        let served = tokio::select! {
            () = stop.requested() => Ok(()),
            result = self.control() => result.map(|never| match never {}),
            never = sweeper => match never {},
            result = logs => result.map(|never| match never {}),
            result = fragments.play_in(&program) => result.map(|never| match never {}),
        };
        let Some(undo) = self.undo else {
            log::info!("leaving the data path running");
            return served;
        };
        log::info!("detaching");
        drop(self.links);
        drop(program);
        undo.now().and(served)
    }

    /// Follows edits and the kernel's news.
    async fn control(&mut self) -> anyhow::Result<Infallible> {
        let mut notice = every(NOTICE);
        let mut tend = every(TEND);
        let mut review = every(REVIEW);
        let mut generation = self.maps.meta()?.generation;
        let mut news = News::none();
        let mut due = Instant::now();
        let mut cost = Duration::ZERO;
        loop {
            tokio::select! {
                first = self.events.next() => {
                    if news.is_none() {
                        due = (due + cost * GATHER_TIMES).max(Instant::now() + GATHER);
                    }
                    news = news.and(first);
                    while let Some(next) = self.events.next().now_or_never() {
                        news = news.and(next);
                    }
                    self.forget_lost_interfaces()?;
                }
                () = sleep_until(due), if !news.is_none() => {
                    let gathered = std::mem::replace(&mut news, News::none());
                    let begin = Instant::now();
                    let changed = self.look_at(&gathered).await;
                    self.publish_if(changed).await?;
                    (due, cost) = (Instant::now(), begin.elapsed());
                }
                _ = notice.tick() => {
                    self.repair()?;
                    let present = self.maps.meta()?.generation;
                    if present != generation {
                        generation = present;
                        self.note_own_addresses()?;
                        let ips = backend_ips(&self.maps.state()?);
                        // Also a new backend at an address that was watched before has to get its next hop.
                        let changed = self.watch.follow(ips).await.map(|()| true);
                        self.publish_if(changed).await?;
                    }
                }
                _ = tend.tick() => {
                    let changed = self.watch.tend().await;
                    self.publish_if(changed).await?;
                }
                _ = review.tick() => news = News::OfAnything,
            }
        }
    }

    /// Repairs what an edit left that was killed.
    fn repair(&mut self) -> anyhow::Result<()> {
        if self.maps.meta()?.edited != 0
            && let Some(_lock) = lock::try_edit(&self.dir)?
            && apply::repair(&mut self.maps)?
        {
            log::info!("an edit that was killed has been repaired");
        }
        Ok(())
    }

    /// An edit does that itself, unless it is killed just then.
    fn note_own_addresses(&mut self) -> anyhow::Result<()> {
        match lock::try_edit(&self.dir)? {
            Some(_lock) => apply::note_own_addresses(&mut self.maps),
            // Another edit is going on, which does it.
            None => Ok(()),
        }
    }

    /// A question to the kernel that goes wrong is asked again soon; the balancer goes on meanwhile.
    async fn publish_if(&mut self, changed: anyhow::Result<bool>) -> anyhow::Result<()> {
        match changed {
            Ok(false) => Ok(()),
            Ok(true) => self.publish().await,
            Err(error) => {
                log::warn!("{error:#}");
                Ok(())
            }
        }
    }

    /// Looks again at what the news are about. Says whether the data path has to hear of something.
    async fn look_at(&mut self, news: &News) -> anyhow::Result<bool> {
        let changed = self.watch.look_at(news).await?;
        if *news != News::OfAnything {
            return Ok(changed);
        }
        let indices = self.links.iter().map(|(link, _)| link.index);
        let mtus = mtu::of_interfaces(self.watch.netlink(), indices).await?;
        let vlans = vlan::all(self.watch.netlink()).await?;
        let others = mtus != self.mtus || vlans != self.vlans;
        (self.mtus, self.vlans) = (mtus, vlans);
        Ok(changed || others)
    }

    /// Writes next hops and MTUs that have changed.
    async fn publish(&mut self) -> anyhow::Result<()> {
        let hops = self.watch.hops();
        let _lock = loop {
            if let Some(lock) = lock::try_edit(&self.dir)? {
                break lock;
            }
            sleep(RETRY).await;
        };
        publish_hops(&mut self.maps, &hops)?;
        vlan::publish(&mut self.maps, &self.vlans)?;
        mtu::publish(&mut self.maps, &self.watch.mtus(), &self.mtus)
    }

    fn forget_lost_interfaces(&mut self) -> anyhow::Result<()> {
        for index in self.events.take_gone() {
            if let Some(place) = self.links.iter().position(|(link, _)| link.index == index) {
                let (link, _) = self.links.swap_remove(place);
                if self.undo.is_none() {
                    links::unpin(&self.dir, index)?;
                }
                self.maps.remove_interface(index)?;
                log::warn!(
                    "interface {} is gone, and lb is not attached to it any more: restart lb run when it is back",
                    link.name
                );
            }
        }
        Ok(())
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The addresses that packets of services are sent to: their own from clients, those for SNAT from backends.
fn own_ips(state: &State) -> BTreeSet<IpAddr> {
    state
        .services
        .values()
        .flat_map(|service| {
            let family = service.key.family;
            let snat = service.snat.iter().zip(0..service.snat_len).map(move |(addr, _)| addr.ip(family));
            iter::once(service.key.addr.ip(family)).chain(snat)
        })
        .collect()
}

pub(crate) fn backend_ips(state: &State) -> HashSet<IpAddr> {
    state.backends.values().map(|backend| backend.addr.ip(backend.family)).collect()
}

fn say_ready(links: &[Attached], state: &State) -> anyhow::Result<()> {
    let interfaces: Vec<_> =
        links.iter().map(|attached| format!("{} ({})", attached.link.name, attached.mode.name())).collect();
    let count = |number, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let mut stdout = io::stdout().lock();
    writeln!(
        stdout,
        "ready: attached to {}, {}, {}",
        interfaces.join(", "),
        count(state.services.len(), "service"),
        count(state.backends.len(), "backend")
    )
    .and_then(|()| stdout.flush())
    .context("cannot write to stdout")
}

/// Passes the program's messages on to the log, if any are wanted.
fn logs(
    program: &mut Program,
    level: log::LevelFilter,
) -> anyhow::Result<impl Future<Output = anyhow::Result<Infallible>> + use<>> {
    let logger = match level {
        log::LevelFilter::Off => None,
        _ => Some(EbpfLogger::init(program.ebpf_mut()).context("cannot read the XDP program's messages")?),
    };
    Ok(async move {
        let Some(mut logger) = logger else { return pending().await };
        loop {
            logger.flush();
            sleep(FLUSH).await;
        }
    })
}
