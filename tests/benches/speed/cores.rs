//! Which core does what.

use anyhow::Result;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Frames are generated, forwarded and thrown away on one core, so that the generator's cost is in every figure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) measured: usize,
}

impl Cores {
    /// Keeps this thread, and with it the work on the frames that it generates, on the core that is measured.
    pub(crate) fn stay_on_the_measured(self) -> Result<()> {
        stay_on(self.measured)
    }

    /// The two that are used.
    pub(crate) fn both(self) -> [usize; 2] {
        [self.measured, usize::from(self.measured == 0)]
    }

    /// Lets this thread, and what it starts, be on both.
    pub(crate) fn stay_on_both(self) -> Result<()> {
        let mut cores = CpuSet::new();
        for core in self.both() {
            cores.set(core)?;
        }
        Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)
    }

    /// Keeps this thread, and what it starts, off the core that is measured.
    pub(crate) fn stay_on_the_other(self) -> Result<()> {
        stay_on(self.both()[1])
    }
}

pub(crate) fn stay_on(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)
}
