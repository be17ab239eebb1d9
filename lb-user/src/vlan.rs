//! VLANs: which frames of the interfaces the host has devices for.
//!
//! A device for a VLAN hands its packets on, with a tag, to the interface below it, where XDP meets them. So next hops lead through that
//! interface, and the data path knows which tags the host has devices for: others are none of its networks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::{Tag, Tags, Vlan};

use crate::{
    maps::Maps,
    netlink::{Link, Netlink},
};

/// The tags of all those, the outermost last as a walk from a device down to the wire finds them. `None` if they are more than frames are
/// looked at for.
pub(crate) fn tags(upwards: &[Tag]) -> Option<Tags> {
    upwards.iter().rev().try_fold(Tags::NONE, |tags, tag| tags.and(*tag))
}

/// The VLANs that there are devices for that are up, and the devices' MTUs; and that an interface has any.
pub(crate) async fn all(netlink: &Netlink) -> anyhow::Result<BTreeMap<Vlan, u32>> {
    let links = netlink.links().await?.into_iter().map(|link| (link.index, link)).collect();
    Ok(of(&links))
}

fn of(links: &HashMap<u32, Link>) -> BTreeMap<Vlan, u32> {
    let places =
        links.values().filter(|link| link.up).filter_map(|link| Some((place(links, link)?, link.mtu)));
    let vlans: BTreeMap<_, _> = places.collect();
    let any = vlans.keys().map(|vlan| (Vlan { tags: Tags::NONE, ..*vlan }, 0)).collect::<Vec<_>>();
    vlans.into_iter().chain(any).collect()
}

/// Where the frames of a VLAN's device are; `None` of other interfaces.
fn place(links: &HashMap<u32, Link>, device: &Link) -> Option<Vlan> {
    let (mut ifindex, tag) = device.vlan?;
    let mut upwards = vec![tag];
    while let Some((below, tag)) = links.get(&ifindex).and_then(|link| link.vlan) {
        upwards.push(tag);
        ifindex = below;
    }
    Some(Vlan { ifindex, tags: tags(&upwards)? })
}

/// Tells the data path of all VLANs; before it is told of the [smallest MTU](crate::mtu::publish), of which theirs are some. The caller
/// holds the lock for edits.
pub(crate) fn publish(maps: &mut Maps, vlans: &BTreeMap<Vlan, u32>) -> anyhow::Result<()> {
    let present = maps.vlans()?;
    for vlan in present.keys().filter(|vlan| !vlans.contains_key(vlan)) {
        maps.remove_vlan(*vlan)?;
    }
    for (vlan, mtu) in vlans.iter().filter(|(vlan, mtu)| present.get(vlan) != Some(mtu)) {
        maps.add_vlan(*vlan, *mtu)?;
    }
    Ok(())
}

/// Warns where tags may be taken off frames before XDP meets them: the kernel does not tell XDP.
pub(crate) fn warn_of_offload<'a>(vlans: &BTreeMap<Vlan, u32>, links: impl Iterator<Item = &'a Link>) {
    let with_vlans: BTreeSet<u32> = vlans.keys().map(|vlan| vlan.ifindex).collect();
    for link in links.filter(|link| with_vlans.contains(&link.index)) {
        let remedy = match link.peer {
            Some(_) => "`ethtool -K DEV txvlan off` on the other end of this veth".to_owned(),
            None => format!("`ethtool -K {} rxvlan off`", link.name),
        };
        log::warn!(
            "{} has VLANs: their frames have to come with their tags in them, {remedy} sees to it",
            link.name
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, vlan: Option<(u32, Tag)>, up: bool) -> (u32, Link) {
        let name = format!("eth{index}");
        (index, Link { index, name, mac: Some([2; 6]), up, mtu: 1500 + index, xdp: None, peer: None, vlan })
    }

    #[test]
    fn a_vlans_frames_are_on_the_lowest_interface_with_all_tags_the_lowest_first() {
        let (outer, inner) = (Tag::new(7, true).unwrap(), Tag::new(100, false).unwrap());
        let links = HashMap::from([
            link(1, None, true),
            link(2, Some((1, outer)), true),
            link(3, Some((2, inner)), true),
            link(4, Some((1, inner)), false),
            // Three tags; and one on an interface that is not to be seen.
            link(5, Some((3, inner)), true),
            link(6, Some((99, inner)), true),
        ]);
        let one = Tags::NONE.and(outer).unwrap();
        let two = one.and(inner).unwrap();
        let vlan = |ifindex, tags| Vlan { ifindex, tags };
        let alone = Tags::NONE.and(inner).unwrap();
        let any = [1, 99].map(|ifindex| (vlan(ifindex, Tags::NONE), 0));
        let each = [(vlan(1, one), 1502), (vlan(1, two), 1503), (vlan(99, alone), 1506)];
        assert_eq!(of(&links), any.into_iter().chain(each).collect());
    }
}
