//! What this machine has. Looking changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use lb_tests::process::find;
use lb_tests::web::find_server;

use super::{Purpose, SERVERS, Server, TOOLS, Tool};
use crate::command::query;
use crate::ebpf_toolchain::{self, EbpfToolchain, OLDEST_RUST};
use crate::root::Rights;
use crate::vm_test::{KERNELS, Kernel, machine};

/// Package lists older than this may name files that the mirror no longer has.
const LISTS_GO_STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// The versions of LLVM that the bpf-linker we install can be built with.
const LINKER_LLVM: [u32; 3] = [21, 22, 23];

/// Debian's compilers for BPF: the packages, the first being the compiler. Debian 12 has a second, recent Rust, there
/// for the sake of web browsers, beside an old one; later releases have one.
const DEBIAN_RUST: [&[&str]; 2] =
    [&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"], &["rustc", "cargo", "libstd-rust-dev-bpf"]];

/// What there is, as far as the purposes need it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) rights: Rights,
    pub(super) compiler: Compiler,
    pub(super) linker: Linker,
    pub(super) missing_tools: Vec<&'static Tool>,
    pub(super) missing_servers: Vec<&'static Server>,
    pub(super) missing_components: Vec<&'static str>,
    pub(super) emulator_missing: bool,
    pub(super) missing_kernels: Vec<&'static Kernel>,
    /// `None`: there is no apt, or nobody has looked yet.
    pub(super) apt: Option<Apt>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compiler {
    NotNeeded,
    /// With the major version of its LLVM.
    Ready {
        llvm: u32,
    },
    /// rustup has a nightly, but without the sources of `core`.
    NightlyWithoutSource {
        llvm: u32,
    },
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linker {
    /// It reads what the compiler writes, or none is needed.
    Ready,
    /// None is there, or its LLVM is too old.
    Absent,
}

/// What apt knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Apt {
    pub(super) lists_fresh: bool,
    /// A compiler for BPF that can be installed without removing anything.
    pub(super) rust: Option<DebianRust>,
    /// Versions of LLVM whose development packages are there, ascending.
    pub(super) llvm: Vec<u32>,
    /// Of the packages that may be asked for: those that are installed.
    pub(super) installed: BTreeSet<String>,
    /// The libraries that a server's package depends on, by the server's program.
    pub(super) server_libraries: BTreeMap<&'static str, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DebianRust {
    pub(super) packages: Vec<String>,
    pub(super) llvm: u32,
}

impl Facts {
    /// A quick look, without asking apt. Fails if the user insists on a compiler that does not work.
    pub(super) fn gather(purposes: &[Purpose]) -> Result<Self> {
        let needed = |for_purposes: &[Purpose]| purposes.iter().any(|purpose| for_purposes.contains(purpose));
        // The linters compile the build scripts, and one of those compiles the XDP program.
        let toolchain = needed(&[Purpose::Build, Purpose::Lint]).then(ebpf_toolchain::find);
        if let Some(Err(error)) = &toolchain
            && env::var_os(ebpf_toolchain::OVERRIDE).is_some()
        {
            bail!("{error}");
        }
        let missing_tools =
            TOOLS.iter().filter(|tool| needed(tool.needed_for) && find(tool.program).is_none()).collect();
        Ok(Self {
            rights: Rights::of_this_process(),
            compiler: compiler(toolchain.as_ref()),
            linker: match &toolchain {
                Some(Ok(toolchain)) if toolchain.bpf_linker().is_err() => Linker::Absent,
                // Which linker is needed is known only together with the compiler.
                Some(Err(_)) if find("bpf-linker").is_none() => Linker::Absent,
                _ => Linker::Ready,
            },
            missing_tools,
            missing_servers: SERVERS
                .iter()
                .filter(|server| needed(server.needed_for) && find_server(server.program).is_none())
                .collect(),
            missing_components: if needed(&[Purpose::Lint]) { missing_components() } else { Vec::new() },
            emulator_missing: needed(&[Purpose::Vm]) && machine::find_qemu().is_none(),
            missing_kernels: KERNELS
                .iter()
                .filter(|kernel| needed(&[Purpose::Vm]) && !kernel.directory().is_dir())
                .collect(),
            apt: None,
        })
    }

    /// Asks apt, which takes a second. `lists_refreshed`: the lists were fetched a moment ago.
    pub(super) fn look_at_packages(&mut self, lists_refreshed: bool) {
        self.apt = find("apt-get").map(|_| Apt::look(lists_refreshed));
    }
}

fn compiler(toolchain: Option<&std::result::Result<EbpfToolchain, String>>) -> Compiler {
    match toolchain {
        None => Compiler::NotNeeded,
        Some(Ok(toolchain)) => Compiler::Ready { llvm: toolchain.llvm },
        Some(Err(_)) => match ebpf_toolchain::nightly_llvm() {
            Some(llvm) => Compiler::NightlyWithoutSource { llvm },
            None => Compiler::Absent,
        },
    }
}

fn missing_components() -> Vec<&'static str> {
    [("cargo-clippy", "clippy"), ("cargo-fmt", "rustfmt")]
        .into_iter()
        .filter(|(program, _)| query(program, &["--version"]).is_none())
        .map(|(_, component)| component)
        .collect()
}

