//! `cargo xtask profile`: where the nanoseconds of a packet go.

use anyhow::Result;

use crate::bench;
use crate::setup::{self, Purpose};

pub(crate) fn profile(args: &[String]) -> Result<()> {
    setup::setup(&[Purpose::Profile])?;
    bench::bench(&[&["--profile".to_owned()], args].concat())
}
