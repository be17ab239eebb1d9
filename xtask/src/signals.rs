//! Ctrl-C and SIGTERM, noted instead of deadly: there is something to clean up first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether somebody wants this process to end.
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// From now on, signals that ask this process to end are only noted.
pub(crate) fn outlive() -> Result<Interrupt> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot handle signals")?;
    }
    Ok(Interrupt(flag))
}

impl Interrupt {
    pub(crate) fn noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once a signal was noted: the guards on the way out clean up.
    pub(crate) fn check(&self) -> Result<()> {
        if self.noted() {
            bail!("interrupted");
        }
        Ok(())
    }
}
