//! The kernel as oracle: the same traffic goes through the iptables recipe and through lb, each in a namespace of its own
//! between hosts that the test plays, and what comes out on both sides is compared packet by packet.
//!
//! `cargo xtask test --ring network -- sessions` runs what has that in its name. LB_SEED=4711 plays other scripts.

mod canonical;
mod categories;
mod dut;
mod hosts;
mod icmp;
mod layout;
mod packet;
mod pair;
mod random;
mod report;
mod script;
mod wire;
