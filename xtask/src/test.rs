//! `cargo xtask test`: three rings, from no kernel to real servers.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::setup::{self, Purpose};
use crate::{build, clean, command, root, signals, workspace};

/// How much of a machine a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ring {
    /// Everything that needs no kernel and no root
    Host,
    /// The XDP program, run by the kernel on single packets
    Program,
    /// Network namespaces with real servers and clients
    Network,
}

/// The test target of lb-tests that is the program ring. All others are the network ring.
const PROGRAM_TARGET: &str = "program";

pub(crate) fn test(ring: Option<Ring>, args: &[String]) -> Result<()> {
    let needs: &[_] =
        if ring == Some(Ring::Host) { &[Purpose::Build] } else { &[Purpose::Build, Purpose::Test] };
    setup::setup(needs)?;
    if ring.is_none_or(|ring| ring == Ring::Host) {
        heading("host: unit tests, no kernel, no root");
        command::run(command::cargo(["test", "--workspace", "--exclude", "lb-tests", "--"]).args(args))?;
    }
    if ring != Some(Ring::Host) {
        kernel_tests(ring, args)?;
    }
    Ok(())
}

fn kernel_tests(ring: Option<Ring>, args: &[String]) -> Result<()> {
    let lb = build::build()?;
    if !root::is_root() {
        eprintln!("The kernel tests need root: they run through sudo.");
    }
    let mut cargo = command::cargo(["test", "--package", "lb-tests"]);
    match ring {
        Some(Ring::Program) => {
            heading("program: single packets through the kernel");
            cargo.args(["--test", PROGRAM_TARGET]);
        }
        Some(Ring::Network) => {
            heading("network: namespaces with real servers and clients");
            cargo.arg("--lib");
            for target in test_targets(&workspace::root().join("tests/tests"))? {
                if target != PROGRAM_TARGET {
                    cargo.arg("--test").arg(target);
                }
            }
        }
        Some(Ring::Host) | None => {
            heading("program and network: the kernel, and namespaces with real servers and clients")
        }
    }
    cargo.env("LB_BIN", &lb).arg("--").args(args);
    as_root_between_cleanings(&mut cargo)
}

/// Lets cargo run what it builds as root, and removes before and after what killed runs left behind.
pub(crate) fn as_root_between_cleanings(cargo: &mut Command) -> Result<()> {
    if !root::is_root() {
        cargo.env(
            runner_variable(),
            "sudo --preserve-env=LB_BIN,LB_FUZZ_PACKETS,LB_RESTARTS,LB_SEED,RUST_BACKTRACE",
        );
    }
    clean::clean()?;
    // Ctrl-C ends what is run, but not this process, which cleans up after it.
    signals::outlive()?;
    let done = command::run(cargo);
    clean::clean()?;
    done
}

/// Where cargo looks for a program to start test binaries with.
fn runner_variable() -> String {
    format!("CARGO_TARGET_{}_RUNNER", command::host_triple().replace('-', "_").to_uppercase())
}

/// The names of the integration tests in a directory, as cargo derives them.
fn test_targets(directory: &Path) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_target = path.extension().is_some_and(|ext| ext == "rs") || path.join("main.rs").exists();
        if let Some(stem) = path.file_stem().filter(|_| is_target) {
            targets.push(stem.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

fn heading(ring: &str) {
    eprintln!("\n== {ring}");
}
