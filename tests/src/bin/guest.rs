//! The first process of a machine that `cargo xtask vm-test` boots: it brings the machine up, runs the tests, tells how
//! they went on the serial line, and switches the machine off.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::guest::{
    FAILED, FUZZ_PACKETS, FUZZ_PACKETS_VARIABLE, MODULES, NOTE, PASSED, PROGRAMS, STEPS, Step, report,
};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;
use nix::unistd::Pid;

/// What a system mounts before anything else, as (type, directory).
const FILE_SYSTEMS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("bpf", "/sys/fs/bpf"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
];

fn main() -> Result<Infallible> {
    ensure!(
        Pid::this().as_raw() == 1,
        "this is the first process of a test machine: type `cargo xtask vm-test`"
    );
    let verdict = match run() {
        Ok(()) => PASSED.to_owned(),
        Err(error) => format!("{FAILED}{error:#}"),
    };
    println!("{}", report(&verdict));
    // The last words may still be on their way. Without a terminal there is nobody to read them.
    let _unread = tcdrain(io::stdout());
    reboot(RebootMode::RB_POWER_OFF).context("cannot switch off")
}

fn run() -> Result<()> {
    for (kind, directory) in FILE_SYSTEMS {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
        mount(Some(kind), directory, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {directory}"))?;
    }
    // ip keeps namespaces there.
    fs::create_dir_all("/var")?;
    symlink("/run", "/var/run").context("cannot make /var/run")?;
    load_modules()?;
    // All of them, also after a failure: one run shows everything that does not work on this kernel.
    let failed: Vec<_> = STEPS
        .iter()
        .filter_map(|step| {
            let started = Instant::now();
            let (outcome, failed) = match run_step(step) {
                Ok(tests) => (format!("{tests} tests passed"), None),
                Err(error) => (format!("{error:#}"), Some(step.what)),
            };
            println!("{}", report(&format!("{}: {outcome} ({} s)", step.what, started.elapsed().as_secs())));
            failed
        })
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    Ok(())
}

/// Loads all modules that the machine was given.
fn load_modules() -> Result<()> {
    let entries = fs::read_dir(MODULES).with_context(|| format!("cannot read {MODULES}"))?;
    let mut modules = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    modules.sort();
    for module in modules {
        let file = File::open(&module).with_context(|| format!("cannot open {}", module.display()))?;
        finit_module(file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("cannot load {}", module.display()))?;
    }
    Ok(())
}

/// Runs tests and returns how many passed.
fn run_step(step: &Step) -> Result<u32> {
    let program = Path::new(PROGRAMS).join(step.program);
    let mut child = Command::new(&program)
        .args(step.args)
        .envs([("PATH", PROGRAMS), ("LB_BIN", &format!("{PROGRAMS}/lb"))])
        .env(FUZZ_PACKETS_VARIABLE, FUZZ_PACKETS.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let output = child.stdout.take().context("there is no pipe")?;
    let started = Instant::now();
    let mut passed = 0;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what the tests print")?;
        // As the kernel does in its log: where time goes shows.
        println!("[{:7.2}] {line}", started.elapsed().as_secs_f32());
        if let Some(news) = line.strip_prefix(NOTE).or_else(|| failed_test(&line)) {
            println!("{}", report(news));
        }
        passed = passed.max(passed_tests(&line).unwrap_or(0));
    }
    let status = child.wait().context("cannot wait for the tests")?;
    if !status.success() {
        bail!("not all tests passed ({status})");
    }
    ensure!(passed > 0, "no test has run");
    Ok(passed)
}

/// A line of libtest: `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.ends_with("... FAILED").then_some(line)
}

/// From libtest's last line: `test result: ok. 38 passed; 0 failed; ...`.
fn passed_tests(line: &str) -> Option<u32> {
    line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok()
}
