//! Programs that do a part of the work, with errors that name them.

use std::env;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
pub(crate) use lb_tests::process::show;

use crate::workspace;

/// A command of cargo in the workspace.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut cargo = Command::new(workspace::cargo());
    cargo.args(args).current_dir(workspace::root());
    cargo
}

/// Runs a program that talks to the user itself.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// The target that rustc builds for if nobody says which.
pub(crate) fn host_triple() -> String {
    query("rustc", &["-vV"])
        .and_then(|versions| versions.lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)))
        .unwrap_or_else(|| format!("{}-unknown-linux-gnu", env::consts::ARCH))
}

/// What a program prints, or `None` if it is not there or fails.
pub(crate) fn query(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).env("LC_ALL", "C").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
