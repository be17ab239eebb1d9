//! What can be asked for: services, backends, SNAT. Only valid values can exist, and nothing here does I/O.
//!
//! An [`Invalid`] is a sentence for the user that says what is wrong and what to write instead.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

use lb_common::{Addr, Backend, Port, Protocol, ServiceKey, service::MAX_SNAT};

/// Why something that was asked for cannot be, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// An address that one host can have, and others can send to.
fn unicast(ip: IpAddr) -> Result<IpAddr, Invalid> {
    let refuse = |kind: &str| Err(Invalid::new(format!("{ip} is {kind}: give the address of a host")));
    match ip {
        _ if ip.is_unspecified() => refuse("the unspecified address"),
        _ if ip.is_loopback() => refuse("a loopback address, which no other host can reach"),
        _ if ip.is_multicast() => refuse("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => refuse("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => refuse("in a reserved range"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => refuse("a link-local address, which is not routed"),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(Invalid::new(format!("{ip} is an IPv4 address in IPv6 clothes: write {v4}"))),
            None => Ok(ip),
        },
        IpAddr::V4(_) => Ok(ip),
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, Invalid> {
    let ip = text.parse().map_err(|_| {
        Invalid::new(format!("'{text}' is not an IP address (names are not looked up, for they may change)"))
    })?;
    unicast(ip)
}

/// Where a server listens: an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    ip: IpAddr,
    port: NonZeroU16,
}

impl Endpoint {
    /// The address.
    pub const fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port.get()
    }

    /// Where that backend of the kernel's table listens; `None` for a place that holds none.
    pub fn of(backend: &Backend) -> Option<Self> {
        Some(Self { ip: backend.addr.ip(backend.family), port: NonZeroU16::new(backend.port.number())? })
    }

    pub(crate) fn parse(text: &str, example: &str) -> Result<Self, Invalid> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::from_parts(address.ip(), address.port(), text);
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            let with_port = SocketAddr::new(ip, 80);
            let split =
                bare.rsplit_once(':').and_then(|(ip, port)| Some((ip.parse().ok()?, port.parse().ok()?)));
            let or = split.map(|(ip, port)| SocketAddr::new(ip, port)).filter(SocketAddr::is_ipv6);
            let or = or.map_or_else(String::new, |address| format!(", or {address} if that is"));
            return Err(Invalid::new(format!(
                "'{text}' has no port: write {with_port} if port 80 is meant{or}"
            )));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| {
            Invalid::new(format!("'{text}' is not an address with a port, such as {example}"))
        })?;
        let ip = parse_ip(host.trim_start_matches('[').trim_end_matches(']'))?;
        match port.parse::<u32>() {
            Ok(number) if number > u32::from(u16::MAX) => {
                Err(Invalid::new(format!("port {number} in '{text}' is too large: ports go from 1 to 65535")))
            }
            Ok(_) if ip.is_ipv6() => Err(Invalid::new(format!(
                "'{text}' is ambiguous: write an IPv6 address in brackets, [{ip}]:{port}"
            ))),
            _ => Err(Invalid::new(format!("'{port}' in '{text}' is not a port: ports go from 1 to 65535"))),
        }
    }

    fn from_parts(ip: IpAddr, port: u16, text: &str) -> Result<Self, Invalid> {
        let port = NonZeroU16::new(port).ok_or_else(|| {
            Invalid::new(format!("port 0 in '{text}' does not exist: ports go from 1 to 65535"))
        })?;
        Ok(Self { ip: unicast(ip)?, port })
    }
}

impl FromStr for Endpoint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some((endpoint, protocol)) = text.split_once('/') {
            return Err(Invalid::new(format!(
                "'{text}' names a protocol, which a backend has from its service: leave '/{protocol}' out, write {endpoint}"
            )));
        }
        Self::parse(text, "192.168.1.1:80 or [2001:db8::1]:80")
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port.get()).fmt(f)
    }
}

