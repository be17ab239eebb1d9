//! What is tested, in a namespace of its own: lb, or the kernel with the recipe's rules. Both stand between the same
//! hosts, which the test plays.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use etherparse::EtherType;
use lb_common::Protocol;
use lb_tests::balancer::{self, Balancer};
use lb_tests::leftovers::Tag;
use lb_tests::link;
use lb_tests::namespace::Namespace;

use crate::hosts::{
    CLIENTS, Family, Host, SERVERS, Side, backend, gateway, server_port, service, service_port,
};
use crate::packet::{Carriage, Content, Mac, Packet, arp_request};
use crate::wire::Wire;

/// How long an idle machine's milliseconds may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balancing {
    /// The kernel: DNAT by turns, SNAT, and forwarding.
    Kernel,
    /// The kernel, which takes any source port rather than the client's own where it can.
    KernelAtRandom,
    Lb,
}

impl Balancing {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "the kernel",
            Self::KernelAtRandom => "the kernel with random ports",
            Self::Lb => "lb",
        }
    }
}

/// Frames that came out, in order of arrival on each side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Emitted {
    pub(crate) client: Vec<Vec<u8>>,
    pub(crate) server: Vec<Vec<u8>>,
}

impl Emitted {
    pub(crate) fn on(&self, side: Side) -> &[Vec<u8>] {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.client.extend(other.client);
        self.server.extend(other.server);
    }

    fn push(&mut self, side: Side, frame: Vec<u8>) {
        match side {
            Side::Client => self.client.push(frame),
            Side::Server => self.server.push(frame),
        }
    }
}

/// A device under test, between two wires. Dropping it removes everything.
pub(crate) struct Dut {
    client: Wire,
    server: Wire,
    markers: u32,
    /// Where the markers of the server's side go to: the source of those of the client's side there.
    marker_source: Option<SocketAddr>,
    _balancer: Option<Balancer>,
    _inside: Namespace,
    _outside: Namespace,
    // Last: the namespaces' processes use its directories.
    _tag: Tag,
}

impl Dut {
    /// `server_mtu` is that of the balancer's interface on the servers' side.
    pub(crate) fn new(balancing: Balancing, server_mtu: u16) -> Result<Self> {
        let tag = Tag::new()?;
        let (inside, outside) = (Namespace::new(&tag, "balancer")?, Namespace::new(&tag, "outside")?);
        // The hosts are the test's: the kernel out there has no addresses and says nothing.
        outside.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        outside.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        for (name, value) in [
            // Every error that it would send it sends.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv4/icmp_msgs_per_sec", "1000000"),
            ("net/ipv4/icmp_msgs_burst", "1000000"),
            ("net/ipv6/icmp/ratelimit", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ] {
            inside.sysctl(name, value)?;
        }
        for side in [Side::Client, Side::Server] {
            connect(&inside, &outside, side)?;
        }
        inside.ip(&format!("link set dev {} mtu {server_mtu}", Side::Server.interface()))?;
        for family in Family::ALL {
            configure(&inside, family)?;
        }
        let balancer = match balancing {
            Balancing::Kernel => recipe(&inside, "").map(|()| None)?,
            Balancing::KernelAtRandom => recipe(&inside, "--random-fully").map(|()| None)?,
            Balancing::Lb => Some(start_lb(&inside, &outside, &tag)?),
        };
        let mut dut = Self {
            client: Wire::open(&outside, Side::Client.name())?,
            server: Wire::open(&outside, Side::Server.name())?,
            markers: 0,
            marker_source: None,
            _balancer: balancer,
            _inside: inside,
            _outside: outside,
            _tag: tag,
        };
        dut.exchange(Side::Client, &[])?;
        Ok(dut)
    }

    /// Sends frames in from a side, and returns all that comes out until a marker that was sent after them has come out.
    pub(crate) fn exchange(&mut self, from: Side, frames: &[Vec<u8>]) -> Result<Emitted> {
        for frame in frames {
            self.wire(from).send(frame)?;
        }
        self.settle(from)
    }

    /// Waits until what went in is through: what goes to the kernel inside is when it has answered a question for a MAC
    /// address, what goes through to the other side is when a datagram has come out there.
    pub(crate) fn settle(&mut self, from: Side) -> Result<Emitted> {
        self.markers += 1;
        let asks = (Host::Router(from).mac(), gateway(Family::V4));
        self.wire(from).send(&arp_request(asks, from.balancer(Family::V4))?)?;
        for frame in self.marker(from)?.frames(Host::Router(from).mac(), from.balancer_mac())? {
            self.wire(from).send(&frame)?;
        }
        let mut emitted = Emitted::default();
        self.collect(from, &mut emitted, |kind| matches!(kind, Kind::ArpReply))?;
        let count = self.markers;
        self.collect(
            from.other(),
            &mut emitted,
            |kind| matches!(kind, Kind::Marker(number) if number == count),
        )?;
        for side in [Side::Client, Side::Server] {
            while let Some(frame) = self.wire(side).receive()? {
                if kind(&frame) == Kind::Traffic {
                    emitted.push(side, frame);
                }
            }
        }
        Ok(emitted)
    }

    /// Receives on a side until there is a frame of the kind that is waited for.
    fn collect(&mut self, side: Side, emitted: &mut Emitted, awaited: impl Fn(Kind) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = self.wire(side).receive_until(deadline)?.with_context(|| {
                format!("a marker did not come out on the {}'s side within {PATIENCE:?}", side.name())
            })?;
            let kind = kind(&frame);
            if let Kind::Marker(_) = kind
                && side == Side::Server
                && self.marker_source.is_none()
            {
                self.marker_source = Some(source(&frame)?);
            }
            if awaited(kind) {
                return Ok(());
            }
            if kind == Kind::Traffic {
                emitted.push(side, frame);
            }
        }
    }

