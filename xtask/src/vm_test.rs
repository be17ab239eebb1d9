//! `cargo xtask vm-test`: the program and short sessions on other kernels than the host's, each in an emulated machine.
//!
//! A machine has an unpacked Debian kernel and a file system in memory, with a first process of our own (the binary
//! `guest` of lb-tests), lb, two test binaries and the few programs that these call. Everything is emulated: no rights,
//! no /dev/kvm, nothing installed and nothing of the host's network is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Error, Result, bail, ensure};
use lb_tests::guest::{MODULES, PROGRAMS, STEPS};
use lb_tests::process::find;

use self::archive::Archive;
use crate::setup::{self, Purpose};
use crate::{command, workspace};

mod archive;
pub(crate) mod machine;

/// A kernel to test on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// What users call it.
    pub(crate) series: &'static str,
    /// The Debian package that depends on the newest of the series. Cloud kernels are the smallest.
    pub(crate) package: &'static str,
}

/// All of them. The names are Debian 12's.
pub(crate) const KERNELS: [Kernel; 2] = [
    Kernel { series: "6.1", package: "linux-image-cloud-amd64" },
    Kernel { series: "6.12", package: "linux-image-6.12-cloud-amd64" },
];

/// What the kernels have as modules and the tests need, each after those that it needs itself.
const KERNEL_MODULES: [&str; 7] = ["llc", "stp", "bridge", "veth", "garp", "mrp", "8021q"];

/// Programs that lb-tests' namespaces are made with.
const TOOLS: [&str; 3] = ["ip", "ethtool", "nsenter"];

pub(crate) fn vm_test() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the machines that vm-test boots are x86-64, and so are the programs that it copies into them: run it on such \
         a host"
    );
    setup::setup(&[Purpose::Build, Purpose::Vm])?;
    let directory = workspace::target().join("vm-test");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    eprintln!("Statically linked: lb, the tests and the machines' first process");
    let programs = build()?;
    let machines = KERNELS.iter().map(|kernel| Machine::new(kernel, &programs, &directory));
    let machines = machines.collect::<Result<Vec<_>>>()?;
    // At the same time, because each has only one processor.
    let outcomes: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = machines.iter().map(|machine| scope.spawn(|| machine.run())).collect();
        running.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut failed = Vec::new();
    for (machine, outcome) in machines.iter().zip(outcomes) {
        let (seconds, outcome) = outcome.map_err(|_| Error::msg("a thread of xtask panicked"))?;
        let what = format!("{} ({}) in {seconds} s", machine.name, machine.release);
        match outcome {
            Ok(()) => println!("PASS  {what}"),
            Err(error) => {
                println!("FAIL  {what}: {error:#}");
                failed.push(format!("{} (see {})", machine.name, machine.log.display()));
            }
        }
    }
    if !failed.is_empty() {
        bail!("the tests fail on {}", failed.join(" and "));
    }
    Ok(())
}

/// Everything that a machine needs, and where its log goes.
struct Machine {
    name: String,
    release: String,
    image: PathBuf,
    initramfs: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Writes its file system into the directory.
    fn new(kernel: &Kernel, programs: &[PathBuf], directory: &Path) -> Result<Self> {
        let file = |extension| directory.join(format!("linux-{}.{extension}", kernel.series));
        let machine = Self {
            name: format!("Linux {}", kernel.series),
            release: kernel.release()?,
            image: kernel.image()?,
            initramfs: file("cpio"),
            log: file("log"),
        };
        fs::write(&machine.initramfs, contents(kernel, programs)?)
            .with_context(|| format!("cannot write {}", machine.initramfs.display()))?;
        Ok(machine)
    }

    /// Runs it to its end, and tells how long that took in seconds.
    fn run(&self) -> (u64, Result<()>) {
        let started = Instant::now();
        let outcome = machine::run(&self.name, &self.image, &self.initramfs, &self.log);
        (started.elapsed().as_secs(), outcome)
    }
}

impl Kernel {
    /// Where its package is unpacked.
    pub(crate) fn directory(&self) -> PathBuf {
        workspace::tools().join("kernels").join(self.package)
    }

    /// The file to boot.
    fn image(&self) -> Result<PathBuf> {
        only_entry(&self.directory().join("boot"), "vmlinuz-")
    }

