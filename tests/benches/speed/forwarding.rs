//! Packets through a forwarder.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cores::Cores;
use crate::hosts::BURST;
use crate::lane::Lane;
use crate::setting::Setting;
use crate::work::{Percentile, Subject};

/// How long a measurement takes. Each call of the generator takes milliseconds to set up.
const MEASUREMENT: Duration = Duration::from_millis(400);
/// Frames to see how fast it is.
const TRIAL: u32 = 1 << 16;

/// Packets of connections that are known, in millions a second.
pub(crate) struct Forwarding {
    lane: Lane,
    /// How many frames take about as long as a measurement is to take.
    frames: u32,
}

impl Forwarding {
    pub(crate) fn new(setting: Setting, cores: Cores) -> Result<Self> {
        let mut lane = Lane::with_flows(setting, cores)?;
        let took = lane.hosts.generate(TRIAL)?;
        Ok(Self { lane, frames: frames_within(MEASUREMENT, took) })
    }
}

impl Subject for Forwarding {
    fn measure(&mut self) -> Result<f64> {
        undisturbed(|| {
            let before = self.lane.hosts.sunk()?;
            let took = self.lane.hosts.generate(self.frames)?;
            speed(self.lane.hosts.sunk()? - before, self.frames, took)
        })
    }
}

/// Measures again where frames were lost: their senders wait for nobody, and somebody else had the core.
fn undisturbed(mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    const ATTEMPTS: usize = 3;
    for _ in 1..ATTEMPTS {
        if let Ok(speed) = measure() {
            return Ok(speed);
        }
    }
    measure()
}

/// The same, on two cores.
pub(crate) struct OnBoth {
    lane: Lane,
    cores: Cores,
    frames: u32,
}

impl OnBoth {
    pub(crate) fn new(setting: Setting, cores: Cores) -> Result<Self> {
        let mut lane = Lane::with_flows(Setting { queues: cores.both().len(), ..setting }, cores)?;
        let took = lane.hosts.generate_on(&cores.both(), TRIAL)?;
        Ok(Self { lane, cores, frames: frames_within(MEASUREMENT, took) })
    }
}

impl Subject for OnBoth {
    fn measure(&mut self) -> Result<f64> {
        undisturbed(|| {
            let before = self.lane.hosts.sunk()?;
            let took = self.lane.hosts.generate_on(&self.cores.both(), self.frames)?;
            speed(self.lane.hosts.sunk()? - before, 2 * self.frames, took)
        })
    }
}

/// How long a packet is under way, in microseconds, while the forwarder has half of what it can do, in bursts. Most of that
/// time packets wait for those before them in their burst.
pub(crate) struct Delay {
    lane: Lane,
    which: Percentile,
    frames: u32,
}

impl Delay {
    pub(crate) fn new(setting: Setting, cores: Cores, which: Percentile) -> Result<Self> {
        let mut lane = Lane::with_flows(setting, cores)?;
        let took = lane.hosts.generate(TRIAL)?;
        let interval = 2 * took.as_nanos() * u128::from(BURST) / u128::from(TRIAL);
        lane.hosts.pace(u64::try_from(interval)?)?;
        Ok(Self { lane, which, frames: frames_within(MEASUREMENT, 2 * took) })
    }
}

impl Subject for Delay {
    fn measure(&mut self) -> Result<f64> {
        let before = self.lane.hosts.delays()?;
        let _took = self.lane.hosts.generate(self.frames)?;
        let counts: Vec<_> =
            self.lane.hosts.delays()?.iter().zip(&before).map(|(after, before)| after - before).collect();
        let index = at(&counts, self.which).context("no frame arrived")?;
        // Of the times that are counted together, the middle.
        Ok((f64::from(u32::try_from(index)?) + 0.5) * 0.032)
    }
}

/// The index at which so many of all counts have been passed.
fn at(counts: &[u64], Percentile(of_1000): Percentile) -> Option<usize> {
    let rank = counts.iter().sum::<u64>().checked_mul(of_1000)? / 1_000;
    let mut passed = 0;
    counts.iter().position(|count| {
        passed += count;
        passed > rank
    })
}

/// New connections, in thousands a second; each time with a forwarder that has just begun, so that tables are empty and no
/// port is taken.
pub(crate) struct Opening {
    pub(crate) setting: Setting,
    pub(crate) cores: Cores,
    /// Or only first packets.
    pub(crate) handshakes: bool,
}

impl Subject for Opening {
    fn measure(&mut self) -> Result<f64> {
        let mut lane = Lane::new(self.setting, self.cores)?;
        if !self.handshakes {
            lane.hosts.only_sink()?;
        }
        let (made, took) = lane.begin_flows(self.setting.flows)?;
        Ok(speed(made, self.setting.flows, took)? * 1e3)
    }
}

/// Millions a second.
fn speed(arrived: u64, sent: u32, took: Duration) -> Result<f64> {
    ensure!(arrived > u64::from(sent / 10 * 9), "only {arrived} of {sent} frames arrived");
    Ok(f64::from(u32::try_from(arrived)?) / took.as_secs_f64() / 1e6)
}

/// How many frames take that long, in whole batches of whole mixes, if a trial took so long.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundred thousand")]
fn frames_within(time: Duration, trial_took: Duration) -> u32 {
    let frames = f64::from(TRIAL) * time.as_secs_f64() / trial_took.as_secs_f64();
    (frames as u32).next_multiple_of(12 * 64)
}