/// A virtual address, port and transport: what clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAddress {
    endpoint: Endpoint,
    protocol: Protocol,
}

impl ServiceAddress {
    /// The virtual address.
    pub const fn ip(&self) -> IpAddr {
        self.endpoint.ip
    }

    /// The transport.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The address and port.
    pub const fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// As the kernel's table has it.
    pub fn key(&self) -> ServiceKey {
        let (addr, family) = Addr::new(self.ip());
        ServiceKey { addr, port: Port::new(self.endpoint.port()), protocol: self.protocol.number(), family }
    }

    /// From the kernel's table; `None` for a place that holds none.
    pub fn of(key: &ServiceKey) -> Option<Self> {
        let endpoint = Endpoint { ip: key.addr.ip(key.family), port: NonZeroU16::new(key.port.number())? };
        Some(Self { endpoint, protocol: Protocol::from_number(key.protocol)? })
    }
}

impl FromStr for ServiceAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (endpoint, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((endpoint, name)) => (endpoint, parse_protocol(name, text)?),
        };
        Ok(Self {
            endpoint: Endpoint::parse(endpoint, "10.10.10.1:80/tcp or [2001:db8::1]:53/udp")?,
            protocol,
        })
    }
}

fn parse_protocol(name: &str, text: &str) -> Result<Protocol, Invalid> {
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.name().eq_ignore_ascii_case(name))
        .ok_or_else(|| {
            Invalid::new(format!("'{name}' in '{text}' is not a protocol of services: write /tcp or /udp"))
        })
}

impl Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.endpoint, self.protocol.name())
    }
}

/// The name of a family, for people.
pub(crate) const fn family_name(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// Source addresses towards backends: at most [`MAX_SNAT`], each once.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnatPool(Vec<IpAddr>);

impl SnatPool {
    /// Checks the addresses; none are valid too, and mean 'the service's own'.
    ///
    /// # Errors
    ///
    /// A duplicate, too many, or not the address of a host.
    pub fn new(addresses: &[IpAddr]) -> Result<Self, Invalid> {
        let mut seen = BTreeSet::new();
        for &ip in addresses {
            if !seen.insert(unicast(ip)?) {
                return Err(Invalid::new(format!("the SNAT address {ip} is given twice: name it once")));
            }
        }
        if addresses.len() > MAX_SNAT {
            return Err(Invalid::new(format!(
                "{} SNAT addresses are too many: at most {MAX_SNAT} fit",
                addresses.len()
            )));
        }
        Ok(Self(addresses.to_vec()))
    }

    /// The addresses in the order given.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0
    }

    /// The addresses that a service at `vip` takes if it names none: those of its family, or its own.
    pub fn for_service(&self, vip: IpAddr) -> Vec<IpAddr> {
        let same: Vec<_> = self.0.iter().copied().filter(|ip| ip.is_ipv4() == vip.is_ipv4()).collect();
        if same.is_empty() { vec![vip] } else { same }
    }
}

/// Parses one SNAT address.
pub(crate) fn snat_address(text: &str) -> Result<IpAddr, Invalid> {
    parse_ip(text)
}

/// Source ports towards backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

impl PortRange {
    /// Below Linux' own ephemeral range (`ip_local_port_range` begins at 32768), above the well-known ports.
    pub const DEFAULT: Self =
        Self { first: NonZeroU16::new(1024).expect("not 0"), last: NonZeroU16::new(32_767).expect("not 0") };

    /// The first port.
    pub const fn first(&self) -> u16 {
        self.first.get()
    }

    /// How many ports.
    pub const fn len(&self) -> u16 {
        // `first` is at least 1, so that the difference and one more fit.
        self.last.get() - self.first.get() + 1
    }

