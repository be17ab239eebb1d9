//! A row of the table: some subjects that are measured in turn, round after round, and compared with the first.

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::cores::Cores;
use crate::quiet::Watch;
use crate::statistics::Spread;
use crate::work::{Subject, Work};

/// What is measured, and how it is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantity {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// The last that is worth a digit.
    pub(crate) digits: usize,
}

/// Some subjects that have one quantity measured at one place.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) quantity: Quantity,
    pub(crate) place: String,
    /// Their names beside them. The first is what the others are compared with.
    pub(crate) works: Vec<(String, Work)>,
}

/// What came out of a row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) quantity: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) place: String,
    pub(crate) subjects: Vec<Figures>,
    /// Why the row is to be taken with caution; `None` if the machine was quiet.
    pub(crate) noise: Option<String>,
    #[serde(skip)]
    pub(crate) digits: usize,
}

/// What was measured of a subject.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
    pub(crate) absolute: Spread,
    /// To the first subject's value of the same round.
    pub(crate) ratio: Spread,
}

/// A measurement during which others took more of the core than this is made again,
const DISTURBED: f64 = 0.02;
/// but not more often than so.
const ATTEMPTS: usize = 3;
/// The half of a row's ratios lie within this, or it was noisy.
const NOISY: f64 = 0.05;

impl Row {
    /// What it is about.
    pub(crate) fn heading(&self) -> String {
        format!("{}: {}", self.quantity.name, self.place)
    }

    /// How many measurements it takes.
    pub(crate) fn measurements(&self, rounds: usize) -> usize {
        self.works.len() * rounds
    }

    /// Measures all subjects in turn.
    pub(crate) fn measure(&self, rounds: usize, cores: Cores, bar: &ProgressBar) -> Result<Outcome> {
        let heading = self.heading();
        let mut subjects = Vec::new();
        for (name, work) in &self.works {
            bar.set_message(format!("{heading}: {name} is made ready"));
            subjects.push(work.prepare(cores).with_context(|| format!("{heading}: {name}"))?);
        }
        let mut values = vec![Vec::new(); subjects.len()];
        let mut disturbed = 0;
        for _ in 0..rounds {
            for ((subject, values), (name, _)) in subjects.iter_mut().zip(&mut values).zip(&self.works) {
                bar.set_message(format!("{heading}: {name}"));
                let (value, quiet) =
                    undisturbed(subject.as_mut()).with_context(|| format!("{heading}: {name}"))?;
                bar.inc(1);
                disturbed += usize::from(!quiet);
                values.push(value);
            }
        }
        self.outcome(values, disturbed)
    }

    fn outcome(&self, values: Vec<Vec<f64>>, disturbed: usize) -> Result<Outcome> {
        let count: usize = values.iter().map(Vec::len).sum();
        let first = values.first().cloned().unwrap_or_default();
        let subjects = self
            .works
            .iter()
            .zip(values)
            .map(|((name, _), values)| {
                let ratios: Vec<_> = values.iter().zip(&first).map(|(value, first)| value / first).collect();
                Some(Figures {
                    name: name.clone(),
                    absolute: Spread::of(&values)?,
                    ratio: Spread::of(&ratios)?,
                    values,
                })
            })
            .collect::<Option<Vec<_>>>()
            .context("nothing was measured")?;
        let widest = subjects.iter().map(|figures| figures.ratio.quartiles).fold(0.0, f64::max);
        let noise = match (disturbed, widest) {
            (1.., _) => Some(format!("others used the core during {disturbed} of {count} measurements")),
            (0, NOISY..) => Some(format!("the half of all ratios lie within {:.0} %", widest * 100.0)),
            _ => None,
        };
        Ok(Outcome {
            quantity: self.quantity.name,
            unit: self.quantity.unit,
            place: self.place.clone(),
            subjects,
            noise,
            digits: self.quantity.digits,
        })
    }
}

/// Measures, again if others disturbed it; says whether they did not, in the end.
fn undisturbed(subject: &mut dyn Subject) -> Result<(f64, bool)> {
    let mut attempt = 1;
    loop {
        let watch = Watch::begin()?;
        let value = subject.measure()?;
        let quiet = watch.taken_by_others()? <= DISTURBED;
        if quiet || attempt == ATTEMPTS {
            return Ok((value, quiet));
        }
        attempt += 1;
    }
}
