//! A real client and a real server: wrk and nginx.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lb_tests::balancer::Balancer;
use lb_tests::link;
use lb_tests::process::Process;
use lb_tests::topology::{Topology, VIP};
use lb_tests::web::{Web, find_server};

use crate::cores::Cores;
use crate::work::Subject;

/// What is between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A router.
    Routed,
    /// The balancer.
    Balancer,
    /// HAProxy in TCP mode.
    Haproxy,
}

/// How many requests a connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    KeptAlive,
    OneARequest,
}

/// Requests, in thousands a second.
pub(crate) struct Fetching {
    wrk: Command,
    _between: Between,
    _web: Vec<Web>,
    _topology: Topology,
    cores: Cores,
}

enum Between {
    Router,
    Balancer(#[expect(dead_code, reason = "it runs until it is dropped")] Balancer),
    Haproxy(#[expect(dead_code, reason = "it runs until it is dropped")] Process),
}

impl Fetching {
    /// How long wrk has to say so, and how many connections it has at a time.
    const SECONDS: &str = "2s";
    const CONNECTIONS: &str = "32";

    pub(crate) fn new(way: Way, connections: Connections, cores: Cores) -> Result<Self> {
        // What works here works on any core, as it would without being measured.
        cores.stay_on_both()?;
        let topology = Topology::two_arm(1)?;
        let web = topology.start_web_servers()?;
        let server = topology.servers.first().context("there is no server")?.ipv4;
        let (between, target) = match way {
            Way::Routed => {
                topology.balancer.sysctl("net/ipv4/ip_forward", "1")?;
                link::route(&topology.client, &format!("{server}/32"), &VIP.to_string())?;
                (Between::Router, server)
            }
            Way::Balancer => {
                let (service, backend) = (format!("{VIP}:80/tcp"), format!("{server}:80"));
                let balancer = topology.start_balancer(&["--service", &service, "--backend", &backend])?;
                (Between::Balancer(balancer), VIP)
            }
            Way::Haproxy => (Between::Haproxy(haproxy(&topology, &format!("{server}:80"))?), VIP),
        };
        let mut wrk = topology.client.command("wrk");
        wrk.args(["--threads", "1", "--connections", Self::CONNECTIONS, "--duration", Self::SECONDS]);
        if connections == Connections::OneARequest {
            wrk.args(["--header", "Connection: close"]);
        }
        wrk.arg(format!("http://{target}/"));
        Ok(Self { wrk, _between: between, _web: web, _topology: topology, cores })
    }
}

impl Subject for Fetching {
    fn measure(&mut self) -> Result<f64> {
        self.cores.stay_on_both()?;
        let said = lb_tests::process::output(&mut self.wrk)?;
        self.cores.stay_on_the_measured()?;
        let value = |name| said.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
        if let Some(errors) = value("Non-2xx or 3xx responses:") {
            bail!("{errors} answers are errors");
        }
        let speed: f64 = value("Requests/sec:").with_context(|| format!("wrk says only {said}"))?.parse()?;
        Ok(speed / 1e3)
    }
}

/// Starts HAProxy on the balancer's machine, for one server.
fn haproxy(topology: &Topology, server: &str) -> Result<Process> {
    let program = find_server("haproxy").context("there is no haproxy here: type `cargo xtask setup`")?;
    let file = topology.tag().directory().join("haproxy.cfg");
    let configuration = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         listen web\n bind {VIP}:80\n server server {server}\n"
    );
    fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = topology.balancer.command(program);
    command.arg("-db").arg("-f").arg(&file);
    let mut process = Process::spawn(&mut command)?;
    process.wait_until(std::time::Duration::from_secs(5), |_| {
        topology.client.fetch(&format!("http://{VIP}/")).is_ok()
    })?;
    Ok(process)
}
