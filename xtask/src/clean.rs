//! `cargo xtask clean`: what demos and tests that were killed left behind.

use std::env;

use anyhow::{Context as _, Result};

use crate::{command, root};

pub(crate) fn clean() -> Result<()> {
    if !root::is_root() {
        let xtask = env::current_exe().context("cannot find the path of xtask")?;
        return command::run(root::command(xtask).arg("clean"));
    }
    for name in lb_tests::leftovers::remove()? {
        eprintln!("removed {name}, left behind by a run that was killed");
    }
    Ok(())
}
