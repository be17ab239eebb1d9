//! What `lb run` finds at its start: a data path that goes on without a daemon, or under one that is to be relieved. It
//! is adopted as it is, with its services and connections: the maps are the truth, not the command line.

use std::{collections::BTreeMap, path::Path};

use anyhow::bail;
use lb_common::Meta;

use crate::{
    links::{self, Pinned},
    maps::Maps,
    model::Invalid,
    netlink::{Link, Netlink},
    plan::{State, default_pool},
    program::{Mode, ModeChoice},
    serve::Order,
};

/// A data path that is pinned as a whole.
pub(crate) struct Found {
    pub(crate) maps: Maps,
    pub(crate) links: Vec<Pinned>,
}

impl Found {
    /// The data path pinned in `dir`, if there is one.
    ///
    /// # Errors
    ///
    /// There is one that this version does not understand.
    pub(crate) fn at(dir: &Path) -> anyhow::Result<Option<Self>> {
        let Some(links) = links::pinned(dir)? else { return Ok(None) };
        Ok(Some(Self { maps: Maps::open(dir)?, links }))
    }

    /// Interfaces that the program is on, by index, with the mode that it runs in there.
    pub(crate) fn modes(&self) -> anyhow::Result<BTreeMap<u32, Mode>> {
        let held = |index: u32| self.links.iter().any(|link| link.index == index && link.holds);
        let interfaces = self.maps.interfaces()?.into_iter().filter(|(index, _)| held(*index));
        Ok(interfaces
            .filter_map(|(index, interface)| Some((index, Mode::from_number(interface.mode)?)))
            .collect())
    }

    /// Refuses an order that cannot be carried out without a loss of connections or packets.
    ///
    /// # Errors
    ///
    /// What the order has to say instead.
    pub(crate) async fn check(
        &self,
        order: &Order,
        interfaces: &[Link],
        netlink: &Netlink,
    ) -> anyhow::Result<()> {
        if let Some(index) = out_of_sight(&self.links, netlink).await? {
            bail!(
                "the data path at {} is attached to interface {index} of another network namespace: start lb run there \
                 (`nsenter --net=/run/netns/NAME`), or give another --pin-dir",
                order.dir.display()
            );
        }
        fits(order, &self.maps.meta()?)?;
        let modes = self.modes()?;
        for link in interfaces {
            if let Some(mode) = modes.get(&link.index) {
                stays(order.mode, *mode, &link.name)?;
            }
        }
        Ok(())
    }
}

/// An interface with one of these links that is not to be seen from here, if there is one.
pub(crate) async fn out_of_sight(links: &[Pinned], netlink: &Netlink) -> anyhow::Result<Option<u32>> {
    for pinned in links.iter().filter(|link| link.holds) {
        let link = netlink.link_by_index(pinned.index).await?;
        if link.and_then(|link| link.xdp) != Some(pinned.program) {
            return Ok(Some(pinned.index));
        }
    }
    Ok(None)
}

/// Whether options that are said agree with what the tables were made with.
fn fits(order: &Order, meta: &Meta) -> Result<(), Invalid> {
    let ports = (meta.first_port, meta.ports);
    let snat = default_pool(meta);
    let (option, present) = if order.max_flows.is_some_and(|asked| asked.entries() != meta.flow_entries) {
        ("--max-flows", (meta.flow_entries / 2).to_string())
    } else if order.ports.is_some_and(|asked| (asked.first(), asked.len()) != ports) {
        let last = u32::from(meta.first_port) + u32::from(meta.ports).saturating_sub(1);
        ("--snat-ports", format!("{}-{last}", meta.first_port))
    } else if !order.snat.addresses().is_empty() && order.snat != snat {
        let addresses: Vec<_> = snat.addresses().iter().map(ToString::to_string).collect();
        ("--snat", if addresses.is_empty() { "none".to_owned() } else { addresses.join(" ") })
    } else {
        return Ok(());
    };
    Err(Invalid::new(format!(
        "{option} is another than that of the data path at {}, which goes on with {present}: leave the option out, or \
         begin anew after `lb detach`, which ends its connections",
        order.dir.display()
    )))
}

/// Whether the mode in which an interface is attached may be kept.
fn stays(asked: ModeChoice, present: Mode, interface: &str) -> Result<(), Invalid> {
    let other = match (asked, present) {
        (ModeChoice::Auto, _) | (ModeChoice::Native, Mode::Native) | (ModeChoice::Generic, Mode::Generic) => {
            return Ok(());
        }
        (ModeChoice::Native, Mode::Generic) => Mode::Native,
        (ModeChoice::Generic, Mode::Native) => Mode::Generic,
    };
    Err(Invalid::new(format!(
        "{interface} is attached in {} mode, and --mode {} would lose packets by detaching it: leave --mode out, or \
         begin anew after `lb detach`, which ends its connections",
        present.name(),
        other.name()
    )))
}

