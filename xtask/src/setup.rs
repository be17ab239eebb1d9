//! `cargo xtask setup`: what the verbs need and the machine lacks.
//!
//! Facts about the machine go in, a plan of steps comes out (`plan`, pure), the steps are done (`apply`); then the
//! machine is looked at again, because some steps show what comes next. Nothing is ever removed.

use anyhow::{Result, bail};

use self::facts::Facts;
use self::plan::{Missing, Step};

mod apply;
mod facts;
mod plan;

/// What the tools are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compiling everything, the XDP program included.
    Build,
    /// The namespaces of the demo and the programs in them.
    Demo,
    /// What the tests need beyond that.
    Test,
    /// Checking the sources.
    Lint,
    /// Testing on other kernels: an emulator and the kernels, unpacked below `target/`.
    Vm,
    /// Measuring, also what others do.
    Bench,
    /// Seeing what takes the time.
    Profile,
}

impl Purpose {
    /// All but what only testing on other kernels needs, which is large, and what only benchmarks do.
    pub(crate) const USUAL: &[Self] = &[Self::Build, Self::Demo, Self::Test, Self::Lint];
}

/// A program that the machine may lack.
#[derive(Debug, PartialEq, Eq)]
struct Tool {
    program: &'static str,
    /// The Debian package that has it.
    package: &'static str,
    needed_for: &'static [Purpose],
}

const fn tool(program: &'static str, package: &'static str, needed_for: &'static [Purpose]) -> Tool {
    Tool { program, package, needed_for }
}

const TOOLS: &[Tool] = &[
    tool("cc", "gcc", &[Purpose::Build]),
    tool("ip", "iproute2", &[Purpose::Demo, Purpose::Test, Purpose::Vm, Purpose::Bench]),
    tool("nsenter", "util-linux", &[Purpose::Demo, Purpose::Test, Purpose::Vm, Purpose::Bench]),
    tool("ethtool", "ethtool", &[Purpose::Demo, Purpose::Test, Purpose::Vm, Purpose::Bench]),
    tool("curl", "curl", &[Purpose::Demo, Purpose::Test, Purpose::Bench]),
    tool("tcpdump", "tcpdump", &[Purpose::Test]),
    tool("iptables", "iptables", &[Purpose::Test, Purpose::Bench]),
    tool("ip6tables", "iptables", &[Purpose::Test]),
    tool("nft", "nftables", &[Purpose::Bench]),
    tool("perf", "linux-perf", &[Purpose::Profile]),
    tool("chrt", "util-linux", &[Purpose::Bench]),
    tool("ping", "iputils-ping", &[Purpose::Test]),
    tool("traceroute", "traceroute", &[Purpose::Test]),
    tool("wrk", "wrk", &[Purpose::Test, Purpose::Bench]),
    tool("setpriv", "util-linux", &[Purpose::Test, Purpose::Vm]),
    tool("xz", "xz-utils", &[Purpose::Vm]),
];

/// A server. Its package would start it on this host and enable it at boot, which nobody asked for, so that it is not in
/// the table of tools: it is only unpacked, into the project, and the libraries that it needs are installed like others.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    program: &'static str,
    /// The Debian packages that may have it: in some releases the first is empty and depends on one of the others.
    packages: &'static [&'static str],
    needed_for: &'static [Purpose],
}

const SERVERS: [Server; 2] = [
    Server {
        program: "nginx",
        packages: &["nginx", "nginx-core", "nginx-light"],
        needed_for: &[Purpose::Demo, Purpose::Test, Purpose::Bench],
    },
    Server { program: "haproxy", packages: &["haproxy"], needed_for: &[Purpose::Bench] },
];

/// Each round of looking and acting brings the machine nearer: package lists, then packages, then what is built with
/// them. More rounds than that mean that a step succeeds without effect.
const MAX_ROUNDS: usize = 4;

/// Installs what is missing for these purposes. Quick when nothing is.
pub(crate) fn setup(purposes: &[Purpose]) -> Result<()> {
    let mut lists_refreshed = false;
    for round in 0..MAX_ROUNDS {
        let mut facts = Facts::gather(purposes)?;
        let missing = plan::missing(&facts);
        if missing.is_empty() {
            if round > 0 {
                eprintln!("Everything that is needed is installed.");
            }
            return Ok(());
        }
        facts.look_at_packages(lists_refreshed);
        let steps = match plan::plan(&facts) {
            Ok(steps) => steps,
            Err(remedy) => bail!("this machine lacks {}. {remedy}", names(&missing)),
        };
        if steps.is_empty() {
            break;
        }
        announce(&missing, &steps);
        for step in &steps {
            lists_refreshed |= *step == Step::RefreshLists;
            apply::apply(step)?;
        }
    }
    bail!(
        "what is still missing ({}) seems to be installed: is it broken, or a directory like ~/.cargo/bin not on the \
         PATH?",
        names(&plan::missing(&Facts::gather(purposes)?))
    )
}

fn announce(missing: &[Missing], steps: &[Step]) {
    eprintln!("Missing on this machine: {}. About to", names(missing));
    for step in steps {
        eprintln!("  - {step}");
    }
}

fn names(missing: &[Missing]) -> String {
    missing.iter().map(Missing::to_string).collect::<Vec<_>>().join(", ")
}
