//! Much through one connection.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lb_tests::namespace::Namespace;
use lb_tests::topology::Topology;

use crate::support::{Family, PATIENCE, Sockets as _, both_families, json, start};

const LENGTH: usize = 100_000_000;
const BLOCK: usize = 64 * 1024;

/// Bytes that nobody guesses and both ends know: xorshift64 (Marsaglia 2003) from a seed.
struct Stream(u64);

impl Stream {
    /// The next bytes, whole words of them.
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

fn send(stream: &mut TcpStream, seed: u64, length: usize) -> Result<()> {
    let (mut bytes, mut block, mut left) = (Stream(seed), vec![0; BLOCK], length);
    while left > 0 {
        bytes.fill(&mut block);
        let length = left.min(BLOCK);
        stream.write_all(&block[..length]).with_context(|| format!("{left} bytes before the end"))?;
        left -= length;
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn receive(stream: &mut TcpStream, seed: u64, length: usize) -> Result<()> {
    let (mut bytes, mut block, mut got, mut left) = (Stream(seed), vec![0; BLOCK], vec![0; BLOCK], length);
    while left > 0 {
        bytes.fill(&mut block);
        let length = left.min(BLOCK);
        stream.read_exact(&mut got[..length]).with_context(|| format!("{left} bytes before the end"))?;
        ensure!(got[..length] == block[..length], "other bytes arrived, {left} before the end");
        left -= length;
    }
    ensure!(stream.read(&mut got)? == 0, "more arrived than was sent");
    Ok(())
}

/// One connection, with a server that takes the client's stream and then sends its own, each of that length.
pub(crate) fn both_directions(
    from: &Namespace,
    listener: &TcpListener,
    family: Family,
    length: usize,
) -> Result<()> {
    let (upwards, downwards) = (0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            receive(&mut stream, upwards, length).context("towards the server")?;
            send(&mut stream, downwards, length).context("towards the client")
        });
        let client = || {
            let mut stream = from.connect(family.service(80))?;
            // The other direction begins when this one is done.
            stream.set_read_timeout(Some(4 * PATIENCE))?;
            send(&mut stream, upwards, length).context("from the client")?;
            receive(&mut stream, downwards, length).context("from the server")
        };
        let received = client();
        server.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        received
    })
}

#[test]
fn a_hundred_megabytes_arrive_whole_in_each_direction_over_each_family() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    for family in Family::ALL {
        let listener = topology.servers[0].namespace.listen(family.at(&topology.servers[0], 80))?;
        let begin = Instant::now();
        both_directions(&topology.client, &listener, family, LENGTH)
            .with_context(|| format!("{family:?}"))?;
        println!("{family:?}: {:.1} s", begin.elapsed().as_secs_f64());
    }
    Ok(())
}

#[test]
fn jumbo_frames_arrive_whole_in_every_mode() -> Result<()> {
    const MTU: &str = "9000";
    const LENGTH: usize = 20_000_000;
    for mode in ["native", "generic"] {
        let topology = Topology::two_arm(1)?;
        let server = &topology.servers[0];
        let ends = [
            (&topology.client, "eth0"),
            (&topology.balancer, "eth0"),
            (&topology.balancer, "eth1"),
            (&topology.switch, "port-balancer"),
            (&topology.switch, "port-1"),
            (&topology.switch, "br0"),
            (&server.namespace, "eth0"),
        ];
        for (namespace, device) in ends {
            namespace.ip(&format!("link set dev {device} mtu {MTU}"))?;
        }
        let mut args = both_families(&topology, 80, "tcp");
        args.extend(["--mode".to_owned(), mode.to_owned()]);
        let _balancer = start(&topology, &args)?;
        for family in Family::ALL {
            let listener = server.namespace.listen(family.at(server, 80))?;
            both_directions(&topology.client, &listener, family, LENGTH)
                .with_context(|| format!("{family:?}, {mode}"))?;
        }
        for service in json(&topology, &["status"])?["services"].as_array().context("no services")? {
            let backend = &service["backends"][0];
            let number = |name: &str| backend[name].as_u64().with_context(|| format!("no {name}: {backend}"));
            // Acknowledgements go the other way meanwhile.
            let mean = number("bytes")? / number("packets")?;
            ensure!(mean > 2_000, "{mode}: frames had {mean} bytes on average");
        }
    }
    Ok(())
}
