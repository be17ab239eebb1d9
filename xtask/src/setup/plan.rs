//! From what is missing to what is to be done. Pure: no file, no process.

use std::fmt::{self, Display, Formatter, Write as _};

use super::Server;
use super::facts::{Apt, Compiler, Facts, Linker};
use crate::root::Rights;
use crate::vm_test::Kernel;

/// The version of bpf-linker that is installed where none fits.
pub(super) const BPF_LINKER_VERSION: &str = "0.13.0";

/// Something that the machine lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Compiler,
    Linker,
    Program(&'static str),
    Component(&'static str),
    Emulator,
    Kernel(&'static Kernel),
}

impl Display for Missing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => f.write_str("a Rust compiler for eBPF"),
            Self::Linker => f.write_str("a bpf-linker that fits the compiler"),
            Self::Program(name) | Self::Component(name) => f.write_str(name),
            Self::Emulator => f.write_str("qemu-system-x86_64"),
            Self::Kernel(kernel) => write!(f, "Linux {} to test on", kernel.series),
        }
    }
}

/// Something to do, in words that finish the sentence 'about to'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    RefreshLists,
    Install(Vec<String>),
    AddRustSource,
    AddComponents(Vec<&'static str>),
    BuildLinker { llvm: u32 },
    UnpackServer(&'static Server),
    UnpackEmulator,
    UnpackKernel(&'static Kernel),
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefreshLists => {
                f.write_str("fetch the package lists (apt-get update), to see what there is")
            }
            Self::Install(packages) => {
                write!(f, "install these packages, removing none: {}", packages.join(" "))
            }
            Self::AddRustSource => f.write_str("add the component rust-src to rustup's nightly"),
            Self::AddComponents(components) => write!(f, "add rustup's components {}", components.join(" ")),
            Self::BuildLinker { llvm } => {
                write!(
                    f,
                    "build bpf-linker {BPF_LINKER_VERSION} with LLVM {llvm} (cargo install; about a minute)"
                )
            }
            Self::UnpackServer(server) => {
                write!(f, "unpack {} below target/tools, without installing it as a service", server.program)
            }
            Self::UnpackEmulator => f.write_str(
                "unpack qemu and its libraries below target/tools (20 MB to fetch), without installing them",
            ),
            Self::UnpackKernel(kernel) => write!(
                f,
                "unpack the kernel that {} names below target/tools (30 MB to fetch), without installing it",
                kernel.package
            ),
        }
    }
}

/// What the facts show to be missing.
pub(super) fn missing(facts: &Facts) -> Vec<Missing> {
    let mut missing = Vec::new();
    if matches!(facts.compiler, Compiler::NightlyWithoutSource { .. } | Compiler::Absent) {
        missing.push(Missing::Compiler);
    }
    if facts.linker == Linker::Absent {
        missing.push(Missing::Linker);
    }
    missing.extend(facts.missing_tools.iter().map(|tool| Missing::Program(tool.program)));
    missing.extend(facts.missing_servers.iter().map(|server| Missing::Program(server.program)));
    missing.extend(facts.missing_components.iter().map(|component| Missing::Component(component)));
    if facts.emulator_missing {
        missing.push(Missing::Emulator);
    }
    missing.extend(facts.missing_kernels.iter().map(|kernel| Missing::Kernel(kernel)));
    missing
}

/// The steps that bring what is missing, or what the user has to type.
pub(super) fn plan(facts: &Facts) -> Result<Vec<Step>, String> {
    let Some(apt) = &facts.apt else { return plan_without_apt(facts) };
    let steps = steps(facts, apt);
    let needs_root = |step: &Step| matches!(step, Step::RefreshLists | Step::Install(_));
    match steps {
        Err(Impossible) => Err(both_ways(facts)),
        Ok(steps) if facts.rights == Rights::Missing && steps.iter().any(needs_root) => Err(to_type(&steps)),
        Ok(steps) => Ok(steps),
    }
}

/// No way leads to a compiler or a linker.
struct Impossible;