impl Apt {
    fn look(lists_refreshed: bool) -> Self {
        let llvm_packages = LINKER_LLVM.map(|llvm| format!("llvm-{llvm}-dev"));
        let rust_packages = DEBIAN_RUST.concat();
        let candidates =
            candidates(llvm_packages.iter().map(String::as_str).chain(rust_packages.iter().copied()));
        let server_libraries: BTreeMap<_, _> =
            SERVERS.iter().map(|server| (server.program, libraries_of(server.packages))).collect();
        let asked_for = TOOLS
            .iter()
            .map(|tool| tool.package.to_owned())
            .chain(rust_packages.into_iter().map(str::to_owned))
            .chain(server_libraries.values().flatten().cloned())
            .chain(LINKER_LLVM.into_iter().flat_map(super::plan::llvm_packages));
        Self {
            lists_fresh: lists_refreshed || lists_are_fresh(Path::new("/var/lib/apt/lists")),
            rust: DEBIAN_RUST.into_iter().find_map(|packages| debian_rust(packages, &candidates)),
            llvm: LINKER_LLVM
                .into_iter()
                .filter(|llvm| candidates.contains_key(&format!("llvm-{llvm}-dev")))
                .collect(),
            installed: installed(asked_for.collect()),
            server_libraries,
        }
    }
}

/// The versions that apt would install, by package. Packages that it does not know are not in it.
fn candidates<'a>(packages: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let args: Vec<_> = ["policy"].into_iter().chain(packages).collect();
    parse_policy(&query("apt-cache", &args).unwrap_or_default())
}

fn parse_policy(policy: &str) -> BTreeMap<String, String> {
    let mut package = "";
    let mut candidates = BTreeMap::new();
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = name;
        } else if let Some(version) =
            line.strip_prefix("  Candidate: ").filter(|version| *version != "(none)")
        {
            candidates.insert(package.to_owned(), version.to_owned());
        }
    }
    candidates
}

fn debian_rust(packages: &[&str], candidates: &BTreeMap<String, String>) -> Option<DebianRust> {
    let version = candidates.get(*packages.first()?)?;
    let recent = ebpf_toolchain::rust_version(version)? >= OLDEST_RUST;
    if !recent || !packages.iter().all(|package| candidates.contains_key(*package)) {
        return None;
    }
    // The packages conflict with Debian's other Rust and with its rustup. Somebody who has those keeps them.
    let simulated = [&["-s", "--no-remove", "--no-install-recommends", "install"], packages].concat();
    query("apt-get", &simulated)?;
    let depends = query("apt-cache", &["depends", "--recurse", "--important", packages.first()?])?;
    Some(DebianRust {
        packages: packages.iter().map(|package| (*package).to_owned()).collect(),
        llvm: newest_libllvm(&depends)?,
    })
}

/// The LLVM that a compiler is linked with, from the list of all that it depends on.
fn newest_libllvm(depends: &str) -> Option<u32> {
    depends.split_whitespace().filter_map(|word| word.strip_prefix("libllvm")?.parse().ok()).max()
}

/// The libraries that a package depends on.
fn libraries_of(packages: &[&str]) -> Vec<String> {
    let Some(package) = packages.first() else { return Vec::new() };
    let Some(shown) = query("apt-cache", &["show", "--no-all-versions", package]) else { return Vec::new() };
    shown.lines().find_map(|line| line.strip_prefix("Depends: ")).map(libraries).unwrap_or_default()
}

/// The libraries of a line of dependencies: `libc6 (>= 2.34), zlib1g (>= 1:1.1.4), nginx-common`.
fn libraries(depends: &str) -> Vec<String> {
    depends
        .split(", ")
        .filter_map(|dependency| dependency.split([' ', ':']).next())
        .filter(|name| name.starts_with("lib") || *name == "zlib1g")
        .map(str::to_owned)
        .collect()
}

fn installed(packages: BTreeSet<String>) -> BTreeSet<String> {
    // dpkg-query fails if it does not know one of them, but answers for the others: ask for all that are there.
    let all = query("dpkg-query", &["-W", "-f", "${Package} ${db:Status-Abbrev}\n"]).unwrap_or_default();
    all.lines()
        .filter_map(|line| line.trim_end().strip_suffix(" ii"))
        .filter(|package| packages.contains(*package))
        .map(str::to_owned)
        .collect()
}

/// Whether there are package lists, fetched lately. The files carry the mirror's time; the directories, into which
/// `apt-get update` moves and downloads, carry ours.
fn lists_are_fresh(lists: &Path) -> bool {
    let present = fs::read_dir(lists).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    });
    let fetched = [lists.to_owned(), lists.join("partial")].iter().filter_map(|path| modified(path)).max();
    let age = fetched.and_then(|fetched| SystemTime::now().duration_since(fetched).ok());
    present && age.is_some_and(|age| age < LISTS_GO_STALE)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_candidate_is_not_offered() {
        let policy = "\
rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
libstd-rust-dev-bpf:
  Installed: (none)
  Candidate: (none)
  Version table:
";
        let candidates = parse_policy(policy);
        assert_eq!(
            candidates.into_iter().collect::<Vec<_>>(),
            [("rustc-web".into(), "1.96.0+dfsg1-1~deb12u2".into())]
        );
    }

    #[test]
    fn the_compilers_llvm_is_read_from_its_dependencies() {
        assert_eq!(
            newest_libllvm("rustc-web\n  Depends: libgcc-s1\nlibllvm22\n  Depends: libllvm22\n"),
            Some(22)
        );
        assert_eq!(newest_libllvm("rustc-web\n  Depends: <libllvm-none>\n"), None);
    }

    #[test]
    fn only_libraries_of_a_server_are_installed_never_its_service() {
        let depends =
            "libc6 (>= 2.34), libssl3 (>= 3.0.0), zlib1g (>= 1:1.1.4), iproute2, nginx-common (<< 1.22.1)";
        assert_eq!(libraries(depends), ["libc6", "libssl3", "zlib1g"]);
    }
}