/// What the command line names and the tables do not have, with the commands that add it.
pub(crate) fn differences(order: &Order, state: &State) -> Vec<String> {
    let mut differences = Vec::new();
    for new in &order.services {
        let address = new.address();
        let Ok(service) = state.service(&address) else {
            differences.push(format!("service {address}: `lb service add {address}`"));
            continue;
        };
        for backend in new.backends() {
            if state.backend(service, &address, *backend).is_err() {
                differences
                    .push(format!("backend {backend} of {address}: `lb backend add {address} {backend}`"));
            }
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MaxFlows, NewService, PortRange, SnatPool};
    use std::{collections::HashMap, path::PathBuf};

    fn order() -> Order {
        Order {
            dir: PathBuf::from("/sys/fs/bpf/lb"),
            interfaces: Vec::new(),
            services: Vec::new(),
            mode: ModeChoice::Auto,
            snat: SnatPool::default(),
            ports: None,
            max_flows: None,
            secret: 0,
            persist: true,
            log_level: log::LevelFilter::Off,
        }
    }

    fn snat(addresses: &[[u8; 4]]) -> SnatPool {
        SnatPool::new(&addresses.iter().map(|ip| (*ip).into()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn options_that_are_said_have_to_agree_with_what_runs() {
        let made = Order {
            ports: Some("2000-2999".parse().unwrap()),
            max_flows: Some("1000".parse().unwrap()),
            snat: snat(&[[10, 0, 0, 7]]),
            ..order()
        };
        let meta = made.meta();
        let max_flows = |text: &str| Order { max_flows: Some(text.parse().unwrap()), ..order() };
        let ports = |text: &str| Order { ports: Some(text.parse().unwrap()), ..order() };
        for (order, says) in [
            (order(), None),
            (made, None),
            (max_flows("1000"), None),
            (max_flows("1001"), Some("--max-flows is another than that of the data path at /sys/fs/bpf/lb")),
            (ports("2000-2999"), None),
            (ports("2000-3000"), Some("goes on with 2000-2999")),
            (Order { snat: snat(&[[10, 0, 0, 8]]), ..order() }, Some("goes on with 10.0.0.7")),
        ] {
            match (fits(&order, &meta), says) {
                (result, None) => result.unwrap(),
                (result, Some(says)) => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(says) && error.contains("lb detach"), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_said_has_its_default_in_new_tables() {
        let meta = order().meta();
        assert_eq!(meta.flow_entries, MaxFlows::DEFAULT.entries());
        assert_eq!((meta.first_port, meta.ports), (PortRange::DEFAULT.first(), PortRange::DEFAULT.len()));
    }

    #[test]
    fn an_interface_keeps_its_mode() {
        use ModeChoice::{Auto, Native};
        for (asked, present, stay) in [
            (Auto, Mode::Native, true),
            (Auto, Mode::Generic, true),
            (Native, Mode::Native, true),
            (ModeChoice::Generic, Mode::Generic, true),
            (Native, Mode::Generic, false),
            (ModeChoice::Generic, Mode::Native, false),
        ] {
            assert_eq!(stays(asked, present, "eth0").is_ok(), stay, "{asked:?} {present:?}");
        }
    }

    #[test]
    fn what_the_command_line_has_and_the_tables_have_not_is_told_with_its_remedy() {
        let (vip, first) = ("10.10.10.1:80".parse().unwrap(), "192.168.1.1:80".parse().unwrap());
        let mut service = NewService::new(vip, None).unwrap();
        let mut state = State::new(order().meta());
        state.add_service(&service, &HashMap::new()).unwrap();
        service.add_backend(first).unwrap();
        let other = NewService::new("10.10.10.2:80".parse().unwrap(), None).unwrap();
        let order = Order { services: vec![service, other], ..order() };
        let told = differences(&order, &state);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("`lb backend add 10.10.10.1:80/tcp 192.168.1.1:80`"), "{told:?}");
        assert!(told[1].contains("`lb service add 10.10.10.2:80/tcp`"), "{told:?}");
        state.add_backend(vip, first, &HashMap::new()).unwrap();
        assert_eq!(differences(&order, &state).len(), 1);
    }
}
