//! Questions to the kernel's routing: links, routes, neighbours.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use lb_common::Tag;
use rtnetlink::{
    Error, Handle, RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{
            InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
            LinkXdp, VlanProtocol,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// `None` if it is not Ethernet.
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// The id of the XDP program attached.
    pub(crate) xdp: Option<u32>,
    /// The other end, if it is a veth.
    pub(crate) peer: Option<Peer>,
    /// Below what interface it is which VLAN, if it is a device for one.
    pub(crate) vlan: Option<(u32, Tag)>,
}

/// The other end of a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    index: u32,
    /// Its namespace, as this one numbers it; `None` if it is this one.
    namespace: Option<i32>,
}

/// Where packets to an address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Through an interface, to this neighbour. `mtu`: where the route has one of its own.
    Through { ifindex: u32, neighbour: IpAddr, mtu: Option<u32> },
    /// To this host itself.
    Local,
    /// To many hosts.
    NotOneHost,
    /// Nowhere; the kernel's words.
    None(String),
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// It has this address. `fixed`: by configuration, not by asking.
    Known { mac: Mac, fixed: bool },
    /// Being asked, or not asked for.
    Unknown,
    /// Asked for, and nobody answered.
    Failed,
}

/// A connection to the kernel; needs a running tokio runtime.
#[derive(Clone, Debug)]
pub(crate) struct Netlink(Handle);

impl Netlink {
    pub(crate) fn connect() -> anyhow::Result<Self> {
        let (connection, handle, _messages) =
            rtnetlink::new_connection().context("cannot talk to the kernel by netlink")?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The interface of that name, if there is one.
    pub(crate) async fn link_by_name(&self, name: &str) -> anyhow::Result<Option<Link>> {
        self.link(self.0.link().get().match_name(name))
            .await
            .with_context(|| format!("cannot look up interface {name}"))
    }

    /// The interface of that index, if there is one.
    pub(crate) async fn link_by_index(&self, index: u32) -> anyhow::Result<Option<Link>> {
        self.link(self.0.link().get().match_index(index))
            .await
            .with_context(|| format!("cannot look up interface {index}"))
    }

    /// All interfaces.
    pub(crate) async fn links(&self) -> anyhow::Result<Vec<Link>> {
        let links: Vec<_> =
            self.0.link().get().execute().try_collect().await.context("cannot list the interfaces")?;
        Ok(links.iter().map(read_link).collect())
    }

    /// Whether a veth's other end has an XDP program; no where it may not be asked.
    pub(crate) async fn has_program(&self, peer: Peer) -> bool {
        let mut request = self.0.link().get().match_index(peer.index);
        let namespace = peer.namespace.map(LinkAttribute::IfNetnsId);
        request.message_mut().attributes.extend(namespace);
        matches!(self.link(request).await, Ok(Some(Link { xdp: Some(_), .. })))
    }

    async fn link(&self, request: rtnetlink::LinkGetRequest) -> Result<Option<Link>, Error> {
        let mut links = Box::pin(request.execute());
        match links.try_next().await {
            Ok(message) => Ok(message.as_ref().map(read_link)),
            // EINVAL is the answer for names that no interface can have.
            Err(error) if matches!(errno(&error), Some(libc::ENODEV | libc::EINVAL | libc::ERANGE)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Where packets to `ip` go.
    pub(crate) async fn route(&self, ip: IpAddr) -> anyhow::Result<Route> {
        let message = match ip {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let mut routes = Box::pin(self.0.route().get(message).execute());
        match routes.try_next().await {
            Ok(Some(message)) => Ok(read_route(ip, &message)),
            Ok(None) => Ok(Route::None("no answer".to_owned())),
            Err(error) => match errno(&error) {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => Ok(Route::None("no route to it".to_owned())),
                Some(libc::EINVAL) => Ok(Route::None("its route is a blackhole".to_owned())),
                Some(libc::EACCES) => Ok(Route::None("its route says prohibit".to_owned())),
                _ => Err(error).with_context(|| format!("cannot look up the route to {ip}")),
            },
        }
    }

    /// What the kernel knows of that neighbour.
    pub(crate) async fn neighbour(&self, ifindex: u32, ip: IpAddr) -> anyhow::Result<Neighbour> {
        let mut request =
            NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(neighbour_message(ifindex, ip)));
        request.header.flags = NLM_F_REQUEST;
        let what = || format!("cannot look up neighbour {ip}");
        let mut answers = Box::pin(self.0.clone().request(request).with_context(what)?);
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                    return Ok(read_neighbour(&message));
                }
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => {
                    return Ok(Neighbour::Unknown);
                }
                NetlinkPayload::Error(error) => return Err(error.to_io()).with_context(what),
                _ => {}
            }
        }
        Ok(Neighbour::Unknown)
    }

    /// Has the kernel ask for a neighbour, or confirm it, as if there were a packet for it. The entry is an ordinary
    /// one, which goes by itself when nobody needs it. Not for a neighbour fixed by configuration: the kernel would take
    /// it for one that it has learned.
    pub(crate) async fn use_neighbour(&self, ifindex: u32, ip: IpAddr) -> anyhow::Result<()> {
        let mut message = neighbour_message(ifindex, ip);
        message.header.flags = NeighbourFlags::Use;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let what = || format!("cannot ask for neighbour {ip}");
        let mut answers = Box::pin(self.0.clone().request(request).with_context(what)?);
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io()).with_context(what);
            }
        }
        Ok(())
    }
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => io::Error::raw_os_error(&message.to_io()),
        _ => None,
    }
}

