//! The two networks that a balancer stands in: between the client and the servers, or beside them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::balancer::{self, Balancer};
use crate::leftovers::Tag;
use crate::link::{self, End};
use crate::namespace::Namespace;
use crate::process;
use crate::web::Web;

/// The virtual address, which is also the source address towards the servers.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 10, 10, 1);

/// The virtual address in IPv6.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 1);

/// The balancer's address on the servers' network.
const BALANCER: &str = "192.168.1.254";
const BALANCER_V6: &str = "2001:db8:1::fe";

const CLIENT_PORT: &str = "port-client";
const BALANCER_PORT: &str = "port-balancer";

/// Where the balancer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arms {
    One,
    Two,
}

/// A server's namespace. Its interface is `eth0`.
#[derive(Debug)]
pub struct Server {
    /// Where it lives.
    pub namespace: Namespace,
    /// Counts from 1.
    pub number: u8,
    /// 192.168.1.`number`
    pub ipv4: Ipv4Addr,
    /// 2001:db8:1::`number`
    pub ipv6: Ipv6Addr,
}

/// Namespaces with cables between them; all gone when this is dropped.
#[derive(Debug)]
pub struct Topology {
    arms: Arms,
    /// Its interface is `eth0`.
    pub client: Namespace,
    /// Its interfaces are `eth0` and, with two arms, `eth1`.
    pub balancer: Namespace,
    /// A bridge with a port for each neighbour: `port-1` for server 1, and so on.
    pub switch: Namespace,
    /// In the order of their numbers.
    pub servers: Vec<Server>,
    lb: PathBuf,
    // Last, because it is dropped last: the namespaces' processes use its directories.
    tag: Tag,
}

impl Topology {
    /// The balancer between the client and the servers:
    ///
    /// ```text
    /// client eth0 ------------- eth0 balancer eth1 ------------- switch --- eth0 servers
    /// 10.10.10.2       10.10.10.1 (VIP)   192.168.1.254                    192.168.1.1-N
    /// 2001:db8:10::2  2001:db8:10::1 (VIP)  2001:db8:1::fe                 2001:db8:1::1-N
    /// ```
    ///
    /// The servers' default route is the balancer.
    ///
    /// # Errors
    ///
    /// If this is not root, or the kernel refuses. What was made by then is gone again.
    pub fn two_arm(servers: u8) -> Result<Self> {
        let topology = Self::with_switch(Arms::Two, servers)?;
        let (client, balancer) = ((&topology.client, "eth0"), (&topology.balancer, "eth0"));
        link::veth(client, balancer)?;
        for address in [format!("{VIP}/24"), format!("{VIP_V6}/64")] {
            link::address(balancer, &address)?;
        }
        for address in ["10.10.10.2/24", "2001:db8:10::2/64"] {
            link::address(client, address)?;
        }
        for server in &topology.servers {
            link::route(&server.namespace, "default", BALANCER)?;
            link::route(&server.namespace, "default", BALANCER_V6)?;
        }
        Ok(topology)
    }

    /// The balancer beside the servers, all on one switch:
    ///
    /// ```text
    /// client eth0 ------+
    /// 192.168.1.100     |
    ///                 switch --- eth0 balancer 192.168.1.254, VIP 10.10.10.1
    ///                   |
    /// servers eth0 -----+
    /// 192.168.1.1-N
    /// ```
    ///
    /// and 2001:db8:1::100, 2001:db8:1::fe, VIP 2001:db8:10::1, 2001:db8:1::1-N. Client and servers reach the VIP
    /// through the balancer's address. See [`link::attach_xdp`] for what [`Self::peers`] need.
    ///
    /// # Errors
    ///
    /// If this is not root, or the kernel refuses. What was made by then is gone again.
    pub fn one_arm(servers: u8) -> Result<Self> {
        let topology = Self::with_switch(Arms::One, servers)?;
        let client = (&topology.client, "eth0");
        for address in ["192.168.1.100/24", "2001:db8:1::100/64"] {
            link::address(client, address)?;
        }
        for address in [format!("{VIP}/32"), format!("{VIP_V6}/128")] {
            link::address((&topology.balancer, "eth0"), &address)?;
        }
        for namespace in topology.servers.iter().map(|server| &server.namespace).chain([&topology.client]) {
            link::route(namespace, &format!("{VIP}/32"), BALANCER)?;
            link::route(namespace, &format!("{VIP_V6}/128"), BALANCER_V6)?;
        }
        Ok(topology)
    }

