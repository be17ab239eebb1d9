//! Next hops: the way to each backend, resolved before it is needed, kept fresh, and corrected when it changes.
//!
//! XDP cannot wait for ARP. So the kernel is asked, for each backend's address, which interface and gateway lead there
//! and which MAC address that neighbour has; where it does not know, it is made to find out, again and again. A way
//! that was known stays in use for a while after it is lost: neighbours are confirmed by questions that can go
//! unanswered, routes are replaced by being removed first, and connections are not to notice.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::{Hop, Tags};

use crate::{
    netlink::{Link, Neighbour, Netlink, Route},
    vlan,
};

/// How long a way that was known stays in use after it is lost.
const HOLD: Duration = Duration::from_secs(5);

/// How often the kernel is made to confirm a neighbour: it takes one for confirmed for 15 to 45 s
/// (`base_reachable_time_ms`), then goes on for 5 s (`delay_first_probe_time`) before it asks.
const CONFIRM: Duration = Duration::from_secs(10);

/// Between two looks at what is being resolved.
const POLL: Duration = Duration::from_millis(20);

/// Whom packets to a backend are handed to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Via {
    pub(crate) ifindex: u32,
    pub(crate) interface: String,
    pub(crate) neighbour: IpAddr,
    /// The interface that their frames pass: it, or of a VLAN's device the one below.
    pub(crate) frames: (u32, String),
}

/// How a backend is reached, as far as the kernel knows at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Known. `mtu`: the route's or the interface's. `fixed`: by configuration, so that there is nothing to confirm.
    Open { via: Via, hop: Hop, mtu: u32, fixed: bool },
    /// The neighbour has not answered yet.
    Asking { via: Via },
    /// None now; the reason.
    Closed(String),
    /// None ever; the reason.
    Never(String),
}

impl Way {
    const fn via(&self) -> Option<&Via> {
        match self {
            Self::Open { via, .. } | Self::Asking { via } => Some(via),
            Self::Closed(_) | Self::Never(_) => None,
        }
    }

    pub(crate) const fn hop(&self) -> Option<Hop> {
        match self {
            Self::Open { hop, .. } => Some(*hop),
            _ => None,
        }
    }

    /// The largest IP packet that it takes.
    pub(crate) const fn mtu(&self) -> Option<u32> {
        match self {
            Self::Open { mtu, .. } => Some(*mtu),
            _ => None,
        }
    }
}

/// What stands between the balancer and a backend at `ip`, for people; `None` if nothing does.
pub(crate) fn obstacle(ip: IpAddr, way: &Way) -> Option<String> {
    match way {
        Way::Open { .. } => None,
        Way::Asking { via } if via.neighbour == ip => {
            Some(format!("it does not answer {} on {}", question(ip), via.interface))
        }
        Way::Asking { via } => Some(format!(
            "its gateway {} does not answer {} on {}",
            via.neighbour,
            question(via.neighbour),
            via.interface
        )),
        Way::Closed(why) | Way::Never(why) => Some(why.clone()),
    }
}

const fn question(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "ARP",
        IpAddr::V6(_) => "neighbour discovery",
    }
}

/// Looks ways up. Interfaces are asked for once in its life, so it is made anew for each round.
#[derive(Debug)]
struct Scout<'a> {
    netlink: &'a Netlink,
    links: HashMap<u32, Option<Link>>,
}

impl<'a> Scout<'a> {
    fn new(netlink: &'a Netlink) -> Self {
        Self { netlink, links: HashMap::new() }
    }

    async fn way(&mut self, ip: IpAddr) -> anyhow::Result<Way> {
        let (ifindex, neighbour, route_mtu) = match self.netlink.route(ip).await? {
            Route::Through { ifindex, neighbour, mtu } => (ifindex, neighbour, mtu),
            Route::Local => return Ok(Way::Never("it is an address of this host itself".to_owned())),
            Route::NotOneHost => return Ok(Way::Never("it is not the address of one host".to_owned())),
            Route::None(why) => return Ok(Way::Closed(why)),
        };
        let Some(link) = self.link(ifindex).await? else {
            return Ok(Way::Closed("its route has no interface".to_owned()));
        };
        let Some(mac) = link.mac else {
            return Ok(Way::Never(format!("its route leaves through {}, which is not Ethernet", link.name)));
        };
        if !link.up {
            return Ok(Way::Closed(format!("its route leaves through {}, which is down", link.name)));
        }
        let mtu = route_mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        let (below, tags) = self.below(&link).await?;
        let Some(tags) = tags else {
            return Ok(Way::Never(format!(
                "its route leaves through {}, which has too many VLAN tags",
                link.name
            )));
        };
        let egress = below.index;
        let via = Via { ifindex, interface: link.name, neighbour, frames: (egress, below.name) };
        match self.netlink.neighbour(ifindex, neighbour).await? {
            Neighbour::Known { mac: dst, fixed } => {
                Ok(Way::Open { via, hop: Hop::new(dst, mac, egress).tagged(tags), mtu, fixed })
            }
            Neighbour::Unknown | Neighbour::Failed => Ok(Way::Asking { via }),
        }
    }

