//! Which compiler and which linker make the XDP program.
//!
//! `lb-user/build.rs` includes this file with `#[path]`, so that the build and `cargo xtask setup` cannot disagree.
//! Therefore it uses nothing but `std`.
//!
//! Two compilers can do it: a rustup toolchain with rust-src, which builds `core` along the way (`-Z build-std`), and
//! Debian's packages, which carry `core` compiled for BPF and live beside rustup. Why not the crate aya-build: it sets
//! `CARGO_ENCODED_RUSTFLAGS` itself, which leaves no way to say `-Ctarget-cpu=v3`, and the program needs the atomics
//! and the 32-bit arithmetic of that version.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nightly`, `debian` or the name of a rustup toolchain: overrides the choice.
pub(crate) const OVERRIDE: &str = "LB_EBPF_TOOLCHAIN";

/// The oldest compiler that takes the workspace: `rust-version` in Cargo.toml.
pub(crate) const OLDEST_RUST: (u32, u32) = (1, 95);

const TARGET: &str = "bpfel-unknown-none";

/// Crates that use unstable features. A stable compiler lets those that are named here do so, and no others;
/// `RUSTC_BOOTSTRAP=1` would let all.
const UNSTABLE_CRATES: &str = "aya_ebpf,lb_ebpf,lb";

/// Where Debian installs its compiler.
const DEBIAN_SYSROOT: &str = "/usr";

/// A compiler that can make BPF objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EbpfToolchain {
    source: Source,
    core: Core,
    /// Major version of the compiler's LLVM. The linker's must not be older.
    pub(crate) llvm: u32,
    stable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Rustup(String),
    Debian,
}

/// Where the target's `core` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Core {
    Precompiled,
    BuildStd,
}

/// The toolchain to use.
///
/// # Errors
///
/// One sentence for the user, with what to type.
pub(crate) fn find() -> Result<EbpfToolchain, String> {
    let wanted = env::var(OVERRIDE).ok().filter(|name| !name.is_empty());
    let found = match wanted.as_deref() {
        None => rustup("nightly").or_else(debian),
        Some("debian") => debian(),
        Some(name) => rustup(name),
    };
    found.ok_or_else(|| match wanted {
        None => "no Rust compiler here can make eBPF objects: type `cargo xtask setup`".to_owned(),
        Some(name) => format!(
            "{OVERRIDE}={name} names no Rust compiler that can make eBPF objects: unset it and type `cargo xtask setup`"
        ),
    })
}

fn rustup(name: &str) -> Option<EbpfToolchain> {
    let mut rustc = rustup_run(name, "rustc");
    let sysroot = output(rustc.args(["--print", "sysroot"]))?;
    let core = core_of(Path::new(sysroot.trim()))?;
    describe(rustup_run(name, "rustc"), Source::Rustup(name.to_owned()), core)
}

fn debian() -> Option<EbpfToolchain> {
    let sysroot = Path::new(DEBIAN_SYSROOT);
    let core =
        core_of(sysroot).filter(|core| *core == Core::Precompiled && sysroot.join("bin/cargo").exists())?;
    describe(Command::new(sysroot.join("bin/rustc")), Source::Debian, core)
}

/// The LLVM of rustup's nightly, also of one that lacks rust-src. For the set-up, which can add that.
pub(crate) fn nightly_llvm() -> Option<u32> {
    let versions = output(rustup_run("nightly", "rustc").arg("-vV"))?;
    leading_number(field(&versions, "LLVM version:")?)
}

fn core_of(sysroot: &Path) -> Option<Core> {
    let rustlib = sysroot.join("lib/rustlib");
    if rustlib.join(TARGET).exists() {
        Some(Core::Precompiled)
    } else if rustlib.join("src/rust/library/core").exists() {
        Some(Core::BuildStd)
    } else {
        None
    }
}

/// Asks the compiler for its versions; `None` if it does not run, or cannot do what is asked of it.
fn describe(mut rustc: Command, source: Source, core: Core) -> Option<EbpfToolchain> {
    let versions = output(rustc.arg("-vV"))?;
    let release = field(&versions, "release:")?;
    let stable = !release.contains("nightly") && !release.contains("dev");
    let usable = rust_version(release)? >= OLDEST_RUST && (core == Core::Precompiled || !stable);
    let llvm = leading_number(field(&versions, "LLVM version:")?)?;
    usable.then_some(EbpfToolchain { source, core, llvm, stable })
}

/// The value of a line of `rustc -vV`.
fn field<'a>(versions: &'a str, name: &str) -> Option<&'a str> {
    versions.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