    /// Never: a range has a first port.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Whether both have a port in common.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.first.get() <= other.last.get() && other.first.get() <= self.last.get()
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::new(format!("'{text}' is not a range of ports, such as {}", Self::DEFAULT));
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse::<NonZeroU16>().map_err(|_| wrong());
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first > range.last {
            return Err(Invalid::new(format!(
                "the range of ports {text} is upside down: write {last}-{first}"
            )));
        }
        Ok(range)
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A backend's share of new connections. Until the scheduler wrr comes, 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight(u32);

impl Weight {
    /// The share of a backend of which nothing is said.
    pub const ONE: Self = Self(1);

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Weight {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse::<i128>() {
            Ok(1) => Ok(Self::ONE),
            Ok(0) => Err(Invalid::new(
                "weight 0 would leave the backend without connections: use `lb backend drain`, or a weight of 1",
            )),
            Ok(number) if number < 0 => {
                Err(Invalid::new(format!("weight {number} is negative: weights are whole numbers from 1 on")))
            }
            Ok(number) => Err(Invalid::new(format!(
                "weight {number} needs scheduler wrr, which this version does not have: only weight 1 works with rr"
            ))),
            Err(_) => {
                Err(Invalid::new(format!("'{text}' is not a weight: weights are whole numbers from 1 on")))
            }
        }
    }
}

/// How a service's connections are dealt to its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scheduler {
    /// To each in turn.
    #[default]
    RoundRobin,
}

impl Scheduler {
    /// As the command line writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
        }
    }
}

impl FromStr for Scheduler {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "rr" => Ok(Self::RoundRobin),
            "wrr" | "lc" | "maglev" | "sh" => {
                Err(Invalid::new(format!("scheduler {text} needs a later version of lb: use rr")))
            }
            _ => Err(Invalid::new(format!("there is no scheduler '{text}': use rr"))),
        }
    }
}

/// How many connections the flow tables hold, for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxFlows(u32);

impl MaxFlows {
    /// What is used when nothing is said.
    pub const DEFAULT: Self = Self(262_144);
    /// 2^27 connections are 32 GiB in IPv4 alone.
    const MOST: u32 = 1 << 27;

    /// Connections.
    pub const fn connections(self) -> u32 {
        self.0
    }

    /// Entries: a connection has two.
    pub const fn entries(self) -> u32 {
        2 * self.0
    }
}

impl FromStr for MaxFlows {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(number @ 1..=Self::MOST) => Ok(Self(number)),
            _ => Err(Invalid::new(format!(
                "'{text}' is not a number of connections: give one between 1 and {}",
                Self::MOST
            ))),
        }
    }
}

/// A service to be, with its first backends. All are of one family, and no backend comes twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewService {
    address: ServiceAddress,
    snat: Option<SnatPool>,
    backends: Vec<Endpoint>,
}

impl NewService {
    /// A service with addresses of its own for SNAT, or with the balancer's (`None`).
    ///
    /// # Errors
    ///
    /// SNAT addresses of another family.
    pub fn new(address: ServiceAddress, snat: Option<SnatPool>) -> Result<Self, Invalid> {
        if let Some(ip) = snat.iter().flat_map(|pool| &pool.0).find(|ip| !same_family(**ip, &address)) {
            return Err(Invalid::new(format!(
                "service {address} is {} and SNAT address {ip} is {}: give addresses of one family",
                family_name(address.ip()),
                family_name(*ip)
            )));
        }
        Ok(Self { address, snat: snat.filter(|pool| !pool.0.is_empty()), backends: Vec::new() })
    }

    /// Adds a backend.
    ///
    /// # Errors
    ///
    /// One of another family, the service itself, or one that is there already.
    pub fn add_backend(&mut self, backend: Endpoint) -> Result<(), Invalid> {
        fits(&self.address, backend)?;
        if self.backends.contains(&backend) {
            return Err(Invalid::new(format!(
                "backend {backend} of service {} is given twice: name it once",
                self.address
            )));
        }
        self.backends.push(backend);
        Ok(())
    }