    /// The interface that an interface's frames pass, and the tags that they have there; `None` if those are too many.
    async fn below(&mut self, link: &Link) -> anyhow::Result<(Link, Option<Tags>)> {
        let (mut link, mut upwards) = (link.clone(), Vec::new());
        while let Some((below, tag)) = link.vlan {
            let Some(next) = self.link(below).await? else { break };
            upwards.push(tag);
            link = next;
        }
        Ok((link, vlan::tags(&upwards)))
    }

    async fn link(&mut self, index: u32) -> anyhow::Result<Option<Link>> {
        if let Some(link) = self.links.get(&index) {
            return Ok(link.clone());
        }
        let link = self.netlink.link_by_index(index).await?;
        self.links.insert(index, link.clone());
        Ok(link)
    }
}

/// The ways to all of `ips`, after waiting up to `patience` for neighbours to answer.
pub(crate) async fn resolve(
    netlink: &Netlink,
    ips: impl IntoIterator<Item = IpAddr>,
    patience: Duration,
) -> anyhow::Result<BTreeMap<IpAddr, Way>> {
    let deadline = Instant::now() + patience;
    let mut ways = BTreeMap::new();
    let mut open: HashSet<IpAddr> = ips.into_iter().collect();
    let mut asked = HashSet::new();
    loop {
        let mut scout = Scout::new(netlink);
        for ip in open.iter().copied().collect::<Vec<_>>() {
            let way = scout.way(ip).await?;
            match &way {
                Way::Asking { via } if asked.insert(via.clone()) => ask(netlink, via).await,
                Way::Asking { .. } => {}
                // A route that is missing now is not going to come in a second.
                Way::Open { .. } | Way::Closed(_) | Way::Never(_) => {
                    open.remove(&ip);
                }
            }
            ways.insert(ip, way);
        }
        if open.is_empty() || Instant::now() >= deadline {
            return Ok(ways);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// An interface may go while it is being asked on: then the next look says so.
async fn ask(netlink: &Netlink, via: &Via) {
    if let Err(error) = netlink.use_neighbour(via.ifindex, via.neighbour).await {
        log::debug!("{error:#}");
    }
}

/// What has happened in the kernel since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// To these neighbours, by interface.
    Of(HashSet<(u32, IpAddr)>),
    /// To routes or interfaces: any way may be another.
    OfAnything,
}

impl News {
    pub(crate) fn none() -> Self {
        Self::Of(HashSet::new())
    }

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::none()
    }

    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Of(mut neighbours), Self::Of(more)) => {
                neighbours.extend(more);
                Self::Of(neighbours)
            }
            _ => Self::OfAnything,
        }
    }

    fn touches(&self, watched: &Watched) -> bool {
        match self {
            Self::OfAnything => true,
            Self::Of(neighbours) => {
                watched.way.via().is_some_and(|via| neighbours.contains(&(via.ifindex, via.neighbour)))
            }
        }
    }
}

/// One backend address under watch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched {
    /// What the kernel said last.
    way: Way,
    /// What the data path is to use; the default is 'unknown'.
    hop: Hop,
    /// The MTU of that way; 0 while it was never known.
    mtu: u32,
    /// Since when the way in use is lost.
    lost: Option<Instant>,
    /// When the kernel was last made to ask or confirm.
    asked: Instant,
}

impl Watched {
    fn new(way: Way, now: Instant) -> Self {
        let mtu = way.mtu().unwrap_or_default();
        Self { hop: way.hop().unwrap_or_default(), mtu, way, lost: None, asked: now }
    }

    /// Takes note of what the kernel says now; whether the data path has to hear of it.
    fn learn(&mut self, way: Way, now: Instant) -> bool {
        let before = (self.hop, self.mtu);
        self.mtu = way.mtu().unwrap_or(self.mtu);
        match way.hop() {
            Some(hop) => {
                self.hop = hop;
                self.lost = None;
            }
            None if !self.hop.is_known() => {}
            None if now.duration_since(*self.lost.get_or_insert(now)) >= HOLD => self.hop = Hop::default(),
            None => {}
        }
        self.way = way;
        (self.hop, self.mtu) != before
    }

