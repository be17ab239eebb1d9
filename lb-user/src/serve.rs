//! `lb run`: set the balancer up, serve, and leave nothing behind.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    convert::Infallible,
    io::{self, Write as _},
    iter,
    net::IpAddr,
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use aya::programs::links::FdLink;
use aya_log::EbpfLogger;
use futures_util::{FutureExt as _, future::pending};
use lb_common::{Addr, Interface, LAYOUT_VERSION, Meta};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

use crate::{
    apply::apply,
    edit,
    events::Events,
    host,
    lock::{self, Lock},
    maps::Maps,
    model::{MaxFlows, NewService, PortRange, SnatPool},
    mtu,
    neighbour::{self, News, Watch},
    netlink::{Link, Netlink},
    pins::{self, Undo},
    plan::{State, Step},
    program::{self, Mode, ModeChoice, Program, SendBack},
    runtime, sweep, xdp_features,
};

/// How long to wait for next hops before attaching.
const PATIENCE: Duration = Duration::from_secs(2);

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
    pub(crate) ports: PortRange,
    pub(crate) max_flows: MaxFlows,
    /// What hashes of flows begin with: nobody else is to know it.
    pub(crate) secret: u64,
    pub(crate) log_level: log::LevelFilter,
}

impl Order {
    fn backend_ips(&self) -> BTreeSet<IpAddr> {
        self.services.iter().flat_map(NewService::backends).map(|backend| backend.ip()).collect()
    }

    fn own_ips(&self) -> BTreeSet<IpAddr> {
        self.services.iter().flat_map(edit::addresses).chain(self.snat.addresses().iter().copied()).collect()
    }

    fn meta(&self) -> Meta {
        let mut meta = Meta {
            layout_version: LAYOUT_VERSION,
            pid: process::id(),
            since: seconds_since_1970(),
            first_port: self.ports.first(),
            ports: self.ports.len(),
            secret: self.secret,
            flow_entries: self.max_flows.entries(),
            ..Meta::default()
        };
        let places = iter::zip(&mut meta.snat, &mut meta.snat_family);
        for ((addr, family), ip) in places.zip(self.snat.addresses()) {
            (*addr, *family) = Addr::new(*ip);
        }
        meta
    }

    fn plan(&self, hops: &HashMap<IpAddr, lb_common::Hop>) -> anyhow::Result<Vec<Step>> {
        let mut state = State::new(self.meta());
        let mut steps = vec![Step::WriteMeta(state.meta)];
        for service in &self.services {
            steps.extend(state.add_service(service, hops)?);
        }
        Ok(steps)
    }
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Sets up, serves until a signal comes, and cleans up.
pub(crate) fn run(order: &Order) -> anyhow::Result<()> {
    host::check_rights("lb run")?;
    host::check_kernel()?;
    pins::check(&order.dir)?;
    order.plan(&HashMap::new())?;
    warn_of_ephemeral_ports(order.ports);
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

/// The signals that end `lb run`. A terminal that is closed ends it too: it leaves nothing behind.
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
    program: Program,
    maps: Maps,
    watch: Watch,
    /// Of the interfaces in `links`.
    mtus: HashMap<u32, u32>,
    events: Events,
    log_level: log::LevelFilter,
    dir: PathBuf,
    undo: Undo,
    _daemon: Lock,
}

impl Running {
    /// Checks everything before it touches anything, and undoes everything if one step fails.
    async fn start(order: &Order) -> anyhow::Result<Self> {
        let dir = &order.dir;
        let netlink = Netlink::connect()?;
        let mut events = Events::listen()?;
        let interfaces = find_interfaces(&netlink, &order.interfaces).await?;
        edit::refuse_impossible(&neighbour::resolve(&netlink, order.backend_ips(), Duration::ZERO).await?)?;
        refuse_second(dir)?;
        interfaces.iter().try_for_each(program::check_free)?;

        pins::prepare(dir)?;
        pins::create(dir)?;
        let Some(daemon) = lock::daemon(dir)? else { return Err(already_runs(dir)) };
        let undo = Undo::of(dir);
        // Edits wait until the balancer is there.
        let _edit = lock::edit(dir)?.with_context(|| format!("{} has gone", dir.display()))?;
        if pins::present(dir) {
            log::info!("removing what a killed lb run left at {}", dir.display());
        }
        pins::remove_maps(dir)?;

        let send_back = send_back(&netlink, &interfaces).await;
        let mut program = Program::load(dir, order.max_flows, order.secret, order.log_level, send_back)?;
        let mut maps = Maps::begin(dir, order.meta())?;
        maps.scatter_cursors()?;
        let ways = neighbour::resolve(&netlink, order.backend_ips(), PATIENCE).await?;
        apply(&mut maps, &order.plan(&edit::hops(&ways))?)?;
        let links = attach(&mut program, &mut maps, &interfaces, order.mode)?;
        let mtus = links.iter().map(|(link, _, _)| (link.index, link.mtu)).collect();
        mtu::publish(&mut maps, &edit::mtus(&ways), &mtus)?;

        let attached: Vec<u32> = links.iter().map(|(link, _, _)| link.index).collect();
        edit::warn_of_obstacles(&ways, &attached);
        edit::warn_if_foreign(&netlink, &order.own_ips()).await?;
        events.know(links.iter().map(|(link, _, _)| link));
        say_ready(order, &links)?;
        Ok(Self {
            links: links.into_iter().map(|(link, fd, _)| (link, fd)).collect(),
            program,
            maps,
            watch: Watch::new(netlink, ways),
            mtus,
            events,
            log_level: order.log_level,
            dir: dir.clone(),
            undo,
            _daemon: daemon,
        })
    }

