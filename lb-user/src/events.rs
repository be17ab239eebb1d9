//! The kernel's notifications: links, routes and neighbours that change.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use futures_util::{StreamExt as _, future::pending};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    proto::sys::SocketAddr,
};

use crate::{
    neighbour::News,
    netlink::{Link, Mac, neighbour_of, read_link},
};

type Messages = futures_util::stream::BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// What of an interface matters to next hops: its address, whether it is up, its MTU.
type Face = (Option<Mac>, bool, u32);

/// A subscription to the kernel's notifications.
pub(crate) struct Events {
    messages: Messages,
    faces: HashMap<u32, Face>,
    gone: Vec<u32>,
}

impl Events {
    /// Subscribes; needs a running tokio runtime.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        use MulticastGroup::{Ipv4Route, Ipv6Route, Link, Neigh};
        let (connection, _handle, messages) =
            rtnetlink::new_multicast_connection(&[Link, Neigh, Ipv4Route, Ipv6Route])
                .context("cannot subscribe to the kernel's notifications")?;
        tokio::spawn(connection);
        Ok(Self { messages: messages.boxed(), faces: HashMap::new(), gone: Vec::new() })
    }

    /// Takes these interfaces as they are for known.
    pub(crate) fn know<'a>(&mut self, links: impl Iterator<Item = &'a Link>) {
        self.faces.extend(links.map(|link| (link.index, (link.mac, link.up, link.mtu))));
    }

    /// The next notification that is news.
    pub(crate) async fn next(&mut self) -> News {
        loop {
            let Some((message, _)) = self.messages.next().await else { return pending().await };
            let news = self.read(message.payload);
            if !news.is_none() {
                return news;
            }
        }
    }

    /// Interfaces that have gone since the last call.
    pub(crate) fn take_gone(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.gone)
    }

    fn read(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> News {
        use RouteNetlinkMessage::{DelLink, DelNeighbour, DelRoute, NewLink, NewNeighbour, NewRoute};
        match payload {
            NetlinkPayload::InnerMessage(NewNeighbour(message) | DelNeighbour(message)) => {
                News::Of(neighbour_of(&message).into_iter().collect::<HashSet<_>>())
            }
            NetlinkPayload::InnerMessage(NewRoute(_) | DelRoute(_)) => News::OfAnything,
            NetlinkPayload::InnerMessage(NewLink(message)) => {
                let link = read_link(&message);
                let face = (link.mac, link.up, link.mtu);
                // Most notifications about links are about other things: counters, wireless signal, XDP itself.
                if self.faces.insert(link.index, face) == Some(face) {
                    News::none()
                } else {
                    News::OfAnything
                }
            }
            NetlinkPayload::InnerMessage(DelLink(message)) => {
                self.faces.remove(&message.header.index);
                self.gone.push(message.header.index);
                News::OfAnything
            }
            // More notifications than the socket could hold: some are lost.
            NetlinkPayload::Overrun(_) => News::OfAnything,
            _ => News::none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};

    fn events() -> Events {
        Events { messages: futures_util::stream::pending().boxed(), faces: HashMap::new(), gone: Vec::new() }
    }

    fn link(up: bool) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 3;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message
    }

    #[test]
    fn a_link_is_news_when_its_address_or_its_being_up_changes() {
        let mut events = events();
        let mut see = |up| events.read(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link(up))));
        assert_eq!(see(true), News::OfAnything);
        assert_eq!(see(true), News::none());
        assert_eq!(see(false), News::OfAnything);
    }

    #[test]
    fn a_link_that_goes_is_news_and_named() {
        let mut events = events();
        let news = events.read(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link(true))));
        assert_eq!((news, events.take_gone(), events.take_gone()), (News::OfAnything, vec![3], vec![]));
    }

    #[test]
    fn lost_notifications_are_news_of_anything() {
        assert_eq!(events().read(NetlinkPayload::Overrun(Vec::new())), News::OfAnything);
    }
}