    /// `6.1.0-56-cloud-amd64`
    fn release(&self) -> Result<String> {
        let modules = only_entry(&self.directory().join("lib/modules"), &format!("{}.", self.series))?;
        Ok(modules.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// The contents of a module.
    fn module(&self, name: &str) -> Result<Vec<u8>> {
        let directory = self.directory().join("lib/modules").join(self.release()?).join("kernel");
        let file =
            find_file(&directory, &|file| file == format!("{name}.ko") || file == format!("{name}.ko.xz"))?
                .with_context(|| format!("Linux {} has no module {name}", self.series))?;
        if file.extension().is_some_and(|extension| extension == "xz") {
            return output(Command::new("xz").args(["--decompress", "--stdout"]).arg(&file));
        }
        read(&file)
    }
}

/// Builds what runs in the machines: linked statically, so that no library has to go with it.
fn build() -> Result<Vec<PathBuf>> {
    let flags = ["-Ctarget-feature=+crt-static", "-Cdebuginfo=0", "-Cstrip=symbols"];
    let mut cargo = command::cargo(["build", "--package", "lb-user", "--package", "lb-tests"]);
    cargo.args(["--bin", "lb", "--bin", "guest"]);
    for step in &STEPS {
        cargo.args(["--test", step.program]);
    }
    // With a target, the flags are not for build scripts, and the artifacts beside those of other builds.
    cargo.args(["--target", &command::host_triple(), "--message-format=json-render-diagnostics"]);
    // An emulated processor makes slow programs very slow.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    cargo.stderr(Stdio::inherit());
    let messages = output(&mut cargo)?;
    Ok(executables(&String::from_utf8_lossy(&messages)))
}

/// The paths of executables in cargo's messages, of which there is one a line.
fn executables(messages: &str) -> Vec<PathBuf> {
    let path = |line: &str| Some(line.split_once(r#""executable":""#)?.1.split('"').next()?.into());
    messages.lines().filter_map(path).collect()
}

/// The name of an executable, without the hash that cargo appends to those of tests.
fn target_name(executable: &Path) -> String {
    let name = executable.file_name().unwrap_or_default().to_string_lossy();
    name.split('-').next().unwrap_or_default().to_owned()
}

/// The file system of a machine.
fn contents(kernel: &Kernel, programs: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for (index, module) in KERNEL_MODULES.into_iter().enumerate() {
        archive.add(&format!("{MODULES}/{index}-{module}.ko"), &kernel.module(module)?);
    }
    for program in programs {
        let name = target_name(program);
        // What the kernel starts first.
        let path = if name == "guest" { "/init".to_owned() } else { format!("{PROGRAMS}/{name}") };
        archive.add(&path, &read(program)?);
    }
    for tool in TOOLS {
        let path = find(tool).with_context(|| format!("there is no {tool} on this machine"))?;
        archive.add(&format!("{PROGRAMS}/{tool}"), &read(&path)?);
        for library in libraries(&path)? {
            archive.add(&library, &read(Path::new(&library))?);
        }
    }
    Ok(archive.finish())
}

/// The libraries that a program is linked with, the loader among them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let listed = output(Command::new("ldd").arg(program).env("LC_ALL", "C"))?;
    let listed = String::from_utf8_lossy(&listed);
    // `libmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f...)`, and the loader without the arrow.
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// What a program writes to its standard output.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let shown = command::show(command);
    command.stdout(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let output = child.wait_with_output().with_context(|| format!("cannot wait for `{shown}`"))?;
    ensure!(output.status.success(), "`{shown}` failed ({})", output.status);
    Ok(output.stdout)
}

/// The entry of a directory whose name begins like that.
fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    entries(directory)?
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .with_context(|| {
            format!(
                "{} holds no {prefix}*: remove {} to have it unpacked again",
                directory.display(),
                workspace::tools().display()
            )
        })
}

fn find_file(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for path in entries(directory)? {
        if path.is_dir() {
            if let Some(found) = find_file(&path, wanted)? {
                return Ok(Some(found));
            }
        } else if path.file_name().and_then(|name| name.to_str()).is_some_and(wanted) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"nix"},"executable":null,"fresh":true}
{"reason":"compiler-artifact","target":{"name":"lb"},"executable":"/target/debug/lb","fresh":true}
{"reason":"compiler-artifact","target":{"name":"program"},"executable":"/target/debug/deps/program-0a1b","fresh":false}
{"reason":"build-finished","success":true}
"#;
        let names: Vec<_> = executables(messages).iter().map(|path| target_name(path)).collect();
        assert_eq!(names, ["lb", "program"]);
    }
}