    /// What both have in common: the switch with the servers and the balancer on it, and with one arm the client too.
    fn with_switch(arms: Arms, servers: u8) -> Result<Self> {
        let tag = Tag::new()?;
        let servers = (1..=servers).map(|number| Server::new(&tag, number)).collect::<Result<_>>()?;
        let topology = Self {
            arms,
            client: Namespace::new(&tag, "client")?,
            balancer: Namespace::new(&tag, "balancer")?,
            switch: Namespace::new(&tag, "switch")?,
            servers,
            lb: balancer::binary(),
            tag,
        };
        let mut ports = vec![BALANCER_PORT.to_owned()];
        link::veth(topology.on_switch(), (&topology.switch, BALANCER_PORT))?;
        if arms == Arms::One {
            link::veth((&topology.client, "eth0"), (&topology.switch, CLIENT_PORT))?;
            ports.push(CLIENT_PORT.to_owned());
        }
        for server in &topology.servers {
            let port = format!("port-{}", server.number);
            let end = (&server.namespace, "eth0");
            link::veth(end, (&topology.switch, &port))?;
            link::address(end, &format!("{}/24", server.ipv4))?;
            link::address(end, &format!("{}/64", server.ipv6))?;
            ports.push(port);
        }
        link::bridge(&topology.switch, "br0", &ports)?;
        link::address(topology.on_switch(), &format!("{BALANCER}/24"))?;
        link::address(topology.on_switch(), &format!("{BALANCER_V6}/64"))?;
        Ok(topology)
    }

    /// The balancer's interface on the switch.
    fn on_switch(&self) -> End<'_> {
        let device = match self.arms {
            Arms::One => "eth0",
            Arms::Two => "eth1",
        };
        (&self.balancer, device)
    }

    /// The balancer's interfaces.
    pub fn interfaces(&self) -> &'static [&'static str] {
        match self.arms {
            Arms::One => &["eth0"],
            Arms::Two => &["eth0", "eth1"],
        }
    }

    /// The other ends of the cables to the balancer: what sees its packets first.
    pub fn peers(&self) -> Vec<End<'_>> {
        let port = (&self.switch, BALANCER_PORT);
        match self.arms {
            Arms::One => vec![port],
            Arms::Two => vec![(&self.client, "eth0"), port],
        }
    }

    /// Attaches a program that passes everything, or any other one, to every peer of the balancer.
    ///
    /// # Errors
    ///
    /// If the object cannot be attached.
    pub fn attach_to_peers(&self, object: &Path) -> Result<()> {
        self.peers().into_iter().try_for_each(|peer| link::attach_xdp(peer, object))
    }

    /// What marks this topology's files and pins.
    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    /// Runs this `lb` rather than the one that [`balancer::binary`] finds.
    #[must_use]
    pub fn with_binary(self, lb: PathBuf) -> Self {
        Self { lb, ..self }
    }

    /// `lb` inside of the balancer's namespace, on this topology's pins.
    pub fn lb_command(&self, args: &[&str]) -> Command {
        let mut command = self.balancer.command(&self.lb);
        command.args(args).arg("--pin-dir").arg(self.tag.pin_dir());
        command
    }

    /// Runs a subcommand of `lb` and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it exits with anything but 0.
    pub fn lb(&self, args: &[&str]) -> Result<String> {
        process::output(&mut self.lb_command(args))
    }

    /// Starts `lb run` on all the balancer's interfaces, with further arguments, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it ends, or is not ready in time.
    pub fn start_balancer(&self, args: &[&str]) -> Result<Balancer> {
        let interfaces = self.interfaces().iter().flat_map(|interface| ["--iface", interface]);
        let args: Vec<_> = ["run"].into_iter().chain(interfaces).chain(args.iter().copied()).collect();
        Balancer::start(&mut self.lb_command(&args))
    }

    /// Starts a web server on every server, on port 80 of both families.
    ///
    /// # Errors
    ///
    /// If one does not start.
    pub fn start_web_servers(&self) -> Result<Vec<Web>> {
        self.servers
            .iter()
            .map(|server| {
                let directory = self.tag.directory().join(format!("web-{}", server.number));
                Web::start(&server.namespace, &directory, &format!("Server {}\n", server.number))
                    .with_context(|| format!("cannot start the web server of server {}", server.number))
            })
            .collect()
    }
}