    /// What clients connect to.
    pub const fn address(&self) -> ServiceAddress {
        self.address
    }

    /// SNAT addresses of its own.
    pub const fn snat(&self) -> Option<&SnatPool> {
        self.snat.as_ref()
    }

    /// Its first backends, in order.
    pub fn backends(&self) -> &[Endpoint] {
        &self.backends
    }
}

fn same_family(ip: IpAddr, service: &ServiceAddress) -> bool {
    ip.is_ipv4() == service.ip().is_ipv4()
}

/// Whether a service can have that backend at all.
///
/// # Errors
///
/// One of another family, or the service itself.
pub(crate) fn fits(service: &ServiceAddress, backend: Endpoint) -> Result<(), Invalid> {
    if !same_family(backend.ip, service) {
        return Err(Invalid::new(format!(
            "service {service} is {} and backend {backend} is {}: both must be of one family",
            family_name(service.ip()),
            family_name(backend.ip)
        )));
    }
    if backend.ip == service.ip() {
        return Err(Invalid::new(format!(
            "backend {backend} has the address of service {service} itself: give the address of another host"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> ServiceAddress {
        text.parse().unwrap()
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_printed_as_they_are_written_and_tcp_may_be_left_out() {
        for (text, printed) in [
            ("10.10.10.1:80/tcp", "10.10.10.1:80/tcp"),
            ("10.10.10.1:80", "10.10.10.1:80/tcp"),
            ("10.10.10.1:53/UDP", "10.10.10.1:53/udp"),
            ("[2001:db8::1]:53/udp", "[2001:db8::1]:53/udp"),
            ("[2001:0DB8:0::1]:65535", "[2001:db8::1]:65535/tcp"),
        ] {
            assert_eq!(service(text).to_string(), printed);
        }
        for text in ["192.168.1.1:80", "[2001:db8::1]:1"] {
            assert_eq!(endpoint(text).to_string(), text);
        }
    }

    #[test]
    fn an_address_survives_the_kernels_table() {
        for text in ["10.10.10.1:80/tcp", "[2001:db8::1]:53/udp"] {
            assert_eq!(ServiceAddress::of(&service(text).key()), Some(service(text)));
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said_with_what_to_write() {
        for (text, says) in [
            ("10.10.10.1", "write 10.10.10.1:80 if port 80 is meant"),
            ("2001:db8::1", "write [2001:db8::1]:80 if port 80 is meant"),
            ("[2001:db8::1]", "write [2001:db8::1]:80 if port 80 is meant"),
            ("2001:db8::1:443", "if port 80 is meant, or [2001:db8::1]:443 if that is"),
            ("10.10.10.1:0", "port 0"),
            ("[2001:db8::1]:0/udp", "port 0"),
            ("10.10.10.1:70000", "too large"),
            ("10.10.10.1:http", "'http' in '10.10.10.1:http' is not a port"),
            ("10.10.10.1:", "is not a port"),
            ("10.10.10.1:80/sctp", "write /tcp or /udp"),
            ("10.10.10.1:80/", "write /tcp or /udp"),
            ("10.10.10.300:80", "is not an IP address"),
            ("example.org:80", "names are not looked up"),
            ("", "is not an address with a port, such as 10.10.10.1:80/tcp"),
            ("0.0.0.0:80", "unspecified"),
            ("127.0.0.1:80", "loopback"),
            ("[::1]:80", "loopback"),
            ("224.0.0.1:80", "multicast"),
            ("255.255.255.255:80", "broadcast"),
            ("240.0.0.1:80", "reserved"),
            ("[fe80::1]:80", "link-local"),
            ("[ff02::1]:80", "multicast"),
            ("[::ffff:10.10.10.1]:80", "write 10.10.10.1"),
        ] {
            let error = text.parse::<ServiceAddress>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = "192.168.1.1:80/tcp".parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("write 192.168.1.1:80"), "{error}");
    }

    #[test]
    fn weights_other_than_one_name_their_remedy() {
        assert_eq!("1".parse(), Ok(Weight::ONE));
        for (text, says) in [
            ("0", "lb backend drain"),
            ("-1", "negative"),
            ("-170141183460469231731687303715884105729", "is not a weight"),
            ("2", "needs scheduler wrr"),
            ("99999999999", "needs scheduler wrr"),
            ("1.5", "is not a weight"),
            ("heavy", "is not a weight"),
            ("", "is not a weight"),
        ] {
            let error = text.parse::<Weight>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn schedulers_of_later_versions_are_told_from_unknown_ones() {
        assert_eq!("rr".parse(), Ok(Scheduler::RoundRobin));
        for (text, says) in
            [("wrr", "later version"), ("maglev", "later version"), ("fifo", "no scheduler 'fifo'")]
        {
            let error = text.parse::<Scheduler>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_range_of_ports_has_both_ends_and_no_zero() {
        let range: PortRange = "1024-32767".parse().unwrap();
        assert_eq!((range.first(), range.len()), (1024, 31_744));
        let one: PortRange = "5000-5000".parse().unwrap();
        assert_eq!(one.len(), 1);
        let all: PortRange = "1-65535".parse().unwrap();
        assert_eq!(all.len(), 65_535);
        for text in ["", "1024", "0-10", "10-", "-10", "20-10", "1-65536", "a-b"] {
            text.parse::<PortRange>().expect_err(text);
        }
    }

    #[test]
    fn ranges_overlap_when_they_share_a_port() {
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        assert!(range("1024-32768").overlaps(&range("32768-60999")));
        assert!(range("32768-60999").overlaps(&range("40000-40001")));
        assert!(!range("1024-32767").overlaps(&range("32768-60999")));
    }

    #[test]
    fn a_service_takes_the_pools_addresses_of_its_family_or_its_own() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let pool = SnatPool::new(&[ip("10.0.0.8"), ip("10.0.0.9")]).unwrap();
        assert_eq!(pool.for_service(ip("10.10.10.1")), [ip("10.0.0.8"), ip("10.0.0.9")]);
        assert_eq!(pool.for_service(ip("2001:db8::1")), [ip("2001:db8::1")]);
        assert_eq!(SnatPool::default().for_service(ip("10.10.10.1")), [ip("10.10.10.1")]);
    }

    #[test]
    fn a_pool_holds_sixteen_addresses_each_once() {
        let addresses: Vec<IpAddr> = (1..=17).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert!(SnatPool::new(&addresses[..16]).is_ok());
        assert!(SnatPool::new(&addresses).unwrap_err().to_string().contains("at most 16"));
        assert!(SnatPool::new(&[addresses[0], addresses[0]]).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn a_service_and_all_that_belongs_to_it_are_of_one_family() {
        let six = SnatPool::new(&["2001:db8::9".parse().unwrap()]).unwrap();
        assert!(
            NewService::new(service("10.10.10.1:80"), Some(six))
                .unwrap_err()
                .to_string()
                .contains("one family")
        );
        let mut new = NewService::new(service("10.10.10.1:80"), None).unwrap();
        for (backend, says) in
            [("[2001:db8::2]:80", "one family"), ("10.10.10.1:81", "of service 10.10.10.1:80/tcp itself")]
        {
            let error = new.add_backend(endpoint(backend)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        new.add_backend(endpoint("192.168.1.1:80")).unwrap();
        new.add_backend(endpoint("192.168.1.1:81")).unwrap();
        assert!(new.add_backend(endpoint("192.168.1.1:80")).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn flow_tables_have_a_least_and_a_most() {
        assert_eq!("262144".parse::<MaxFlows>().unwrap().entries(), 524_288);
        for text in ["0", "-1", "134217729", "many"] {
            text.parse::<MaxFlows>().expect_err(text);
        }
    }
}
