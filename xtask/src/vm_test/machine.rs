//! An emulated machine, from its start to the moment when it switches itself off.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lb_tests::guest::{FAILED, PASSED, reported};
use lb_tests::process::find;

use crate::{progress, workspace};

/// A machine takes half a minute, on a busy host two minutes.
const SECONDS: &str = "900";

/// What `timeout` exits with if it had to end the program.
const TIMED_OUT: i32 = 124;

/// The tables of the balancer are small in the tests; the programs are in memory too.
const MEGABYTES: &str = "1024";

/// A warning of the kernel is a failure: it panics, and with `panic=-1` the machine ends at once.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 panic_on_warn=1 oops=panic mitigations=off";

const QEMU: &str = "qemu-system-x86_64";

/// Where `cargo xtask` unpacks qemu.
pub(crate) fn unpacked_qemu() -> PathBuf {
    workspace::tools().join("qemu")
}

/// The emulator: the host's, or the unpacked one.
pub(crate) fn find_qemu() -> Option<PathBuf> {
    let unpacked = unpacked_qemu().join("usr/bin").join(QEMU);
    find(QEMU).or_else(|| unpacked.is_file().then_some(unpacked))
}

fn qemu() -> Result<Command> {
    let program =
        find_qemu().with_context(|| format!("there is no {QEMU} here: install it, then try again"))?;
    // Nobody waits for a machine any more when this process is gone, or when the machine hangs.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "timeout", "--foreground", "--kill-after=5", SECONDS]).arg(&program);
    let unpacked = unpacked_qemu();
    if program.starts_with(&unpacked) {
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| unpacked.join(path));
        let [first, second] = libraries.each_ref().map(|path| path.display());
        command.env("LD_LIBRARY_PATH", format!("{first}:{second}"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(unpacked.join(firmware));
        }
    }
    Ok(command)
}

/// Boots a kernel, shows what the machine reports, and leaves all that it said in a file.
///
/// # Errors
///
/// Unless the machine says that everything passed.
pub(super) fn run(name: &str, kernel: &Path, initramfs: &Path, log: &Path) -> Result<()> {
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = qemu()?;
    command
        // One processor: with more, qemu 7.2 now and then runs into the breakpoints that the kernel sets in its own code
        // while it changes that, and the kernel stops.
        //
        // Named, because qemu would rather use /dev/kvm where there is one, and that does not work everywhere.
        .args(["-accel", "tcg", "-cpu", "max", "-machine", "q35", "-smp", "1", "-m", MEGABYTES])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", KERNEL_COMMAND_LINE]);
    let mut verdict = None;
    let mut logged = Ok(());
    let status = progress::follow(name, &mut command, |line| {
        if logged.is_ok() {
            logged = writeln!(file, "{line}");
        }
        let report = reported(line)?;
        verdict = Some(report.to_owned());
        (report != PASSED && !report.starts_with(FAILED)).then(|| report.to_owned())
    })?;
    logged.with_context(|| format!("cannot write {}", log.display()))?;
    match verdict.as_deref() {
        Some(PASSED) => Ok(()),
        _ if status.code() == Some(TIMED_OUT) => bail!("it did not finish within {SECONDS} s"),
        _ if !status.success() => bail!("the emulator ended with {status}"),
        Some(verdict) if verdict.starts_with(FAILED) => bail!("{verdict}"),
        _ => bail!("the kernel stopped before the tests ended"),
    }
}