    fn marker(&self, from: Side) -> Result<Packet> {
        let client = SocketAddr::new(gateway(Family::V4), MARKER_PORT);
        let server = SocketAddr::new(Host::Server(0).address(Family::V4), MARKER_PORT);
        let vip = SocketAddr::new(Family::V4.vip(), MARKER_PORT);
        let (src, dst) = match from {
            Side::Client => (client, vip),
            Side::Server => (server, self.marker_source.context("the server's side has seen no marker yet")?),
        };
        let payload = [MAGIC, &self.markers.to_be_bytes()].concat();
        let content = Content::Udp { checksum: true, payload };
        Ok(Packet { src, dst, id: 0, carriage: Carriage::default(), content })
    }

    const fn wire(&self, side: Side) -> &Wire {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}

/// A service of its own for the markers.
const MARKER_PORT: u16 = 9;
const MAGIC: &[u8] = b"lb's marker ";

/// What a frame is to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Marker(u32),
    ArpReply,
    /// What a kernel says unasked: questions for MAC addresses, membership reports.
    Chatter,
    Traffic,
}

fn kind(frame: &[u8]) -> Kind {
    const ARP_REPLY: [u8; 2] = [0, 2];
    const NEIGHBOUR_DISCOVERY: [u8; 5] = [133, 134, 135, 136, 137];
    const ICMPV6: u8 = 58;
    const HOP_BY_HOP: u8 = 0;
    let bytes = |range: std::ops::Range<usize>| frame.get(range).unwrap_or_default();
    let byte = |offset: usize| frame.get(offset).copied().unwrap_or_default();
    if bytes(12..14) == EtherType::ARP.0.to_be_bytes() {
        return if bytes(20..22) == ARP_REPLY { Kind::ArpReply } else { Kind::Chatter };
    }
    if bytes(12..14) == EtherType::IPV6.0.to_be_bytes() {
        let discovers = byte(20) == ICMPV6 && NEIGHBOUR_DISCOVERY.contains(&byte(54));
        let reports = byte(20) == HOP_BY_HOP && byte(54) == ICMPV6;
        if discovers || reports {
            return Kind::Chatter;
        }
    }
    let magic = frame.windows(MAGIC.len()).position(|window| window == MAGIC);
    let number = magic.and_then(|start| frame.get(start + MAGIC.len()..)?.first_chunk());
    number.map_or(Kind::Traffic, |number| Kind::Marker(u32::from_be_bytes(*number)))
}

/// The source of an IPv4 packet without options.
fn source(frame: &[u8]) -> Result<SocketAddr> {
    let address: [u8; 4] = *frame.get(26..).and_then(<[u8]>::first_chunk).context("a frame is too short")?;
    let port: [u8; 2] = *frame.get(34..).and_then(<[u8]>::first_chunk).context("a frame is too short")?;
    Ok(SocketAddr::new(Ipv4Addr::from(address).into(), u16::from_be_bytes(port)))
}

