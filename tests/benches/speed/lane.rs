//! A forwarder in a network of its own, between hosts.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::Array;
use lb_tests::balancer::{self, Balancer};
use lb_tests::leftovers::Tag;
use lb_tests::link;
use lb_tests::namespace::Namespace;

use crate::cores::Cores;
use crate::frame::Kind;
use crate::hosts::Hosts;
use crate::kernel;
use crate::programs::{attach, index, load, mac, words};
use crate::setting::{Arms, Direction, Family, Forwarder, SERVER_PORT, SERVICE_PORT, Setting, Transport};

/// The most flows that a sketch takes.
const SKETCH_FLOWS: u32 = 1 << 19;

/// Dropping it removes everything.
pub(crate) struct Lane {
    pub(crate) hosts: Hosts,
    setting: Setting,
    _forwarder: Option<Ebpf>,
    _balancer: Option<Balancer>,
    /// How long it took until the forwarder was ready.
    pub(crate) started_within: Duration,
    middle: Namespace,
    // Last, because it is dropped last: the balancer's pins are under it.
    pub(crate) tag: Tag,
}

impl Lane {
    /// With a forwarder that is ready, and no connection yet.
    pub(crate) fn new(setting: Setting, cores: Cores) -> Result<Self> {
        // The daemons of the balancers are not to work on the core that is measured.
        cores.stay_on_the_other()?;
        let tag = Tag::new()?;
        let middle = Namespace::new(&tag, "middle")?;
        let hosts = Hosts::new(setting, &tag, &middle)?;
        let (vip_prefix, gateway) = match setting.family {
            Family::V4 => (16, "192.168.255.254/16"),
            Family::V6 => (64, "2001:db8:1::ffff/64"),
        };
        link::address((&middle, "eth0"), &format!("{}/{vip_prefix}", setting.vip()))?;
        link::address((&middle, setting.arms.way_out()), gateway)?;
        let mut lane = Self {
            hosts,
            setting,
            _forwarder: None,
            _balancer: None,
            started_within: Duration::ZERO,
            middle,
            tag,
        };
        lane.introduce_neighbours()?;
        let begin = Instant::now();
        match setting.forwarder {
            Forwarder::Bare | Forwarder::Sketch => lane._forwarder = Some(lane.attach_forwarder()?),
            Forwarder::Balancer => lane._balancer = Some(Balancer::start(&mut lane.balancer_command())?),
            Forwarder::Recipe => kernel::recipe(&lane.middle, &setting, &lane.tag.directory())?,
            Forwarder::NftMap => kernel::nft_map(&lane.middle, &setting, &lane.tag.directory())?,
        }
        lane.started_within = begin.elapsed();
        cores.stay_on_the_measured()?;
        Ok(lane)
    }

    /// With a forwarder that knows all of its flows.
    pub(crate) fn with_flows(setting: Setting, cores: Cores) -> Result<Self> {
        let mut lane = Self::new(setting, cores)?;
        lane.begin_all_flows()?;
        lane.hosts.only_sink()?;
        let kind = match setting.direction {
            Direction::Requests => Kind::Request,
            Direction::Replies => Kind::Reply,
        };
        lane.hosts.send_from_now(kind)?;
        Ok(lane)
    }

    /// Begins so many connections, as far as the forwarder has any; says how many came about, and how long it took.
    pub(crate) fn begin_flows(&mut self, flows: u32) -> Result<(u64, Duration)> {
        self.hosts.send_from_now(Kind::First)?;
        let before = self.hosts.sunk()?;
        let took = self.hosts.generate_once(flows)?;
        Ok((self.hosts.sunk()? - before, took))
    }

    /// Where others want the core too, frames are lost: their senders try again, as those of real ones do.
    pub(crate) fn begin_all_flows(&mut self) -> Result<()> {
        const ATTEMPTS: usize = 5;
        let flows = self.setting.flows;
        let mut made = 0;
        for _ in 0..ATTEMPTS {
            made = self.begin_flows(flows)?.0;
            // A sink counts also what a kernel says unasked.
            if made >= flows.into() {
                return Ok(());
            }
        }
        bail!("only {made} of {flows} connections came about")
    }

    /// Where the forwarder sends to, so that nobody has to ask.
    fn introduce_neighbours(&self) -> Result<()> {
        let (client, server) = (self.hosts.client_mac()?, self.hosts.server_mac()?);
        let servers = (0..self.setting.backends).map(|number| self.setting.server(number));
        let batch: String = (self.hosts.client_addresses().map(|address| (address, client, "eth0")))
            .chain(servers.map(|address| (address, server, self.setting.arms.way_out())))
            .map(|(address, mac, device)| {
                format!("neighbour replace {address} lladdr {mac} dev {device} nud permanent\n")
            })
            .collect();
        let file = self.tag.directory().join("neighbours");
        fs::write(&file, batch).with_context(|| format!("cannot write {}", file.display()))?;
        self.middle.run("ip", ["-batch".as_ref(), file.as_os_str()]).map(drop)
    }

    fn attach_forwarder(&self) -> Result<Ebpf> {
        let way_out = self.setting.arms.way_out();
        let egress = if self.setting.arms == Arms::One { 0 } else { index(&self.middle, way_out)? };
        let (name, sketch_flows) = if self.setting.forwarder == Forwarder::Sketch {
            ("sketch", SKETCH_FLOWS)
        } else {
            ("forward", 1)
        };
        let mut program = load(&[("EGRESS", egress)], &[("SKETCH_FLOWS", sketch_flows)])?;
        let link = [self.hosts.server_mac()?.0, mac(&self.middle, way_out)?.0].concat();
        let map = program.map_mut("LINK").context("the object has no map LINK")?;
        Array::<_, [u32; 3]>::try_from(map)?.set(0, words(&link), 0)?;
        let _attached = attach(&mut program, name, &self.middle, "eth0")?;
        Ok(program)
    }

    fn balancer_command(&self) -> Command {
        let setting = &self.setting;
        // A little room, as an administrator would leave.
        let max_flows = (setting.flows + setting.flows / 20).max(1024).to_string();
        let mut command = self.middle.command(balancer::binary());
        command.args(["run", "--iface", "eth0"]);
        if setting.arms == Arms::Two {
            command.args(["--iface", setting.arms.way_out()]);
        }
        command.arg("--pin-dir").arg(self.tag.pin_dir()).args(["--max-flows", &max_flows]);
        for service in 0..setting.services {
            let protocol = if setting.transport == Transport::Tcp { "tcp" } else { "udp" };
            let vip = SocketAddr::new(setting.vip(), SERVICE_PORT + service);
            command.arg("--service").arg(format!("{vip}/{protocol}"));
            for number in 0..setting.backends {
                let backend = SocketAddr::new(setting.server(number), SERVER_PORT);
                command.arg("--backend").arg(backend.to_string());
            }
        }
        command
    }
}
