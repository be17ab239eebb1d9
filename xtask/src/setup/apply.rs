//! Doing the steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::plan::{BPF_LINKER_VERSION, Step};
use crate::{command, progress, root, workspace};

pub(super) fn apply(step: &Step) -> Result<()> {
    match step {
        Step::RefreshLists => progress::step("package lists", apt_get().arg("update")),
        Step::Install(packages) => {
            let options = ["install", "--yes", "--no-remove", "--no-install-recommends"];
            progress::step("packages", apt_get().args(options).args(packages))
        }
        Step::AddRustSource => {
            let args = ["component", "add", "rust-src", "--toolchain", "nightly"];
            progress::step("rust-src", Command::new("rustup").args(args))
        }
        Step::AddComponents(components) => {
            let what = components.join(" ");
            progress::step(&what, Command::new("rustup").args(["component", "add"]).args(components))
        }
        Step::BuildLinker { llvm } => build_linker(*llvm),
        Step::UnpackNginx => unpack_nginx(),
    }
}

fn apt_get() -> Command {
    // Set by env, because sudo drops variables: no package may ask a question or restart a service.
    let mut command = root::command("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l", "apt-get", "-q"]);
    // Somebody else's apt may be at work, for instance the daily one of a machine that just started.
    command.args(["-o", "DPkg::Lock::Timeout=120"]);
    command
}

fn build_linker(llvm: u32) -> Result<()> {
    let llvm_config = format!("llvm-config-{llvm}");
    let prefix = command::query(&llvm_config, &["--prefix"])
        .with_context(|| format!("`{llvm_config} --prefix` failed, though llvm-{llvm}-dev is installed"))?;
    let feature = format!("llvm-{llvm}");
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &feature])
        // bpf-linker reads the first one, llvm-sys below it the second: llvm-sys 221 is for LLVM 22.1.
        .env("LLVM_PREFIX", prefix.trim())
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), prefix.trim())
        // Not into the project: neither its build directory nor its configuration.
        .env_remove("CARGO_TARGET_DIR")
        .current_dir("/");
    progress::step(&format!("bpf-linker {BPF_LINKER_VERSION}"), &mut cargo)
}

/// Debian's nginx package would start a web server on this host and enable it at boot, which nobody asked for. So the
/// package is only unpacked, into the project; the libraries that it needs are installed like other packages.
fn unpack_nginx() -> Result<()> {
    let directory = lb_tests::web::unpacked_nginx();
    let tools = directory.parent().context("the directory for tools has no parent")?;
    fs::create_dir_all(tools).with_context(|| format!("cannot create {}", tools.display()))?;
    // In some releases `nginx` is an empty package that depends on one of the others.
    for package in ["nginx", "nginx-core", "nginx-light"] {
        if unpack(package, tools, &directory)? && lb_tests::web::find_nginx().is_some() {
            return Ok(());
        }
    }
    bail!("no package of this Debian has the program nginx: install it yourself, then try again")
}

/// Whether there is such a package.
fn unpack(package: &str, tools: &Path, directory: &Path) -> Result<bool> {
    if command::query("apt-cache", &["show", package]).is_none() {
        return Ok(false);
    }
    progress::step(package, Command::new("apt-get").args(["-q", "download", package]).current_dir(tools))?;
    let archive = downloaded(package, tools)?;
    progress::step(
        &format!("unpack {package}"),
        Command::new("dpkg").arg("-x").arg(&archive).arg(directory),
    )?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    Ok(true)
}

/// apt puts the version into the name of the file.
fn downloaded(package: &str, tools: &Path) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    let entries = fs::read_dir(tools).with_context(|| format!("cannot read {}", tools.display()))?;
    entries
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .with_context(|| format!("`apt-get download {package}` left no file in {}", tools.display()))
}