    async fn serve_until(mut self, stop: &mut Stop) -> anyhow::Result<()> {
        let sweeper = sweep::forever(Maps::open(&self.dir)?);
        let logs = logs(&mut self.program, self.log_level)?;
        let served = tokio::select! {
            () = stop.requested() => Ok(()),
            result = self.control() => result.map(|never| match never {}),
            never = sweeper => match never {},
            result = logs => result.map(|never| match never {}),
        };
        log::info!("detaching");
        drop(self.links);
        drop(self.program);
        self.undo.now().and(served)
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
                    let present = self.maps.meta()?.generation;
                    if present != generation {
                        generation = present;
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
        let others = mtus != self.mtus;
        self.mtus = mtus;
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
        for (index, backend) in self.maps.state()?.backends {
            if let Some(hop) = hops.get(&backend.addr.ip(backend.family))
                && self.maps.hop(index)? != *hop
            {
                self.maps.set_hop(index, *hop)?;
            }
        }
        mtu::publish(&mut self.maps, &self.watch.mtus(), &self.mtus)
    }

    fn forget_lost_interfaces(&mut self) -> anyhow::Result<()> {
        for index in self.events.take_gone() {
            if let Some(place) = self.links.iter().position(|(link, _)| link.index == index) {
                let (link, _) = self.links.swap_remove(place);
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

fn backend_ips(state: &State) -> HashSet<IpAddr> {
    state.backends.values().map(|backend| backend.addr.ip(backend.family)).collect()
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

fn refuse_second(dir: &Path) -> anyhow::Result<()> {
    if lock::daemon_lives(dir)? { Err(already_runs(dir)) } else { Ok(()) }
}

fn already_runs(dir: &Path) -> anyhow::Error {
    let pid = Maps::open(dir).and_then(|maps| maps.meta()).map_or(0, |meta| meta.pid);
    let who = if pid == 0 { String::new() } else { format!(" (process {pid})") };
    anyhow::anyhow!(
        "lb run is already running at {}{who}: stop it with `lb detach`, or give another --pin-dir",
        dir.display()
    )
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

/// Attaches to all interfaces, or to none: links that were made are dropped with the error.
fn attach(
    program: &mut Program,
    maps: &mut Maps,
    interfaces: &[Link],
    choice: ModeChoice,
) -> anyhow::Result<Vec<(Link, FdLink, Mode)>> {
    let mut links = attach_in(program, interfaces, choice)?;
    if let Some(link) = links.iter().find(|(link, _, mode)| *mode == Mode::Native && !takes(link, interfaces))
    {
        let name = &link.0.name;
        let why = format!(
            "the driver of {name} does not take packets that are redirected to it in native mode{}",
            if link.0.peer.is_some() {
                ": on the other end of this veth, set `ethtool -K DEV gro on`"
            } else {
                ""
            }
        );
        if choice == ModeChoice::Native {
            bail!("{why}; or use --mode generic");
        }
        log::warn!("{why}; using generic mode, which is slower");
        // Detached first: an interface has one mode at a time.
        links.clear();
        links = attach_in(program, interfaces, ModeChoice::Generic)?;
    }
    for (link, _, mode) in &links {
        let interface = Interface { since: seconds_since_1970(), mode: mode.number(), mtu: link.mtu };
        maps.add_interface(link.index, interface)?;
    }
    Ok(links)
}

fn attach_in(
    program: &mut Program,
    interfaces: &[Link],
    choice: ModeChoice,
) -> anyhow::Result<Vec<(Link, FdLink, Mode)>> {
    let attach = |link: &Link| program.attach(link, choice).map(|(fd, mode)| (link.clone(), fd, mode));
    interfaces.iter().map(attach).collect()
}

/// Whether the driver takes the packets that will be redirected to it, if any will. A kernel that does not tell gets the
/// benefit of the doubt.
fn takes(link: &Link, interfaces: &[Link]) -> bool {
    let redirected_to = interfaces.len() > 1 || link.peer.is_some();
    !redirected_to || xdp_features::of(link.index).map_or(true, xdp_features::Features::transmits)
}

fn say_ready(order: &Order, links: &[(Link, FdLink, Mode)]) -> anyhow::Result<()> {
    let interfaces: Vec<_> =
        links.iter().map(|(link, _, mode)| format!("{} ({})", link.name, mode.name())).collect();
    let backends: usize = order.services.iter().map(|service| service.backends().len()).sum();
    let count = |number, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let mut stdout = io::stdout().lock();
    writeln!(
        stdout,
        "ready: attached to {}, {}, {}",
        interfaces.join(", "),
        count(order.services.len(), "service"),
        count(backends, "backend")
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
