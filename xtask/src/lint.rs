//! `cargo xtask lint`: formatting, clippy, house rules. The same lints for every crate, the kernel's included.

use anyhow::{Result, bail};

use crate::setup::{self, Purpose};
use crate::{command, workspace};

mod tidy;

pub(crate) fn lint() -> Result<()> {
    setup::setup(&[Purpose::Lint])?;
    house_rules()?;
    command::run(&mut command::cargo(["fmt", "--all", "--check"]))?;
    command::run(&mut clippy(["--workspace", "--all-targets"]))?;
    // Debian's compiler for BPF has no clippy. The XDP program's crates compile for the host too, so clippy reads the
    // binary's sources there; what only BPF has (inline assembly) stays behind `cfg(target_arch)` and goes unread.
    command::run(&mut clippy(["--package", "lb-ebpf", "--bins", "--features", "ebpf"]))
}

fn clippy<const N: usize>(what: [&str; N]) -> std::process::Command {
    let mut clippy = command::cargo(["clippy"]);
    clippy.args(what).args(["--", "--deny", "warnings"]);
    clippy
}

fn house_rules() -> Result<()> {
    let broken = tidy::check(workspace::root())?;
    if broken.is_empty() {
        return Ok(());
    }
    for line in &broken {
        eprintln!("{line}");
    }
    bail!("{} lines break the rules of the house: see xtask/src/lint/tidy.rs", broken.len())
}
