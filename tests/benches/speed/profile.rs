//! Where the nanoseconds of a packet go: what `cargo xtask profile` runs.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use lb_tests::process::{output, show};

use crate::cores::Cores;
use crate::setting::{Forwarder, Setting};
use crate::statistics::Spread;
use crate::work::Work;

/// How long perf looks, and how often in a second.
const SECONDS: &str = "10";
const FREQUENCY: &str = "4999";
/// What takes less of a packet's time is left out.
const LEAST: f64 = 0.005;

/// Lets the balancer forward while perf takes samples of the core, and prints what was seen.
pub(crate) fn profile(cores: Cores, flows: u32, directory: &Path) -> Result<()> {
    let setting = Setting { flows, ..Setting::new(Forwarder::Balancer) };
    let mut subject = Work::Forward(setting).prepare(cores)?;
    let file = directory.join("perf.data").display().to_string();
    cores.stay_on_the_other()?;
    let core = cores.measured.to_string();
    let mut record = Command::new("perf");
    record.args([
        "record",
        "--quiet",
        "--event",
        "cpu-clock",
        "--freq",
        FREQUENCY,
        "--all-cpus",
        "--cpu",
        &core,
    ]);
    record.args(["--output", &file, "--", "sleep", SECONDS]).stdin(Stdio::null());
    let mut perf = record.spawn().with_context(|| format!("cannot start `{}`", show(&record)))?;
    cores.stay_on_the_measured()?;
    let mut speeds = Vec::new();
    let status = loop {
        speeds.push(subject.measure()?);
        if let Some(status) = perf.try_wait()? {
            break status;
        }
    };
    ensure!(status.success(), "`{}` failed ({status})", show(&record));
    let speed = Spread::of(&speeds).context("nothing was measured")?.median;
    let packet = 1e3 / speed;
    println!(
        "lb, {} flows, requests of TCP over IPv4: {packet:.0} ns a packet, the generator's part included\n",
        setting.flows
    );
    println!("   share   ns  function");
    let mut report = Command::new("perf");
    report.args(["report", "--input", &file, "--stdio", "--sort", "symbol", "--fields", "overhead,symbol"]);
    for (share, function) in
        output(&mut report)?.lines().filter_map(sample).filter(|(share, _)| *share >= LEAST)
    {
        println!("{:>6.1} % {:>4.0}  {function}", share * 100.0, share * packet);
    }
    println!("\n{}", instructions()?);
    println!("More of it: perf annotate --input {file}");
    Ok(())
}

/// A line of perf's report: `12.34%  [k] function`.
fn sample(line: &str) -> Option<(f64, &str)> {
    let (percent, rest) = line.trim().split_once('%')?;
    let (_, function) = rest.trim().split_once("] ")?;
    Some((percent.parse::<f64>().ok()? / 100.0, function.trim()))
}

/// The balancer's program as the kernel has it.
fn instructions() -> Result<String> {
    const INSTRUCTION: u32 = 8;
    let named = loaded_programs().filter_map(Result::ok).filter(|info| info.name_as_str() == Some("lb"));
    let info = named.max_by_key(|info| info.id()).context("the balancer's program is gone")?;
    let translated = info.size_translated().unwrap_or_default() / INSTRUCTION;
    Ok(format!(
        "The program: {translated} instructions, of which the verifier followed {} and the compiler in the kernel made {} \
         bytes. How many of them a packet takes, `cargo xtask test --ring program -- --nocapture instructions` counts.",
        info.verified_instruction_count().unwrap_or_default(),
        info.size_jitted(),
    ))
}
