//! The kernel as oracle: the same traffic goes through the iptables recipe and through lb, each in a namespace of its own
//! between hosts that the test plays, and what comes out on both sides is compared packet by packet.
//!
//! Scripts come from seeds ([`random`], [`icmp`]) or are written down ([`oddities`]). They say who says what in which
//! session ([`script`]); what depends on a balancer's choices is filled in as it is played ([`pair`]), in frames written
//! from scratch ([`packet`]). What comes out is compared in a form without those choices ([`canonical`]).
//!
//! `cargo xtask test --ring network -- icmpv4` runs what has that in its name. LB_SEED=4711 plays other scripts.

mod canonical;
mod categories;
mod dut;
mod hosts;
mod icmp;
mod layout;
mod oddities;
mod packet;
mod pair;
mod random;
mod report;
mod script;
mod wire;
