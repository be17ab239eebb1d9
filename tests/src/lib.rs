//! Network namespaces with real clients, servers and the balancer: what the kernel tests and `cargo xtask demo` stand
//! on. Everything here needs root, touches nothing outside of namespaces of its own, and is gone when the guards are.
//!
//! A test usually needs no more than
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lb_tests::topology::Topology;
//!
//! let topology = Topology::two_arm(4)?;
//! let servers = topology.start_web_servers()?;
//! let balancer = topology.start_balancer(&["--service", "10.10.10.1:80/tcp", "--backend", "192.168.1.1:80"])?;
//! assert_eq!(topology.client.fetch("http://10.10.10.1/")?, "Server 1\n");
//! assert_eq!(servers[0].clients()?, ["10.10.10.1"]);
//! balancer.stop()?;
//! # Ok(())
//! # }
//! ```

pub mod balancer;
pub mod guest;
pub mod leftovers;
pub mod link;
pub mod namespace;
pub mod process;
pub mod topology;
pub mod web;
