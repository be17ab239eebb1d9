//! A running `lb run`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::process::Process;

/// How long the balancer may take until it says that it is ready. On an emulated machine the verifier takes seconds.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Where the binary is: LB_BIN, or what `cargo xtask build` makes.
pub fn binary() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("release/lb");
    env::var_os("LB_BIN").map_or_else(built, PathBuf::from)
}

/// `lb run`, ready to balance. Dropping it stops it.
#[derive(Debug)]
pub struct Balancer {
    process: Process,
}

impl Balancer {
    /// Starts the command and waits for the line that begins with `ready`.
    ///
    /// # Errors
    ///
    /// If it ends, or is not ready in time; the error has what it printed.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut process = Process::spawn(command)?;
        process.wait_until(READY_WITHIN, |process| {
            process.stdout().iter().any(|line| line.starts_with("ready"))
        })?;
        Ok(Self { process })
    }

    /// The process, to send it signals and to see what it printed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops it as Ctrl-C does.
    ///
    /// # Errors
    ///
    /// If it does not end in time, or not with exit status 0.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop(Signal::SIGINT)?;
        if !status.success() {
            bail!("lb ended with {status} after Ctrl-C:\n{}", self.process.stderr().join("\n"));
        }
        Ok(())
    }
}