fn neighbour_message(ifindex: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, address) = match ip {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

pub(crate) fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        xdp: None,
        peer: None,
        vlan: None,
    };
    let mut tag = None;
    let (mut is_veth, mut index, mut namespace) = (false, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = Mac::try_from(bytes.as_slice()).ok();
            }
            LinkAttribute::Xdp(xdp) => link.xdp = xdp.iter().find_map(xdp_program),
            LinkAttribute::LinkInfo(info) => {
                is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
                tag = info.iter().find_map(vlan_tag);
            }
            LinkAttribute::Link(other) => index = Some(*other),
            LinkAttribute::LinkNetNsId(number) => namespace = Some(*number),
            _ => {}
        }
    }
    link.peer = index.filter(|_| is_veth).map(|index| Peer { index, namespace });
    // Below one of another namespace, its frames are none of this one's.
    link.vlan = index.filter(|_| namespace.is_none()).zip(tag);
    link
}

fn vlan_tag(info: &LinkInfo) -> Option<Tag> {
    let LinkInfo::Data(InfoData::Vlan(attributes)) = info else { return None };
    let number = attributes.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(number) => Some(*number),
        _ => None,
    });
    Tag::new(number?, attributes.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)))
}

/// With programs in several modes the kernel gives the id of each, and no common one.
const fn xdp_program(attribute: &LinkXdp) -> Option<u32> {
    match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id)
            if *id != 0 =>
        {
            Some(*id)
        }
        _ => None,
    }
}

fn read_route(ip: IpAddr, message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Route::Local,
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => return Route::NotOneHost,
        kind => return Route::None(format!("its route says {kind:?}").to_lowercase()),
    }
    let mut ifindex = 0;
    let mut neighbour = ip;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
                neighbour = IpAddr::V4(*v4);
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
                neighbour = IpAddr::V6(*v6);
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Route::Through { ifindex, neighbour, mtu }
}

fn read_neighbour(message: &NeighbourMessage) -> Neighbour {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    match (&message.header.state, mac) {
        (
            NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe,
            Some(mac),
        ) => Neighbour::Known { mac, fixed: false },
        (NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => {
            Neighbour::Known { mac, fixed: true }
        }
        (NeighbourState::Failed, _) => Neighbour::Failed,
        _ => Neighbour::Unknown,
    }
}

/// Whom a notification about a neighbour is about.
pub(crate) fn neighbour_of(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
            Some((message.header.ifindex, IpAddr::V4(*v4)))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
            Some((message.header.ifindex, IpAddr::V6(*v6)))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn a_neighbour_is_known_while_the_kernel_would_send_to_it() {
        let entry = |state, mac: Option<Mac>| {
            let mut message = neighbour_message(1, IpAddr::from([192, 168, 1, 1]));
            message.header.state = state;
            message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
            read_neighbour(&message)
        };
        let learned = Neighbour::Known { mac: MAC, fixed: false };
        let fixed = Neighbour::Known { mac: MAC, fixed: true };
        for (state, mac, expected) in [
            (NeighbourState::Reachable, Some(MAC), learned),
            (NeighbourState::Stale, Some(MAC), learned),
            (NeighbourState::Delay, Some(MAC), learned),
            (NeighbourState::Probe, Some(MAC), learned),
            (NeighbourState::Permanent, Some(MAC), fixed),
            (NeighbourState::Incomplete, None, Neighbour::Unknown),
            (NeighbourState::None, None, Neighbour::Unknown),
            (NeighbourState::Failed, Some(MAC), Neighbour::Failed),
            (NeighbourState::Failed, None, Neighbour::Failed),
        ] {
            assert_eq!(entry(state, mac), expected, "{state}");
        }
    }

    #[test]
    fn packets_go_to_the_gateway_if_there_is_one_also_to_one_of_the_other_family() {
        let ip = IpAddr::from([192, 168, 1, 1]);
        let route = |attributes: Vec<RouteAttribute>, kind| {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = attributes;
            read_route(ip, &message)
        };
        let gateway = RouteAddress::Inet([10, 0, 0, 1].into());
        let via = RouteVia::Inet6("fe80::1".parse().unwrap());
        let oif = || RouteAttribute::Oif(3);
        let through = |neighbour| Route::Through { ifindex: 3, neighbour, mtu: None };
        assert_eq!(route(vec![oif()], RouteType::Unicast), through(ip));
        assert_eq!(
            route(vec![oif(), RouteAttribute::Gateway(gateway)], RouteType::Unicast),
            through(IpAddr::from([10, 0, 0, 1]))
        );
        assert_eq!(
            route(vec![oif(), RouteAttribute::Via(via)], RouteType::Unicast),
            through("fe80::1".parse().unwrap())
        );
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Advmss(1000), RouteMetric::Mtu(1400)]);
        assert_eq!(
            route(vec![oif(), metrics], RouteType::Unicast),
            Route::Through { ifindex: 3, neighbour: ip, mtu: Some(1400) }
        );
        assert_eq!(route(vec![oif()], RouteType::Local), Route::Local);
        assert_eq!(route(vec![oif()], RouteType::Broadcast), Route::NotOneHost);
        assert_eq!(route(vec![], RouteType::Prohibit), Route::None("its route says prohibit".to_owned()));
    }
}