impl Server {
    fn new(tag: &Tag, number: u8) -> Result<Self> {
        Ok(Self {
            namespace: Namespace::new(tag, &format!("server{number}"))?,
            number,
            ipv4: Ipv4Addr::new(192, 168, 1, number),
            ipv6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pings(namespace: &Namespace, to: &str) {
        namespace.run("ping", ["-c", "1", "-W", "2", to]).expect("the address answers");
    }

    #[test]
    fn client_and_servers_reach_the_balancer_without_delay() {
        for topology in [Topology::two_arm(2), Topology::one_arm(2)] {
            let topology = topology.expect("root can make namespaces");
            pings(&topology.client, &VIP.to_string());
            pings(&topology.client, &VIP_V6.to_string());
            for server in &topology.servers {
                pings(&server.namespace, BALANCER);
                pings(&server.namespace, &VIP.to_string());
                pings(&server.namespace, &VIP_V6.to_string());
            }
        }
    }

    #[test]
    fn every_server_answers_with_its_number_and_logs_its_client() {
        let topology = Topology::two_arm(2).expect("root can make namespaces");
        let servers = topology.start_web_servers().expect("nginx starts");
        for (server, web) in topology.servers.iter().zip(&servers) {
            let answer =
                topology.balancer.fetch(&format!("http://{}/", server.ipv4)).expect("the server answers");
            assert_eq!(answer, format!("Server {}\n", server.number));
            let answer =
                topology.balancer.fetch(&format!("http://[{}]/", server.ipv6)).expect("the server answers");
            assert_eq!(answer, format!("Server {}\n", server.number));
            assert_eq!(web.clients().expect("the log is there"), [BALANCER, BALANCER_V6]);
        }
    }

    #[test]
    fn nothing_is_left_when_the_guard_is_dropped() {
        let topology = Topology::one_arm(1).expect("root can make namespaces");
        let traces = [topology.client.path(), topology.servers[0].namespace.path(), topology.tag.directory()];
        let sleeper = topology.client.spawn("sleep", ["1000"]).expect("sleep starts");
        let process = format!("/proc/{}/net", sleeper.id());
        drop(topology);
        assert_eq!(traces.iter().filter(|path| path.exists()).count(), 0);
        drop(sleeper);
        assert!(!Path::new(&process).exists());
    }

    #[test]
    fn a_thread_is_back_outside_when_its_guard_is_dropped() {
        let interfaces =
            || std::fs::read_to_string("/proc/thread-self/net/dev").expect("the kernel lists interfaces");
        let topology = Topology::two_arm(0).expect("root can make namespaces");
        let outside = interfaces();
        {
            let _inside = topology.balancer.enter().expect("root can enter namespaces");
            assert!(interfaces().contains("eth1"));
        }
        assert_eq!(
            interfaces().lines().map(|line| line.split(':').next()).collect::<Vec<_>>(),
            outside.lines().map(|line| line.split(':').next()).collect::<Vec<_>>()
        );
    }
}