    const fn is_settled(&self) -> bool {
        matches!(self.way, Way::Open { .. })
    }

    /// Whether the kernel is to be made to ask, or to confirm.
    fn is_due(&self, now: Instant) -> bool {
        match self.way {
            Way::Open { fixed, .. } => !fixed && now.duration_since(self.asked) >= CONFIRM,
            Way::Asking { .. } => true,
            Way::Closed(_) | Way::Never(_) => false,
        }
    }
}

/// The ways to all backends, under watch.
#[derive(Debug)]
pub(crate) struct Watch {
    netlink: Netlink,
    watched: BTreeMap<IpAddr, Watched>,
}

impl Watch {
    /// Begins with ways that have just been looked up.
    pub(crate) fn new(netlink: Netlink, ways: BTreeMap<IpAddr, Way>) -> Self {
        let now = Instant::now();
        let watched = ways.into_iter().map(|(ip, way)| (ip, Watched::new(way, now))).collect();
        Self { netlink, watched }
    }

    /// Takes ways that the data path uses already for known: those that the kernel does not confirm now are kept in use
    /// for as long as any that is lost.
    #[must_use]
    pub(crate) fn holding(mut self, used: &HashMap<IpAddr, Hop>) -> Self {
        for (ip, watched) in &mut self.watched {
            if let Some(hop) = used.get(ip).filter(|_| !watched.hop.is_known()) {
                watched.hop = *hop;
            }
        }
        self
    }

    /// The way that the data path is to use to each address; the default for one that has been given up. Addresses
    /// that never had a way are left out: `lb backend add` may have just found it.
    pub(crate) fn hops(&self) -> HashMap<IpAddr, Hop> {
        let decided = |watched: &Watched| watched.hop.is_known() || watched.lost.is_some();
        self.watched
            .iter()
            .filter(|(_, watched)| decided(watched))
            .map(|(ip, watched)| (*ip, watched.hop))
            .collect()
    }

    /// The MTUs of the ways to all addresses; 0 where it is not known.
    pub(crate) fn mtus(&self) -> HashMap<IpAddr, u32> {
        self.watched.iter().map(|(ip, watched)| (*ip, watched.mtu)).collect()
    }

    /// Whom it asks.
    pub(crate) const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Watches exactly `ips` from now on.
    pub(crate) async fn follow(&mut self, ips: HashSet<IpAddr>) -> anyhow::Result<()> {
        self.watched.retain(|ip, _| ips.contains(ip));
        let now = Instant::now();
        let mut scout = Scout::new(&self.netlink);
        for ip in ips {
            if let Entry::Vacant(place) = self.watched.entry(ip) {
                place.insert(Watched::new(scout.way(ip).await?, now));
            }
        }
        self.ask_due().await;
        Ok(())
    }

    /// Looks again at what the news are about. Says whether the data path has to hear of something.
    pub(crate) async fn look_at(&mut self, news: &News) -> anyhow::Result<bool> {
        self.look(|watched| news.touches(watched)).await
    }

    /// Looks again at ways that are not known, and has the kernel ask and confirm; to be called every second. Says
    /// whether the data path has to hear of something.
    pub(crate) async fn tend(&mut self) -> anyhow::Result<bool> {
        let changed = self.look(|watched| !watched.is_settled()).await?;
        self.ask_due().await;
        Ok(changed)
    }

    async fn look(&mut self, at: impl Fn(&Watched) -> bool) -> anyhow::Result<bool> {
        let now = Instant::now();
        let mut scout = Scout::new(&self.netlink);
        let mut changed = false;
        for (ip, watched) in self.watched.iter_mut().filter(|(_, watched)| at(watched)) {
            let way = scout.way(*ip).await?;
            if watched.learn(way, now) {
                changed = true;
                tell(*ip, watched);
            }
        }
        Ok(changed)
    }

    async fn ask_due(&mut self) {
        let now = Instant::now();
        let mut asked = HashSet::new();
        for watched in self.watched.values_mut().filter(|watched| watched.is_due(now)) {
            watched.asked = now;
            // Backends behind one gateway share it.
            if let Some(via) = watched.way.via()
                && asked.insert(via.clone())
            {
                ask(&self.netlink, via).await;
            }
        }
    }
}

