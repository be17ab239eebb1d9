//! What the kernel and lb have to do alike: a test for each kind of traffic, and one for all kinds together.

use anyhow::Result;
use lb_common::Protocol;

use crate::dut::Balancing;
use crate::hosts::Family;
use crate::pair::Setting;
use crate::random::Mixture;
use crate::report::check_mixture;

/// Some of everything.
const EVERYTHING: Mixture =
    Mixture { options: 15, errors: 15, fragments: 15, expiring: 5, sessions: 12, ..Mixture::PLAIN };

#[test]
fn tcp_sessions_come_out_as_from_the_kernel() -> Result<()> {
    check_mixture(&Mixture { protocols: &[Protocol::Tcp], ..Mixture::PLAIN }, Setting::default())
}

#[test]
fn udp_sessions_come_out_as_from_the_kernel() -> Result<()> {
    check_mixture(&Mixture { protocols: &[Protocol::Udp], ..Mixture::PLAIN }, Setting::default())
}

#[test]
fn ipv4_options_come_out_as_from_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V4], options: 60, ..Mixture::PLAIN }, Setting::default())
}

#[test]
fn ipv6_extension_headers_come_out_as_from_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V6], options: 60, ..Mixture::PLAIN }, Setting::default())
}

#[test]
fn icmpv4_errors_come_out_as_from_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V4], errors: 40, ..Mixture::PLAIN }, Setting::default())
}

#[test]
fn icmpv6_errors_come_out_as_from_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V6], errors: 40, ..Mixture::PLAIN }, Setting::default())
}

#[test]
fn ipv4_fragments_come_out_as_from_the_kernel() -> Result<()> {
    let protocols = &[Protocol::Udp];
    let mixture = Mixture { families: &[Family::V4], protocols, fragments: 50, ..Mixture::PLAIN };
    check_mixture(&mixture, Setting::default())
}

#[test]
fn ipv6_fragments_come_out_as_from_the_kernel() -> Result<()> {
    let protocols = &[Protocol::Udp];
    let mixture = Mixture { families: &[Family::V6], protocols, fragments: 50, ..Mixture::PLAIN };
    check_mixture(&mixture, Setting::default())
}

#[test]
fn an_ipv4_ttl_that_ends_here_is_answered_as_by_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V4], expiring: 20, ..Mixture::PLAIN }, Setting::default())
}

#[test]
fn an_ipv6_hop_limit_that_ends_here_is_answered_as_by_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V6], expiring: 20, ..Mixture::PLAIN }, Setting::default())
}

/// The servers' side takes less than some packets of clients have.
const NARROW: Setting = Setting { other: Balancing::Lb, server_mtu: 1_300 };

/// Packets for that.
const LARGE: Mixture = Mixture { dont_fragment: 100, most_from_server: 1_160, ..Mixture::PLAIN };

#[test]
fn an_ipv4_packet_that_is_too_big_is_answered_as_by_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V4], ..LARGE }, NARROW)
}

#[test]
fn an_ipv6_packet_that_is_too_big_is_answered_as_by_the_kernel() -> Result<()> {
    check_mixture(&Mixture { families: &[Family::V6], ..LARGE }, NARROW)
}

#[test]
fn everything_at_once_comes_out_as_from_the_kernel() -> Result<()> {
    check_mixture(&EVERYTHING, Setting::default())
}

#[test]
fn the_kernel_agrees_with_itself_whatever_ports_it_takes() -> Result<()> {
    check_mixture(&EVERYTHING, Setting { other: Balancing::KernelAtRandom, ..Setting::default() })?;
    check_mixture(
        &Mixture { most_from_server: LARGE.most_from_server, ..EVERYTHING },
        Setting { other: Balancing::KernelAtRandom, ..NARROW },
    )
}
