//! What this host has to offer: rights, kernel, namespaces.

use std::{fs, iter, path::PathBuf, process, str::FromStr as _};

use anyhow::{Context as _, bail};
use aya::util::KernelVersion;
use nix::sched::{CloneFlags, setns};

use crate::model::PortRange;

/// Bits of `CapEff` in /proc/self/status: include/uapi/linux/capability.h.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_BPF: u64 = 1 << 39;

/// What the data path needs of the kernel, and since when it has it.
const NEEDS: [(u8, u8, &str); 4] = [
    (5, 6, "batch reading of maps"),
    (5, 9, "links for XDP programs"),
    (5, 12, "atomic fetch-and-add in BPF programs"),
    (5, 18, "XDP on frames in several pieces"),
];

/// Whether this process may do what `what` does.
///
/// # Errors
///
/// It may not.
pub(crate) fn check_rights(what: &str) -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    if may_administer(effective_capabilities(&status)) {
        return Ok(());
    }
    bail!("`{what}` needs the rights of root (CAP_BPF and CAP_NET_ADMIN): run it with sudo")
}

fn effective_capabilities(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0)
}

fn may_administer(capabilities: u64) -> bool {
    let has = |capability: u64| capabilities & capability != 0;
    has(CAP_NET_ADMIN) && (has(CAP_BPF) || has(CAP_SYS_ADMIN))
}

/// Whether the kernel has all that is needed.
///
/// # Errors
///
/// It is too old; the sentence names what is missing.
pub(crate) fn check_kernel() -> anyhow::Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's version")?;
    let kernel = KernelVersion::current().context("cannot read the kernel's version")?;
    let missing: Vec<_> = NEEDS
        .iter()
        .filter(|(major, minor, _)| kernel < KernelVersion::new(*major, *minor, 0))
        .map(|(major, minor, what)| format!("{what} ({major}.{minor})"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("kernel {} is too old: it does not have {}", release.trim(), missing.join(", "))
}

/// Whether pins made here do not show in other shells: this process, or one that it comes from, has left the mount
/// namespace of its parent, as `ip netns exec` does.
pub(crate) fn in_own_mount_namespace() -> bool {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace(process::id());
    let ancestors = iter::successors(parent(process::id()), |pid| parent(*pid));
    own.is_some() && ancestors.filter_map(namespace).any(|theirs| Some(theirs) != own)
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    (parent != 0).then_some(parent)
}

/// Enters the network namespace of a process: interfaces, routes and neighbours are those that it sees.
pub(crate) fn enter_network_of(pid: u32) -> anyhow::Result<()> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let theirs = fs::read_link(&path)
        .with_context(|| format!("cannot find the network namespace of process {pid}"))?;
    if fs::read_link("/proc/self/ns/net").is_ok_and(|ours| ours == theirs) {
        return Ok(());
    }
    let namespace = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter the network namespace of lb run (process {pid})"))
}

/// Ports that this host's own connections take their source port from.
pub(crate) fn ephemeral_ports() -> Option<PortRange> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    PortRange::from_str(&format!("{first}-{}", last.trim())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_two_capabilities_may_administer_and_nobody_else() {
        for (line, may) in [
            ("CapEff:\t000001ffffffffff", true),
            ("CapEff:\t0000008000001000", true),
            ("CapEff:\t0000000000201000", true),
            ("CapEff:\t0000008000000000", false),
            ("CapEff:\t0000000000000000", false),
            ("", false),
        ] {
            assert_eq!(may_administer(effective_capabilities(line)), may, "{line}");
        }
    }
}
