//! `cargo xtask demo`: the balancer at work, without touching anything of this host's network.

use std::env;
use std::fmt::Display;
use std::path::{self, PathBuf};

use anyhow::{Context as _, Result, bail};
use lb_tests::topology::{Topology, VIP, VIP_V6};
use lb_tests::web::Web;

use crate::setup::{self, Purpose};
use crate::signals::{self, Interrupt};
use crate::{build, clean, root};

const SERVERS: u8 = 4;

/// Two rounds, so that one sees it begin again.
const REQUESTS: u8 = 2 * SERVERS;

const PICTURE: &str = "
                                                              ┌─ server 1  192.168.1.1  2001:db8:1::1
   client ────────────── balancer ────────────────── switch ──┼─ server 2  192.168.1.2  2001:db8:1::2
   10.10.10.2      eth0            eth1                       ├─ server 3  192.168.1.3  2001:db8:1::3
   2001:db8:10::2  10.10.10.1      192.168.1.254              └─ server 4  192.168.1.4  2001:db8:1::4
                   2001:db8:10::1  2001:db8:1::fe
                   (the VIPs)
";

pub(crate) fn demo(lb: Option<PathBuf>) -> Result<()> {
    let lb = if let Some(lb) = lb {
        setup::setup(&[Purpose::Demo])?;
        path::absolute(lb).context("cannot tell the current directory")?
    } else {
        setup::setup(&[Purpose::Build, Purpose::Demo])?;
        build::build()?
    };
    if !lb.is_file() {
        bail!("there is no binary at {}: build it with `cargo xtask build`", lb.display());
    }
    if !root::is_root() {
        eprintln!("Network namespaces need root: going on through sudo.");
        let xtask = env::current_exe().context("cannot find the path of xtask")?;
        let mut demo = root::command(xtask);
        demo.arg("demo").arg("--lb").arg(lb);
        return Err(root::exec(demo));
    }
    let interrupt = signals::outlive()?;
    clean::clean()?;
    // All guards of the show are gone, and with them all that it made, when it returns.
    let shown = show(lb, &interrupt);
    if interrupt.noted() {
        bail!("interrupted; the namespaces, their processes and files are removed");
    }
    shown?;
    println!("\nDone. The namespaces, their processes and files are removed.");
    println!(
        "On an interface of your own: cargo xtask run -- --iface eth0 --service ADDRESS:PORT --backend ADDRESS:PORT"
    );
    Ok(())
}

fn show(lb: PathBuf, interrupt: &Interrupt) -> Result<()> {
    heading("A network in namespaces of its own");
    println!("{PICTURE}");
    let topology = Topology::two_arm(SERVERS)?.with_binary(lb);
    interrupt.check()?;

    heading("Four nginx, each with a page that says which server it is");
    let servers = topology.start_web_servers()?;
    interrupt.check()?;

    heading("The balancer, inside of its namespace");
    let args = services(&topology);
    println!("$ lb run {}", on_lines(&topology, &args));
    let mut balancer = topology.start_balancer(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    for line in balancer.process().stdout() {
        println!("{line}");
    }
    interrupt.check()?;

    let mut seen = vec![0; servers.len()];
    for (family, vip, url) in [
        ("IPv4", VIP.to_string(), format!("http://{VIP}/")),
        ("IPv6", VIP_V6.to_string(), format!("http://[{VIP_V6}]/")),
    ] {
        heading(format!("{REQUESTS} requests of the client, over {family}"));
        requests(&topology, &url, interrupt)?;
        clients(&servers, &mut seen, &vip)?;
    }

    heading("What the balancer counted");
    println!("$ lb status");
    print!("{}", topology.lb(&["status"])?);
    balancer.stop()
}

/// One service for each family, each with all the servers.
fn services(topology: &Topology) -> Vec<String> {
    let mut args = vec!["--service".to_owned(), format!("{VIP}:80/tcp")];
    args.extend(
        topology.servers.iter().flat_map(|server| ["--backend".to_owned(), format!("{}:80", server.ipv4)]),
    );
    args.extend(["--service".to_owned(), format!("[{VIP_V6}]:80/tcp")]);
    args.extend(
        topology.servers.iter().flat_map(|server| ["--backend".to_owned(), format!("[{}]:80", server.ipv6)]),
    );
    args
}

/// The arguments as one would write them in a script.
fn on_lines(topology: &Topology, args: &[String]) -> String {
    let mut text = topology.interfaces().iter().map(|name| format!("--iface {name} ")).collect::<String>();
    for pair in args.chunks(2) {
        let [option, value] = pair else { continue };
        text += if option == "--service" { "\\\n    " } else { "\\\n        " };
        text += &format!("{option} {value} ");
    }
    text
}

fn requests(topology: &Topology, url: &str, interrupt: &Interrupt) -> Result<()> {
    for _ in 0..REQUESTS {
        let answer = topology.client.fetch(url)?;
        println!("  curl {url}    {}", answer.trim_end());
        interrupt.check()?;
    }
    Ok(())
}

/// Shows what the servers logged since the last time, of which there were `seen` lines.
fn clients(servers: &[Web], seen: &mut [usize], vip: &str) -> Result<()> {
    println!(
        "\nThe client addresses in the servers' logs, each the balancer's own, so that the answers come back:"
    );
    for (number, (server, seen)) in (1..).zip(servers.iter().zip(seen)) {
        let clients = server.clients()?;
        let new = clients.get(*seen..).unwrap_or_default();
        println!("  server {number}: {}", new.join(" "));
        *seen = clients.len();
        if let Some(other) = new.iter().find(|client| *client != vip) {
            bail!("server {number} saw {other} instead of {vip}");
        }
    }
    Ok(())
}

fn heading(text: impl Display) {
    println!("\n== {text}");
}