impl EbpfToolchain {
    /// What to call it when talking to the user.
    pub(crate) fn name(&self) -> &str {
        match &self.source {
            Source::Rustup(name) => name,
            Source::Debian => "Debian's rustc",
        }
    }

    /// The first bpf-linker that runs and reads what this compiler writes: on the PATH, then where cargo installs.
    ///
    /// # Errors
    ///
    /// One sentence for the user, with what to type.
    pub(crate) fn bpf_linker(&self) -> Result<PathBuf, String> {
        let mut too_old = None;
        for path in programs("bpf-linker").filter(|path| runs(path)) {
            match linker_llvm(&path) {
                Some(llvm) if llvm < self.llvm => too_old = too_old.or(Some((path, llvm))),
                // An unknown LLVM gets the benefit of the doubt.
                _ => return Ok(path),
            }
        }
        Err(match too_old {
            Some((path, llvm)) => format!(
                "{} has LLVM {llvm}, which cannot read what {} writes with LLVM {}: type `cargo xtask setup`",
                path.display(),
                self.name(),
                self.llvm
            ),
            None => "bpf-linker is not installed: type `cargo xtask setup`".to_owned(),
        })
    }

    /// The command that builds the binaries of lb-ebpf, whose directory is `manifest_dir`, below `target_dir`: they
    /// end in `bpfel-unknown-none/release/`. A target directory of its own keeps the inner cargo from waiting for
    /// the lock of the outer one.
    ///
    /// # Errors
    ///
    /// One sentence for the user, with what to type.
    pub(crate) fn cargo_build(&self, manifest_dir: &Path, target_dir: &Path) -> Result<Command, String> {
        let linker = self.bpf_linker()?;
        let mut cargo = match &self.source {
            Source::Rustup(name) => rustup_run(name, "cargo"),
            Source::Debian => Command::new(Path::new(DEBIAN_SYSROOT).join("bin/cargo")),
        };
        // The outer cargo hands these to build scripts. They name the host's compiler, or wrap it (clippy).
        for variable in
            ["CARGO", "RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"]
        {
            cargo.env_remove(variable);
        }
        cargo
            .current_dir(manifest_dir)
            .args(["build", "--package", "lb-ebpf", "--bins", "--release", "--features", "ebpf"])
            .args(["--target", TARGET])
            .arg("--target-dir")
            .arg(target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&host_arch(), &linker).join("\x1f"));
        if self.source == Source::Debian {
            // The PATH has rustup's rustc first.
            cargo.env("RUSTC", Path::new(DEBIAN_SYSROOT).join("bin/rustc"));
        }
        if self.core == Core::BuildStd {
            cargo.args(["-Z", "build-std=core"]);
        }
        if self.stable {
            cargo.env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
        }
        Ok(cargo)
    }
}

fn rustflags(host_arch: &str, linker: &Path) -> [String; 5] {
    [
        // aya-ebpf reads registers of the traced host by this.
        format!("--cfg=bpf_target_arch=\"{host_arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
    ]
}

/// In a build script the architecture that is built for, elsewhere the one that this runs on.
fn host_arch() -> String {
    env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned())
}

fn rustup_run(toolchain: &str, program: &str) -> Command {
    let mut command = Command::new("rustup");
    // Looking must not start a download.
    command.args(["run", toolchain, program]).env("RUSTUP_AUTO_INSTALL", "0");
    command
}

/// All programs of this name, in the order in which they are to be tried.
fn programs(name: &str) -> impl Iterator<Item = PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> =
        env::split_paths(&path).chain(cargo_home.map(|home| home.join("bin"))).collect();
    directories.into_iter().map(move |directory| directory.join(name)).filter(|path| path.is_file())
}

fn runs(program: &Path) -> bool {
    output(Command::new(program).arg("--version")).is_some()
}

/// The major version of the LLVM in a bpf-linker, which its `--version` does not tell: either the library that it
/// loads, or LLVM's signature for bitcode, which a statically linked one carries.
fn linker_llvm(linker: &Path) -> Option<u32> {
    let pattern = r"libLLVM[-.](so\.)?[0-9]+|LLVM[0-9]+\.[0-9]+\.[0-9]";
    let found = output(Command::new("grep").env("LC_ALL", "C").args(["-aoE", "-m1", pattern]).arg(linker))?;
    leading_number(found.lines().next()?.trim_start_matches(|c: char| !c.is_ascii_digit()))
}

/// `(1, 96)` for `1.96.0+dfsg1`.
pub(crate) fn rust_version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    Some((major.parse().ok()?, leading_number(rest)?))
}

fn leading_number(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What a program printed, if it could be started and succeeded.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
