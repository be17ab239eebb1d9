//! `cargo xtask build`: the release binary, with the XDP program in it.

use std::path::PathBuf;

use anyhow::Result;

use crate::setup::{self, Purpose};
use crate::{command, workspace};

/// Builds lb and returns where it is.
pub(crate) fn build() -> Result<PathBuf> {
    setup::setup(&[Purpose::Build])?;
    command::run(&mut command::cargo(["build", "--release", "--package", "lb-user"]))?;
    Ok(workspace::target().join("release/lb"))
}
