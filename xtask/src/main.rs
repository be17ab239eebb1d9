//! `cargo xtask VERB`: builds, runs, demonstrates and tests lb, and installs what that needs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod clean;
mod command;
mod demo;
#[expect(dead_code, reason = "lb-user/build.rs includes this file too, and uses the rest of it")]
mod ebpf_toolchain;
mod lint;
mod profile;
mod progress;
mod root;
mod run;
mod setup;
mod signals;
mod test;
mod vm_test;
mod workspace;

/// Builds, runs, demonstrates and tests lb. Every verb first installs what it needs and the machine lacks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building, the demo and the tests need, and say so before
    Setup,
    /// Build the release binary with the XDP program in it: target/release/lb
    Build,
    /// Build, then run `lb run ARGS` as root
    Run {
        /// Arguments for `lb run`, for instance `--iface eth0`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Show the balancer at work in network namespaces: a client, the balancer, a switch and four web servers
    Demo {
        /// An lb binary to show, instead of building one
        #[arg(long, value_name = "FILE")]
        lb: Option<PathBuf>,
    },
    /// Run the tests: on the host, of the program in the kernel, and in network namespaces
    Test {
        /// Only this ring
        #[arg(long, value_enum)]
        ring: Option<test::Ring>,
        /// Arguments for the test binaries, for instance a filter or `--nocapture`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Measure how fast the balancer is, against what does less and what does the same (for instance `-- --quick`)
    Bench {
        /// Arguments for the benchmark
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Show where the nanoseconds of a packet go, with samples that perf takes while the balancer forwards
    Profile {
        /// Arguments for the benchmark that runs meanwhile, for instance `--core 0`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run the program's tests and short sessions on other kernels, in emulated machines
    VmTest,
    /// Remove the namespaces that killed demos and tests left behind (both also do it themselves)
    Clean,
    /// Check the formatting, clippy's findings and the house rules
    Lint,
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup => setup::setup(setup::Purpose::USUAL),
        Verb::Build => build::build().map(drop),
        Verb::Run { args } => run::run(&args),
        Verb::Demo { lb } => demo::demo(lb),
        Verb::Test { ring, args } => test::test(ring, &args),
        Verb::Bench { args } => bench::bench(&args),
        Verb::Profile { args } => profile::profile(&args),
        Verb::VmTest => vm_test::vm_test(),
        Verb::Clean => clean::clean(),
        Verb::Lint => lint::lint(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
