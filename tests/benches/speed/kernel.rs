//! The kernel as a forwarder: what people do without a program of their own.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use lb_tests::namespace::Namespace;

use crate::setting::{Family, SERVER_PORT, SERVICE_PORT, Setting, Transport};

/// Deals connections out in turn, by rules for each server, and hides clients: the recipe that people start with.
pub(crate) fn recipe(inside: &Namespace, setting: &Setting, directory: &Path) -> Result<()> {
    forward(inside)?;
    let (vip, protocol) = (setting.vip(), protocol(setting));
    let mut rules = "*nat\n".to_owned();
    for service in 0..setting.services {
        for number in 0..setting.backends {
            let left = setting.backends - number;
            let to = SocketAddr::new(setting.server(number), SERVER_PORT);
            writeln!(
                rules,
                "-A PREROUTING -d {vip} -p {protocol} --dport {} -m statistic --mode nth --every {left} --packet 0 \
                 -j DNAT --to-destination {to}",
                SERVICE_PORT + service
            )?;
        }
    }
    for number in 0..setting.backends {
        let server = setting.server(number);
        writeln!(
            rules,
            "-A POSTROUTING -d {server} -p {protocol} --dport {SERVER_PORT} -j SNAT --to-source {vip}"
        )?;
    }
    rules.push_str("COMMIT\n");
    let program = match setting.family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    run_on(inside, &[program], &rules, directory)
}

/// The same by one rule that looks up in a map.
pub(crate) fn nft_map(inside: &Namespace, setting: &Setting, directory: &Path) -> Result<()> {
    forward(inside)?;
    let (vip, protocol) = (setting.vip(), protocol(setting));
    let ip = match setting.family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let servers: Vec<_> = (0..setting.backends).map(|number| setting.server(number).to_string()).collect();
    let elements: Vec<_> =
        (0..).zip(&servers).map(|(number, server)| format!("{number} : {server}")).collect();
    let last = SERVICE_PORT + setting.services - 1;
    let rules = format!(
        "table {ip} lb {{
             set servers {{ type ipv{version}_addr; elements = {{ {servers} }} }}
             chain prerouting {{
                 type nat hook prerouting priority dstnat;
                 {ip} daddr {vip} {protocol} dport {SERVICE_PORT}-{last} \
                     dnat to numgen inc mod {count} map {{ {elements} }} : {SERVER_PORT}
             }}
             chain postrouting {{
                 type nat hook postrouting priority srcnat;
                 {ip} daddr @servers {protocol} dport {SERVER_PORT} snat to {vip}
             }}
         }}\n",
        version = if setting.family == Family::V4 { 4 } else { 6 },
        servers = servers.join(", "),
        elements = elements.join(", "),
        count = setting.backends,
    );
    run_on(inside, &["nft", "-f"], &rules, directory)
}

fn forward(inside: &Namespace) -> Result<()> {
    inside.sysctl("net/ipv4/ip_forward", "1")?;
    inside.sysctl("net/ipv6/conf/all/forwarding", "1")
}

fn protocol(setting: &Setting) -> &'static str {
    match setting.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn run_on(inside: &Namespace, command: &[&str], rules: &str, directory: &Path) -> Result<()> {
    let file = directory.join("rules").display().to_string();
    fs::write(&file, rules).with_context(|| format!("cannot write {file}"))?;
    let (program, args) = command.split_first().context("no command")?;
    inside.run(program, args.iter().copied().chain([file.as_str()])).map(drop)
}
