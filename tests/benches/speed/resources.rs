//! What a forwarder takes of the machine: time to begin, and memory.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::maps::MapData;

use crate::cores::Cores;
use crate::lane::Lane;
use crate::setting::Setting;
use crate::work::Subject;

/// Milliseconds until the forwarder is ready.
pub(crate) struct Start {
    pub(crate) setting: Setting,
    pub(crate) cores: Cores,
}

impl Subject for Start {
    fn measure(&mut self) -> Result<f64> {
        Ok(Lane::new(self.setting, self.cores)?.started_within.as_secs_f64() * 1e3)
    }
}

/// Bytes that a connection takes: of the kernel's own, what its slabs grow by; of the balancer's, what its tables for twice
/// as many are larger.
pub(crate) struct Memory {
    pub(crate) setting: Setting,
    pub(crate) cores: Cores,
}

impl Subject for Memory {
    fn measure(&mut self) -> Result<f64> {
        let setting = self.setting;
        let [less, more] = if setting.is_kernel() {
            let mut lane = Lane::new(setting, self.cores)?;
            let before = slabs()?;
            lane.begin_all_flows()?;
            [before, slabs()?]
        } else {
            let tables = |setting| pinned_maps(&Lane::new(setting, self.cores)?);
            // The balancer gets room for a little more than that.
            let flows = setting.flows / 21 * 20;
            [tables(Setting { flows, ..setting })?, tables(Setting { flows: 2 * flows, ..setting })?]
        };
        Ok(f64::from(u32::try_from(more.saturating_sub(less))?) / f64::from(setting.flows))
    }
}

/// The size of the maps that a balancer has pinned, in bytes, as the kernel counts them.
fn pinned_maps(lane: &Lane) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(lane.tag.pin_dir())? {
        let path = entry?.path();
        // There are other things, and directories.
        let Ok(map) = MapData::from_pin(&path) else { continue };
        let file = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        sum +=
            number(&fs::read_to_string(&file)?, "memlock:").with_context(|| format!("no size in {file}"))?;
    }
    Ok(sum)
}

/// What the kernel has in slabs and uses, in bytes. Of each line the second number is of objects in use, the fourth their
/// size (slabinfo(5)).
fn slabs() -> Result<u64> {
    let text = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    let used = |line: &str| {
        let mut numbers = line.split_whitespace().skip(1);
        Some(numbers.next()?.parse::<u64>().ok()? * numbers.nth(1)?.parse::<u64>().ok()?)
    };
    Ok(text.lines().filter_map(used).sum())
}

/// The number behind a name.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
