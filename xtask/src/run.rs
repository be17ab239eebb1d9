//! `cargo xtask run -- ARGS`: `lb run ARGS`, built first, with the rights it needs.

use anyhow::Result;

use crate::{build, root};

pub(crate) fn run(args: &[String]) -> Result<()> {
    let lb = build::build()?;
    if !root::is_root() {
        eprintln!("lb needs root to attach to an interface: starting it through sudo");
    }
    let mut lb = root::command(lb);
    lb.arg("run").args(args);
    Err(root::exec(lb))
}