fn steps(facts: &Facts, apt: &Apt) -> Result<Vec<Step>, Impossible> {
    let mut packages: Vec<String> = facts.missing_tools.iter().map(|tool| tool.package.to_owned()).collect();
    let libraries = |server: &&Server| apt.server_libraries.get(server.program).cloned().unwrap_or_default();
    packages.extend(facts.missing_servers.iter().flat_map(libraries));
    let mut after_packages = Vec::new();
    if !facts.missing_components.is_empty() {
        after_packages.push(Step::AddComponents(facts.missing_components.clone()));
    }

    let wants_packages = missing(facts).iter().any(|missing| !matches!(missing, Missing::Component(_)));
    if wants_packages && !apt.lists_fresh {
        // What there is can be seen only afterwards.
        return Ok(vec![Step::RefreshLists]);
    }
    let llvm = compiler_steps(facts, apt, &mut packages, &mut after_packages)?;
    if facts.linker == Linker::Absent {
        linker_steps(llvm, apt, &mut packages, &mut after_packages)?;
    }
    after_packages.extend(facts.missing_servers.iter().map(|server| Step::UnpackServer(server)));
    if facts.emulator_missing {
        after_packages.push(Step::UnpackEmulator);
    }
    after_packages.extend(facts.missing_kernels.iter().map(|kernel| Step::UnpackKernel(kernel)));

    packages.retain(|package| !apt.installed.contains(package));
    let install = (!packages.is_empty()).then_some(Step::Install(packages));
    Ok(install.into_iter().chain(after_packages).collect())
}

/// Plans the compiler and returns the LLVM that it has or will have.
fn compiler_steps(
    facts: &Facts,
    apt: &Apt,
    packages: &mut Vec<String>,
    after_packages: &mut Vec<Step>,
) -> Result<u32, Impossible> {
    match (facts.compiler, &apt.rust) {
        (Compiler::NotNeeded, _) => Ok(0),
        (Compiler::Ready { llvm }, _) => Ok(llvm),
        (_, Some(rust)) => {
            packages.extend(rust.packages.iter().cloned());
            Ok(rust.llvm)
        }
        (Compiler::NightlyWithoutSource { llvm }, None) => {
            after_packages.push(Step::AddRustSource);
            Ok(llvm)
        }
        (Compiler::Absent, None) => Err(Impossible),
    }
}

fn linker_steps(
    compiler_llvm: u32,
    apt: &Apt,
    packages: &mut Vec<String>,
    after_packages: &mut Vec<Step>,
) -> Result<(), Impossible> {
    // The oldest that reads what the compiler writes: nearest to what the compiler was tested with.
    let llvm = apt.llvm.iter().copied().find(|llvm| *llvm >= compiler_llvm).ok_or(Impossible)?;
    packages.extend(llvm_packages(llvm));
    after_packages.push(Step::BuildLinker { llvm });
    Ok(())
}

/// What bpf-linker is built with.
pub(super) fn llvm_packages(llvm: u32) -> [String; 4] {
    [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "zlib1g-dev".to_owned(),
        "libzstd-dev".to_owned(),
    ]
}

/// rustup alone can add to a nightly and to its own toolchain; everything else takes a hand.
fn plan_without_apt(facts: &Facts) -> Result<Vec<Step>, String> {
    if !facts.missing_kernels.is_empty() {
        return Err("The kernels are packages of Debian, and there is no apt here to fetch them: test on other kernels \
                    on a Debian 12"
            .to_owned());
    }
    let mut steps = Vec::new();
    for missing in missing(facts) {
        match (missing, facts.compiler) {
            (Missing::Component(component), _) => steps.push(Step::AddComponents(vec![component])),
            (Missing::Compiler, Compiler::NightlyWithoutSource { .. }) => steps.push(Step::AddRustSource),
            _ => return Err(both_ways(facts)),
        }
    }
    Ok(steps)
}

/// The steps as commands, for somebody who has the rights that this process lacks.
fn to_type(steps: &[Step]) -> String {
    let mut text =
        "Installing it needs root, and sudo asks for a password here or is not there. Type this, then try again:\n"
            .to_owned();
    for step in steps {
        let _infallible = write!(text, "\n    {}", command_line(step));
    }
    if steps.contains(&Step::RefreshLists) {
        text.push_str("\n    cargo xtask setup        # now that there are package lists, it tells the rest");
    }
    text
}