fn tell(ip: IpAddr, watched: &Watched) {
    match (&watched.way, obstacle(ip, &watched.way)) {
        (Way::Open { via, hop, mtu, .. }, _) => {
            let (mac, interface) = (mac_text(hop.dst()), &via.interface);
            log::info!("backend {ip} is reached at {mac} through {interface} with MTU {mtu}");
        }
        (_, why) => log::warn!("backend {ip} cannot be reached any more: {}", why.unwrap_or_default()),
    }
}

/// `02:00:00:00:00:01`
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via() -> Via {
        let name = "eth0".to_owned();
        Via { ifindex: 3, interface: name.clone(), neighbour: IpAddr::from([10, 0, 0, 1]), frames: (3, name) }
    }

    fn open(last: u8) -> Way {
        let hop = Hop::new([2, 0, 0, 0, 0, last], [2; 6], 3);
        Way::Open { via: via(), hop, mtu: 1500, fixed: false }
    }

    fn asking() -> Way {
        Way::Asking { via: via() }
    }

    #[test]
    fn a_new_way_is_taken_at_once() {
        let now = Instant::now();
        let mut watched = Watched::new(asking(), now);
        assert!(!watched.hop.is_known());
        assert!(watched.learn(open(1), now));
        assert!(!watched.learn(open(1), now), "nothing new");
        assert!(watched.learn(open(2), now));
        assert_eq!(watched.hop.dst()[5], 2);
    }

    #[test]
    fn another_mtu_is_told_and_outlives_the_way() {
        let now = Instant::now();
        let mut watched = Watched::new(open(1), now);
        let Way::Open { via, hop, fixed, .. } = open(1) else { unreachable!() };
        assert!(watched.learn(Way::Open { via, hop, mtu: 1400, fixed }, now));
        watched.learn(asking(), now);
        assert_eq!(watched.mtu, 1400);
    }

    #[test]
    fn a_lost_way_is_kept_for_a_while_and_then_given_up() {
        let start = Instant::now();
        let mut watched = Watched::new(open(1), start);
        assert!(!watched.learn(asking(), start));
        assert!(!watched.learn(Way::Closed("no route".to_owned()), start + HOLD / 2));
        assert!(watched.hop.is_known());
        assert!(watched.learn(asking(), start + HOLD));
        assert!(!watched.hop.is_known());
        assert!(!watched.learn(asking(), start + 2 * HOLD), "it is told once");
    }

    #[test]
    fn a_way_that_comes_back_in_time_was_never_away() {
        let start = Instant::now();
        let mut watched = Watched::new(open(1), start);
        watched.learn(asking(), start);
        assert!(!watched.learn(open(1), start + HOLD / 2));
        assert!(!watched.learn(asking(), start + HOLD), "the time counts from the new loss");
        assert!(watched.hop.is_known());
    }

    #[test]
    fn the_kernel_confirms_what_it_learned_and_is_not_asked_about_what_is_fixed() {
        let start = Instant::now();
        let later = start + CONFIRM;
        assert!(!Watched::new(open(1), start).is_due(start));
        assert!(Watched::new(open(1), start).is_due(later));
        assert!(Watched::new(asking(), start).is_due(start));
        assert!(!Watched::new(Way::Closed(String::new()), start).is_due(later));
        let Way::Open { via, hop, mtu, .. } = open(1) else { unreachable!() };
        assert!(!Watched::new(Way::Open { via, hop, mtu, fixed: true }, start).is_due(later));
    }

    #[test]
    fn news_touch_the_ways_through_that_neighbour() {
        let watched = Watched::new(open(1), Instant::now());
        assert!(News::OfAnything.touches(&watched));
        assert!(News::Of(HashSet::from([(3, IpAddr::from([10, 0, 0, 1]))])).touches(&watched));
        assert!(!News::Of(HashSet::from([(4, IpAddr::from([10, 0, 0, 1]))])).touches(&watched));
        assert!(!News::none().touches(&watched));
    }

    #[test]
    fn an_obstacle_names_who_does_not_answer_and_where() {
        let gateway = IpAddr::from([10, 0, 0, 1]);
        let backend = IpAddr::from([192, 168, 1, 1]);
        assert_eq!(obstacle(gateway, &asking()).unwrap(), "it does not answer ARP on eth0");
        assert_eq!(obstacle(backend, &asking()).unwrap(), "its gateway 10.0.0.1 does not answer ARP on eth0");
        assert_eq!(obstacle(backend, &open(1)), None);
    }
}
