//! The network ring: the balancer between real clients and real servers. A module for each promise.

mod bulk;
mod bystanders;
mod changes;
mod checksums;
mod contract;
mod crowds;
mod edits;
mod floods;
mod fragments;
mod lifecycle;
mod next_hops;
mod path;
mod persistence;
mod recipe;
mod refusals;
mod scale;
mod session;
mod support;
mod vlans;
#[path = "../differential/wire.rs"]
mod wire;
