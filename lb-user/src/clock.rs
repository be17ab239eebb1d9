//! The clock that the data path stamps flows with.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_common::Tick;
use nix::time::{ClockId, clock_getres};

use crate::program::load_undisturbed;

/// A program that returns the time, compiled for BPF.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/clock"));

/// Its name in the object and in the kernel.
const PROGRAM: &str = "clock";

/// The kernel runs XDP programs only on what could be a frame.
static FRAME: [u8; 64] = [0; 64];

/// The present tick.
///
/// # Errors
///
/// The kernel's, where it does not run the program.
pub(crate) fn now() -> anyhow::Result<Tick> {
    static LOADED: OnceLock<Ebpf> = OnceLock::new();
    let ebpf = match LOADED.get() {
        Some(ebpf) => ebpf,
        None => {
            let loaded = load().context("cannot load the program that reads the clock")?;
            LOADED.get_or_init(|| loaded)
        }
    };
    let program: &Xdp = ebpf.program(PROGRAM).context("the object holds no program 'clock'")?.try_into()?;
    let options = TestRunOptions { data_in: Some(&FRAME), ..TestRunOptions::new() };
    let result = program.test_run(options).context("cannot run the program that reads the clock")?;
    Ok(Tick::from_number(result.return_value))
}

fn load() -> anyhow::Result<Ebpf> {
    let mut ebpf = Ebpf::load(OBJECT)?;
    let program = ebpf.program_mut(PROGRAM).ok_or_else(|| anyhow!("the object holds no program 'clock'"))?;
    let program: &mut Xdp = program.try_into()?;
    load_undisturbed(program)?;
    Ok(ebpf)
}

/// How long those ticks take.
pub(crate) fn duration(ticks: u32) -> Duration {
    jiffy() * Tick::JIFFIES * ticks
}

/// The coarse clocks advance once a jiffy, so that this is their resolution.
pub(crate) fn jiffy() -> Duration {
    /// The longest that there is (CONFIG_HZ=100), should the kernel not tell: rather too patient than too hasty.
    const LONGEST: Duration = Duration::from_millis(10);
    static JIFFY: OnceLock<Duration> = OnceLock::new();
    *JIFFY.get_or_init(|| clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(LONGEST, Duration::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jiffy_is_what_some_kernel_is_configured_for() {
        let jiffies = [100, 250, 300, 1_000].map(|hertz| Duration::from_nanos(1_000_000_000 / hertz));
        assert!(
            jiffies.iter().any(|known| jiffy().abs_diff(*known) < Duration::from_micros(1)),
            "{:?}",
            jiffy()
        );
    }
}
