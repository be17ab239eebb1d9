//! How fast the balancer is, against what does less and what does the same: what `cargo xtask bench` runs.
//!
//! Frames are generated (live frames of `BPF_PROG_TEST_RUN`), forwarded and thrown away on one core, so that the generator's
//! cost is in every figure. Whatever is compared stands in networks of its own and is measured in turn, round after round:
//! only ratios say something.

mod cores;
mod forwarding;
mod frame;
mod hosts;
mod kernel;
mod lane;
mod plot;
mod profile;
mod programs;
mod quiet;
mod report;
mod resources;
mod row;
mod rows;
mod setting;
mod statistics;
mod web;
mod work;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{self, Command};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use lb_tests::process::output;

use crate::cores::Cores;
use crate::report::Report;

#[derive(Parser)]
struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Measures less, and less often: two minutes
    #[arg(long)]
    quick: bool,
    /// Only groups in whose heading this stands
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The core that is measured
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Where the results are written
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Shows where the time of a packet goes, instead of measuring: what `cargo xtask profile` is for
    #[arg(long, hide = true)]
    profile: bool,
    /// With how many flows
    #[arg(long, hide = true, default_value_t = 10_000)]
    flows: u32,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // cargo starts benchmarks in their package's directory; paths are of the workspace.
    env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).context("the workspace has gone")?;
    let rounds = if options.quick { options.rounds.min(3) } else { options.rounds.max(1) };
    let cores = Cores { measured: options.core };
    cores.stay_on_the_measured().context("there is no such core")?;
    prefer_this_process()?;
    fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;

    if options.profile {
        return profile::profile(cores, options.flows, &options.out);
    }
    let mut rows = rows::rows(options.quick);
    rows.retain(|row| row.heading().contains(&options.only));
    ensure!(!rows.is_empty(), "no group has `{}` in its heading", options.only);
    let mut report = Report::begin(rounds)?;
    println!("{}", report.heading());
    let bar = progress(rows.iter().map(|row| row.measurements(rounds)).sum())?;
    for row in &rows {
        let outcome = row.measure(rounds, cores, &bar)?;
        bar.suspend(|| print!("{}", outcome.table()));
        report.outcomes.push(outcome);
    }
    bar.finish_and_clear();
    let file = options.out.join("results.json");
    report.write(&file)?;
    let pictures = plot::draw(&report.outcomes, &options.out)?;
    println!("\nWritten: {}, and beside it {}", file.display(), pictures.join(", "));
    Ok(())
}

/// Whatever else wants the core that is measured waits for this process, but for a twentieth that the kernel keeps for it.
/// What this one starts is as others are.
fn prefer_this_process() -> Result<()> {
    let id = process::id().to_string();
    output(Command::new("chrt").args(["--reset-on-fork", "--fifo", "--pid", "1", &id])).map(drop)
}

fn progress(measurements: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(u64::try_from(measurements)?);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} [{elapsed}, {eta} to go] {wide_msg}")?);
    Ok(bar)
}
