//! `cargo xtask bench`: how fast the balancer forwards on this machine.

use anyhow::Result;

use crate::setup::{self, Purpose};
use crate::{build, command, test};

pub(crate) fn bench(args: &[String]) -> Result<()> {
    setup::setup(&[Purpose::Build, Purpose::Bench])?;
    let lb = build::build()?;
    let mut cargo = command::cargo(["bench", "--quiet", "--package", "lb-tests", "--bench", "speed", "--"]);
    cargo.env("LB_BIN", &lb).args(args);
    test::as_root_between_cleanings(&mut cargo)
}