fn command_line(step: &Step) -> String {
    match step {
        Step::RefreshLists => "sudo apt-get update".to_owned(),
        Step::Install(packages) => {
            format!("sudo apt-get install --no-remove --no-install-recommends {}", packages.join(" "))
        }
        Step::AddRustSource => "rustup component add rust-src --toolchain nightly".to_owned(),
        Step::AddComponents(components) => format!("rustup component add {}", components.join(" ")),
        Step::BuildLinker { llvm } => format!(
            "LLVM_PREFIX=$(llvm-config-{llvm} --prefix) cargo +stable install bpf-linker --version \
             {BPF_LINKER_VERSION} --locked --force --no-default-features --features llvm-{llvm}"
        ),
        Step::UnpackServer(server) => {
            format!("cargo xtask setup        # unpacks {}, needs no root", server.program)
        }
        Step::UnpackEmulator | Step::UnpackKernel(_) => {
            "cargo xtask vm-test      # unpacks qemu and kernels, needs no root".to_owned()
        }
    }
}

/// For machines on which neither way can be taken without a person.
fn both_ways(facts: &Facts) -> String {
    let programs: Vec<_> = missing(facts)
        .into_iter()
        .filter_map(|missing| match missing {
            Missing::Program(program) => Some(program),
            Missing::Emulator => Some("qemu-system-x86_64"),
            _ => None,
        })
        .collect();
    let mut text = "It cannot be installed from here.\n\n".to_owned();
    if !programs.is_empty() {
        let _infallible =
            write!(text, "Install these programs with your package manager: {}\n\n", programs.join(" "));
    }
    let toolchain = |missing: &Missing| matches!(missing, Missing::Compiler | Missing::Linker);
    if missing(facts).iter().any(toolchain) {
        let _infallible = write!(
            text,
            "For the XDP program, with rustup:

    rustup toolchain install nightly --profile minimal --component rust-src
    cargo install cargo-binstall && cargo binstall bpf-linker

or, on Debian 12 with its security updates (names elsewhere: rustc cargo libstd-rust-dev-bpf, Rust 1.95 or later):

    sudo apt-get update
    sudo apt-get install --no-remove rustc-web cargo-web libstd-rust-web-dev-bpf {packages}
    {linker}
",
            packages = llvm_packages(22).join(" "),
            linker = command_line(&Step::BuildLinker { llvm: 22 }),
        );
    }
    text.push_str("\nThen try again.");
    text
}

#[cfg(test)]
mod tests {
    use super::super::facts::DebianRust;
    use super::super::{SERVERS, TOOLS};
    use super::*;
    use crate::vm_test::KERNELS;

    fn complete() -> Facts {
        Facts {
            rights: Rights::Root,
            compiler: Compiler::Ready { llvm: 22 },
            linker: Linker::Ready,
            missing_tools: Vec::new(),
            missing_servers: Vec::new(),
            missing_components: Vec::new(),
            emulator_missing: false,
            missing_kernels: Vec::new(),
            apt: Some(debian_12()),
        }
    }

    fn debian_12() -> Apt {
        let packages = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"].map(str::to_owned).to_vec();
        Apt {
            lists_fresh: true,
            rust: Some(DebianRust { packages, llvm: 22 }),
            llvm: vec![22],
            installed: ["zlib1g".to_owned()].into(),
            server_libraries: [("nginx", vec!["libpcre2-8-0".to_owned(), "zlib1g".to_owned()])].into(),
        }
    }

    fn new_machine() -> Facts {
        Facts {
            compiler: Compiler::NightlyWithoutSource { llvm: 22 },
            linker: Linker::Absent,
            missing_tools: TOOLS.iter().filter(|tool| tool.program == "ethtool").collect(),
            missing_servers: vec![&SERVERS[0]],
            ..complete()
        }
    }

    fn install(packages: &str) -> Step {
        Step::Install(packages.split(' ').map(str::to_owned).collect())
    }

    const LLVM_22: &str = "llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev";
    const RUST: &str = "rustc-web cargo-web libstd-rust-web-dev-bpf";

