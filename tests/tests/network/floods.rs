//! First packets that nobody means: established connections notice nothing, and honest ones come about.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::Protocol;
use lb_ebpf::host::packet::{Control, Packet};
use lb_tests::topology::Topology;

use crate::fragments::mac;
use crate::support::{Family, Greeter, Manners, Visit, both_families, json, start};
use crate::wire::Wire;

/// How long a flood lasts.
const LASTS: Duration = Duration::from_secs(3);

/// Connections that are established before it.
const ESTABLISHED: usize = 100;

/// Source ports towards the backend: fewer than the flood has packets.
const PORTS: &str = "2000-11999";

#[test]
fn a_flood_of_syns_takes_the_places_of_its_own_kind_only() -> Result<()> {
    // The ports run out, and then the table, before the flood does.
    for (args, capacity) in [
        (["--snat-ports", PORTS, "--max-flows", "100000"], "ports"),
        (["--snat-ports", "1024-32767", "--max-flows", "10000"], "table"),
    ] {
        for family in Family::ALL {
            flood(family, &args).with_context(|| format!("{family:?}, too few places in the {capacity}"))?;
        }
    }
    Ok(())
}

fn flood(family: Family, args: &[&str]) -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let mut all = both_families(&topology, 80, "tcp");
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    let _balancer = start(&topology, &all)?;
    let to = family.service(80);
    let mut established = (0..ESTABLISHED)
        .map(|_| Visit::begin(&topology.client, to))
        .collect::<Result<Vec<_>>>()
        .context("before the flood")?;

    let wire = Wire::open(&topology.client, "eth0")?;
    let (from_mac, to_mac) = (mac((&topology.client, "eth0"))?, mac((&topology.balancer, "eth0"))?);
    let over = AtomicBool::new(false);
    let (sent, honest) = thread::scope(|scope| {
        let flooder = scope.spawn(|| -> Result<u64> {
            let mut sent = 0_u32;
            while !over.load(Ordering::Relaxed) {
                let syn = Packet {
                    control: Control::SYN,
                    payload: Vec::new(),
                    ..Packet::new(Protocol::Tcp, (from_mac, stranger(family, sent)), (to_mac, to))
                };
                // More than fits into the wire's queue is refused for a moment.
                match wire.send(&syn.frame()) {
                    Ok(()) => sent = sent.wrapping_add(1),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
            Ok(sent.into())
        });
        let honest = during(&topology, to, &mut established);
        over.store(true, Ordering::Relaxed);
        let sent = flooder.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        anyhow::Ok((sent, honest?))
    })?;
    let Honest { made, failed } = honest;
    println!("{family:?}: {sent} SYNs, {made} honest connections meanwhile, and {failed} that failed");
    ensure!(sent > 20_000, "that was no flood: {sent} SYNs");
    // One that is half open for as long as a round of all ports takes gives way, too: on a busy machine that is not long.
    ensure!(failed * 20 <= made.max(20), "{failed} honest connections failed, {made} did not");
    let status = json(&topology, &["stats"])?;
    let dropped = |reason: &str| status["reasons"][reason].as_u64().unwrap_or_default();
    ensure!(
        dropped("ports-exhausted") + dropped("table-full") < sent / 100,
        "{} and {} of {sent} SYNs found no place",
        dropped("ports-exhausted"),
        dropped("table-full")
    );
    for (number, visit) in established.iter_mut().enumerate() {
        visit
            .say("still here")
            .with_context(|| format!("established connection {number}, after the flood"))?;
    }
    Ok(())
}

/// Connections that were meant.
#[derive(Default)]
struct Honest {
    made: usize,
    failed: usize,
}

/// Talks over all established connections, and makes new ones, while the flood lasts.
fn during(topology: &Topology, to: SocketAddr, established: &mut [Visit]) -> Result<Honest> {
    let (begin, mut honest) = (Instant::now(), Honest::default());
    while begin.elapsed() < LASTS {
        for (number, visit) in established.iter_mut().enumerate() {
            visit.say("here").with_context(|| format!("established connection {number}"))?;
            if number % 10 == 0 {
                match Visit::begin(&topology.client, to).and_then(|mut visit| {
                    visit.say("hello")?;
                    visit.end(Manners::Echo)
                }) {
                    Ok(()) => honest.made += 1,
                    Err(_) => honest.failed += 1,
                }
            }
        }
    }
    Ok(honest)
}

/// An address that nobody has, behind the client, and a port.
fn stranger(family: Family, number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    let port = 1_024 + u16::from(c) * 7;
    match family {
        Family::V4 => SocketAddr::from(([198, 18 + (a & 1), b, c], port)),
        Family::V6 => SocketAddr::from(([0x2001, 0xdb8, 0xbad, 0, 0, a.into(), b.into(), c.into()], port)),
    }
}
