//! What a run has to tell: a table, and JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::row::Outcome;

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) begun: String,
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) outcomes: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
}

impl Report {
    pub(crate) fn begin(rounds: usize) -> Result<Self> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Ok(Self { begun: now, machine: Machine::this()?, rounds, outcomes: Vec::new() })
    }

    /// Says what it is about.
    pub(crate) fn heading(&self) -> String {
        let Machine { kernel, processor, cores } = &self.machine;
        format!(
            "Linux {kernel}, {cores} cores of {processor}; medians of {} rounds, in which all of a group have their \
             turn, and the lowest and highest; ratios are to the first of the group, round by round",
            self.rounds
        )
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Machine {
    fn this() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processor = model.map_or("an unknown processor", |(_, name)| name).to_owned();
        let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        Ok(Self { kernel, processor, cores })
    }
}

impl Outcome {
    /// A group of the table.
    pub(crate) fn table(&self) -> String {
        let digits = self.digits;
        let mut text = format!("\n{}, {}\n", self.place, self.unit);
        for figures in &self.subjects {
            let (absolute, ratio) = (&figures.absolute, &figures.ratio);
            let _infallible = writeln!(
                text,
                "  {:<24} {:>8.digits$}  ({:.digits$}-{:.digits$})   {:>6.2}  ({:.2}-{:.2})",
                figures.name,
                absolute.median,
                absolute.lowest,
                absolute.highest,
                ratio.median,
                ratio.lowest,
                ratio.highest,
            );
        }
        if let Some(noise) = &self.noise {
            let _infallible = writeln!(text, "  noisy: {noise}");
        }
        text
    }
}