    #[test]
    fn each_machine_gets_the_steps_that_it_lacks() {
        let without_rust = |apt: Apt| Apt { rust: None, ..apt };
        let table = [
            ("nothing is missing", complete(), vec![]),
            (
                "lists come first, because only they tell what there is",
                Facts { apt: Some(Apt { lists_fresh: false, ..debian_12() }), ..new_machine() },
                vec![Step::RefreshLists],
            ),
            (
                "a new machine gets everything at once, but not what it has",
                new_machine(),
                vec![
                    install(&format!("ethtool libpcre2-8-0 {RUST} {LLVM_22}")),
                    Step::BuildLinker { llvm: 22 },
                    Step::UnpackServer(&SERVERS[0]),
                ],
            ),
            (
                "a nightly with rust-src needs no Debian compiler",
                Facts { linker: Linker::Absent, ..complete() },
                vec![install(LLVM_22), Step::BuildLinker { llvm: 22 }],
            ),
            (
                "rust-src is added only where Debian has no compiler",
                Facts {
                    compiler: Compiler::NightlyWithoutSource { llvm: 22 },
                    apt: Some(without_rust(debian_12())),
                    ..complete()
                },
                vec![Step::AddRustSource],
            ),
            (
                "the linker's LLVM is the oldest that is not older than the compiler's",
                Facts {
                    compiler: Compiler::Ready { llvm: 22 },
                    linker: Linker::Absent,
                    apt: Some(Apt { llvm: vec![21, 22, 23], ..debian_12() }),
                    ..complete()
                },
                vec![install(LLVM_22), Step::BuildLinker { llvm: 22 }],
            ),
            (
                "a component needs no package lists",
                Facts {
                    missing_components: vec!["clippy"],
                    apt: Some(Apt { lists_fresh: false, ..debian_12() }),
                    ..complete()
                },
                vec![Step::AddComponents(vec!["clippy"])],
            ),
            (
                "unpacking nginx needs no rights when its libraries are there",
                Facts {
                    rights: Rights::Missing,
                    missing_servers: vec![&SERVERS[0]],
                    apt: Some(Apt {
                        server_libraries: [("nginx", vec!["zlib1g".to_owned()])].into(),
                        ..debian_12()
                    }),
                    ..complete()
                },
                vec![Step::UnpackServer(&SERVERS[0])],
            ),
            (
                "emulator and kernels are unpacked, which needs no rights",
                Facts {
                    rights: Rights::Missing,
                    emulator_missing: true,
                    missing_kernels: KERNELS.iter().collect(),
                    ..complete()
                },
                [Step::UnpackEmulator].into_iter().chain(KERNELS.iter().map(Step::UnpackKernel)).collect(),
            ),
        ];
        for (rule, facts, steps) in table {
            assert_eq!(plan(&facts), Ok(steps), "{rule}");
        }
    }

    #[test]
    fn whoever_may_not_install_is_told_what_to_type() {
        let table = [
            (
                "no root",
                Facts { rights: Rights::Missing, ..new_machine() },
                vec![
                    "sudo apt-get install --no-remove",
                    RUST,
                    "LLVM_PREFIX=$(llvm-config-22 --prefix) cargo",
                ],
            ),
            (
                "no root, no lists",
                Facts {
                    rights: Rights::Missing,
                    apt: Some(Apt { lists_fresh: false, ..debian_12() }),
                    ..new_machine()
                },
                vec!["sudo apt-get update", "cargo xtask setup"],
            ),
            (
                "no apt",
                Facts { apt: None, ..new_machine() },
                vec!["ethtool", "rustup toolchain install nightly", RUST],
            ),
            (
                "kernels without apt",
                Facts { apt: None, missing_kernels: KERNELS.iter().collect(), ..complete() },
                vec!["no apt here", "Debian 12"],
            ),
            (
                "every LLVM is older than the compiler's",
                Facts { compiler: Compiler::Ready { llvm: 23 }, linker: Linker::Absent, ..complete() },
                vec!["cargo binstall bpf-linker"],
            ),
        ];
        for (rule, facts, phrases) in table {
            let Err(text) = plan(&facts) else { panic!("{rule}: planned although it may not install") };
            for phrase in phrases {
                assert!(text.contains(phrase), "{rule}: `{phrase}` is not in:\n{text}");
            }
        }
    }
}
