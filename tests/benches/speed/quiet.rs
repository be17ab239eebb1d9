//! Whether the machine has been left alone.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How much of a core others take from this thread: processes that it has to wait for, and what else the machine that
/// this one is emulated on has to do.
pub(crate) struct Watch {
    begin: Instant,
    waited: Duration,
    stolen: Ticks,
}

/// Of `USER_HZ`, a hundredth of a second each (proc(5)).
type Ticks = u64;

impl Watch {
    pub(crate) fn begin() -> Result<Self> {
        Ok(Self { begin: Instant::now(), waited: waited()?, stolen: stolen()? })
    }

    /// As a part of the time since the beginning. One tick of stolen time is nobody's fault.
    pub(crate) fn taken_by_others(&self) -> Result<f64> {
        let stolen = Duration::from_millis(10 * (stolen()? - self.stolen).saturating_sub(1));
        let taken = waited()? - self.waited + stolen;
        Ok(taken.as_secs_f64() / self.begin.elapsed().as_secs_f64())
    }
}

/// How long this thread has waited for a core: the second number of `schedstat`, in nanoseconds.
fn waited() -> Result<Duration> {
    let text = read("/proc/thread-self/schedstat")?;
    let number = text.split_whitespace().nth(1).context("schedstat has no second number")?;
    Ok(Duration::from_nanos(number.parse()?))
}

/// The eighth number of the first line, after its name.
fn stolen() -> Result<Ticks> {
    let text = read("/proc/stat")?;
    let number = text.split_whitespace().nth(8).context("/proc/stat has no time that was stolen")?;
    Ok(number.parse()?)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}
