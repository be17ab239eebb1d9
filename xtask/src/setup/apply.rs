//! Doing the steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lb_tests::web::{find_server, unpacked};

use super::Server;
use super::plan::{BPF_LINKER_VERSION, Step};
use crate::vm_test::{Kernel, machine};
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
        Step::UnpackServer(server) => unpack_server(server),
        Step::UnpackEmulator => unpack_emulator(),
        Step::UnpackKernel(kernel) => unpack_kernel(kernel),
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

fn unpack_server(server: &Server) -> Result<()> {
    for package in server.packages {
        if command::query("apt-cache", &["show", package]).is_none() {
            continue;
        }
        unpack(package, &[(*package).to_owned()], &unpacked(server.program))?;
        if find_server(server.program).is_some() {
            return Ok(());
        }
    }
    bail!("no package of this Debian has the program {}: install it yourself, then try again", server.program)
}

/// Installing it could remove a qemu of another release, or parts of it. Unpacked, with the libraries that the machine
/// lacks, it bothers nobody.
fn unpack_emulator() -> Result<()> {
    let simulated = ["-s", "--no-install-recommends", "install", "qemu-system-x86"];
    let plan = command::query("apt-get", &simulated).context(
        "apt does not know how to install qemu-system-x86: install it yourself, so that there is a \
         qemu-system-x86_64, then try again",
    )?;
    unpack("qemu", &to_be_installed(&plan), &machine::unpacked_qemu())?;
    if machine::find_qemu().is_none() {
        bail!(
            "the packages for qemu-system-x86 hold no qemu-system-x86_64: install it yourself, then try again"
        );
    }
    Ok(())
}

/// The packages in a simulation: `Inst libfdt1 (1.6.1-4+b1 Debian:12.15/oldstable [amd64])`.
fn to_be_installed(plan: &str) -> Vec<String> {
    let package = |line: &str| line.strip_prefix("Inst ")?.split(' ').next().map(str::to_owned);
    plan.lines().filter_map(package).collect()
}

fn unpack_kernel(kernel: &Kernel) -> Result<()> {
    let depends = command::query("apt-cache", &["depends", kernel.package]).unwrap_or_default();
    let package = newest_kernel(&depends, kernel).with_context(|| {
        format!(
            "the package {} does not lead to Linux {} here, as it does on Debian 12 with its security updates: test on \
             other kernels there",
            kernel.package, kernel.series
        )
    })?;
    unpack(&format!("Linux {}", kernel.series), &[package], &kernel.directory())
}

/// What the package of a series depends on: the name changes with each update.
fn newest_kernel(depends: &str, kernel: &Kernel) -> Option<String> {
    let prefix = format!("linux-image-{}.", kernel.series);
    depends.split_whitespace().find(|word| word.starts_with(&prefix)).map(str::to_owned)
}

/// Fetches packages and unpacks them into a directory, which is there only when all of them are in it.
fn unpack(what: &str, packages: &[String], directory: &Path) -> Result<()> {
    let work = directory.with_file_name("unpacking");
    for leftover in [&work, directory] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).with_context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    let (archives, content) = (work.join("archives"), work.join("content"));
    for directory in [&archives, &content] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut download = Command::new("apt-get");
    progress::step(what, download.args(["-q", "download"]).args(packages).current_dir(&archives))?;
    for archive in files(&archives)? {
        command::run(Command::new("dpkg").arg("--extract").arg(&archive).arg(&content))?;
    }
    fs::rename(&content, directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm_test::KERNELS;

    #[test]
    fn what_would_be_removed_is_not_fetched() {
        let plan = "\
Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]
Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])
Inst qemu-system-x86 (1:7.2+dfsg-7+deb12u18+b3 Debian:12.15/oldstable [amd64])
Conf seabios (1.16.2-1 Debian:12.15/oldstable [all])
";
        assert_eq!(to_be_installed(plan), ["seabios", "qemu-system-x86"]);
    }

    #[test]
    fn a_kernel_is_fetched_only_if_it_is_of_its_series() {
        let [kernel, _] = KERNELS;
        let depends = |package| format!("linux-image-cloud-amd64\n  Depends: {package}\n");
        for (package, fetched) in
            [("linux-image-6.1.0-56-cloud-amd64", true), ("linux-image-6.12.117+deb13-cloud-amd64", false)]
        {
            let newest = newest_kernel(&depends(package), &kernel);
            assert_eq!(newest.as_deref(), fetched.then_some(package), "{package}");
        }
    }
}
