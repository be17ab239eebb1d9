//! MTUs of the ways out, which the data path compares packets with: of each backend's route, and of the interfaces that
//! clients are behind.

use std::{collections::HashMap, net::IpAddr};

use crate::{maps::Maps, netlink::Netlink};

/// The MTUs of these interfaces, those that are gone left out.
pub(crate) async fn of_interfaces(
    netlink: &Netlink,
    indices: impl IntoIterator<Item = u32>,
) -> anyhow::Result<HashMap<u32, u32>> {
    let mut mtus = HashMap::new();
    for index in indices {
        if let Some(link) = netlink.link_by_index(index).await? {
            mtus.insert(index, link.mtu);
        }
    }
    Ok(mtus)
}

/// Writes down what has changed of the MTUs to backend addresses and of interfaces. The caller holds the lock for edits.
pub(crate) fn publish(
    maps: &mut Maps,
    paths: &HashMap<IpAddr, u32>,
    interfaces: &HashMap<u32, u32>,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for (index, backend) in maps.state()?.backends {
        let mtu = paths.get(&backend.addr.ip(backend.family)).copied().unwrap_or_default();
        if maps.path_mtu(index)? != mtu {
            maps.set_path_mtu(index, mtu)?;
        }
        all.push(mtu);
    }
    for (index, interface) in maps.interfaces()? {
        let mtu = interfaces.get(&index).copied().unwrap_or(interface.mtu);
        if interface.mtu != mtu {
            maps.add_interface(index, lb_common::Interface { mtu, ..interface })?;
        }
        all.push(mtu);
    }
    all.extend(maps.vlans()?.into_values());
    // Last: whoever finds a packet larger finds out what it is too large for.
    maps.set_smallest_mtu(smallest(&all))
}

/// Writes down the MTUs on the way to these addresses, which have just been looked up. The caller holds the lock for edits.
pub(crate) fn note(maps: &mut Maps, paths: &HashMap<IpAddr, u32>) -> anyhow::Result<()> {
    for (index, backend) in maps.state()?.backends {
        if let Some(mtu) = paths.get(&backend.addr.ip(backend.family)) {
            maps.set_path_mtu(index, *mtu)?;
            let known = [maps.smallest_mtu()?, *mtu];
            maps.set_smallest_mtu(smallest(&known))?;
        }
    }
    Ok(())
}

/// The smallest of those that are known; they are not 0.
fn smallest(mtus: &[u32]) -> u32 {
    mtus.iter().copied().filter(|mtu| *mtu != 0).min().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_no_limit() {
        assert_eq!(smallest(&[1500, 0, 1400, 9000]), 1400);
        assert_eq!(smallest(&[0]), u32::MAX);
        assert_eq!(smallest(&[]), u32::MAX);
    }
}
