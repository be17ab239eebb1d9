//! Builds the XDP programs of lb-ebpf and leaves the objects in `OUT_DIR`, where `program.rs` embeds them from.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[expect(dead_code, reason = "this file is xtask's too, which uses more of it")]
#[path = "../xtask/src/ebpf_toolchain.rs"]
mod ebpf_toolchain;

/// Binaries of lb-ebpf: the balancer, its clock, a program that passes everything, for peers of veth interfaces, and what
/// benchmarks measure with.
const PROGRAMS: [&str; 4] = ["lb", "clock", "pass", "bench"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let workspace = directory("CARGO_MANIFEST_DIR")?.join("..");
    let out = directory("OUT_DIR")?;
    for source in ["lb-ebpf", "lb-common", "Cargo.lock", "xtask/src/ebpf_toolchain.rs"] {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    println!("cargo::rerun-if-env-changed={}", ebpf_toolchain::OVERRIDE);

    let target = out.join("ebpf-target");
    compile(&workspace.join("lb-ebpf"), &target)?;
    for program in PROGRAMS {
        let object = target.join("bpfel-unknown-none/release").join(program);
        fs::copy(&object, out.join(program))
            .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    }
    Ok(())
}

fn compile(manifest_dir: &Path, target_dir: &Path) -> Result<(), String> {
    let toolchain = ebpf_toolchain::find()?;
    let mut cargo = toolchain.cargo_build(manifest_dir, target_dir)?;
    let output =
        cargo.output().map_err(|error| format!("cannot start {:?}: {error}", cargo.get_program()))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(());
    }
    Err(format!("the XDP program does not build with {}:\n{messages}", toolchain.name()))
}

fn directory(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {variable}"))
}