fn connect(inside: &Namespace, outside: &Namespace, side: Side) -> Result<()> {
    let (near, far) = (side.interface(), side.name());
    link::veth((inside, near), (outside, far))?;
    inside.ip(&format!("link set dev {near} address {}", show(side.balancer_mac())))?;
    // Frames arrive as they were sent.
    for (namespace, device) in [(inside, near), (outside, far)] {
        namespace.run("ethtool", ["-K", device, "gro", "off"])?;
    }
    Ok(())
}

/// Addresses, neighbours and routes, so that nobody has to be asked for a MAC address.
fn configure(inside: &Namespace, family: Family) -> Result<()> {
    let prefix = if family == Family::V4 { 24 } else { 64 };
    for side in [Side::Client, Side::Server] {
        link::address((inside, side.interface()), &format!("{}/{prefix}", side.balancer(family)))?;
    }
    let neighbour = |side: Side, address: IpAddr, mac: Mac| {
        let (mac, device) = (show(mac), side.interface());
        inside.ip(&format!("neighbour replace {address} lladdr {mac} dev {device} nud permanent")).map(drop)
    };
    let hosts = (0..CLIENTS).map(Host::Client).chain((0..SERVERS).map(Host::Server));
    for host in hosts {
        neighbour(host.side(), host.address(family), host.mac())?;
    }
    neighbour(Side::Client, gateway(family), Host::Router(Side::Client).mac())?;
    link::route(inside, "default", &gateway(family).to_string())
}

fn show(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Service and servers of the markers, in place of the protocol's own.
fn marker_service() -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(Family::V4.vip(), MARKER_PORT),
        SocketAddr::new(Host::Server(0).address(Family::V4), MARKER_PORT),
    )
}

const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// The rules that people start with: four for each server, and forwarding.
fn recipe(inside: &Namespace, ports: &str) -> Result<()> {
    inside.sysctl("net/ipv4/ip_forward", "1")?;
    inside.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for family in Family::ALL {
        let rule = |rule: String| {
            let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
            inside.run(program, format!("-t nat -A {rule}").split_whitespace()).map(drop)
        };
        let vip = family.vip();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let (name, port) = (protocol_name(protocol), service_port(protocol));
            for server in 0..SERVERS {
                let target = backend(family, protocol, server);
                let left = SERVERS - server;
                rule(format!(
                    "PREROUTING -d {vip} -p {name} --dport {port} -m statistic --mode nth --every {left} \
                     --packet 0 -j DNAT --to-destination {target}"
                ))?;
                rule(format!(
                    "POSTROUTING -d {} -p {name} --dport {} -j SNAT --to-source {vip} {ports}",
                    target.ip(),
                    server_port(protocol)
                ))?;
            }
        }
        if family == Family::V4 {
            let (vip, server) = marker_service();
            rule(format!(
                "PREROUTING -d {} -p udp --dport {MARKER_PORT} -j DNAT --to-destination {server}",
                vip.ip()
            ))?;
            rule(format!(
                "POSTROUTING -d {} -p udp --dport {MARKER_PORT} -j SNAT --to-source {}",
                server.ip(),
                vip.ip()
            ))?;
        }
    }
    Ok(())
}

fn start_lb(inside: &Namespace, outside: &Namespace, tag: &Tag) -> Result<Balancer> {
    let object = tag.directory().join("pass.o");
    std::fs::write(&object, lb_user::program::PASS)?;
    let mut command = inside.command(balancer::binary());
    command.args(["run", "--mode", "native"]).arg("--pin-dir").arg(tag.pin_dir());
    for side in [Side::Client, Side::Server] {
        // Receive offload is off, and what XDP sends arrives only where there is a program.
        link::attach_xdp((outside, side.name()), &object)?;
        command.args(["--iface", side.interface()]);
    }
    for family in Family::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            command.arg("--service");
            command.arg(format!("{}/{}", service(family, protocol), protocol_name(protocol)));
            for server in 0..SERVERS {
                command.arg("--backend").arg(backend(family, protocol, server).to_string());
            }
        }
    }
    let (vip, server) = marker_service();
    command.arg("--service").arg(format!("{vip}/udp")).arg("--backend").arg(server.to_string());
    match Balancer::start(&mut command) {
        Ok(balancer) => Ok(balancer),
        Err(error) => bail!("lb does not start: {error:#}"),
    }
}
