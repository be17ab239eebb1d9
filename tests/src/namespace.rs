//! A network namespace that is gone when its guard is.

use std::ffi::OsStr;
use std::fs::File;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::leftovers::{NAMESPACES, Tag, delete_namespace};
use crate::process::{Process, output};

/// A network namespace. Dropping it ends the processes in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with the loopback interface up and nothing forwarded by the kernel: what arrives, XDP sent.
    ///
    /// # Errors
    ///
    /// If this is not root, or the kernel refuses.
    pub fn new(tag: &Tag, role: &str) -> Result<Self> {
        let name = tag.namespace(role);
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set dev lo up")?;
        // Some of these a new namespace takes over from the host.
        for (name, value) in [
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            // Link-local addresses are usable at once.
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            namespace.sysctl(name, value)?;
        }
        Ok(namespace)
    }

    /// The name that `ip netns` shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside.
    ///
    /// Not `ip netns exec`: that mounts a fresh /sys, without the bpf file system, and pins would vanish.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a program inside, to its end, and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it cannot be started or fails.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
        output(self.command(program).args(args))
    }

    /// Starts a program inside that runs until the guard is dropped.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Process> {
        Process::spawn(self.command(program).args(args))
    }

    /// Runs `ip` inside, with arguments separated by blanks: `ip("route add default via 192.168.1.254")`.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn ip(&self, args: &str) -> Result<String> {
        self.run("ip", args.split_whitespace())
    }

    /// Sets a kernel parameter inside, named by its path below /proc/sys.
    ///
    /// # Errors
    ///
    /// If there is no such parameter.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let _inside = self.enter()?;
        std::fs::write(format!("/proc/sys/{name}"), value)
            .with_context(|| format!("cannot set {name} to {value} in {}", self.name))
    }

    /// Moves the current thread inside until the guard is dropped: sockets that it opens belong to this namespace.
    ///
    /// # Errors
    ///
    /// If this is not root.
    pub fn enter(&self) -> Result<Entered> {
        let outside = current()?;
        let path = self.path();
        let inside = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        setns(&inside, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.name))?;
        Ok(Entered { outside, _same_thread: PhantomData })
    }

    /// Where the kernel shows it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NAMESPACES).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = delete_namespace(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// Moves the current thread into a namespace without name or settings: quick to make, and gone when the thread has left
/// it and its programs have ended. Of interfaces it has a loopback that is down.
///
/// # Errors
///
/// If this is not root.
pub fn enter_nameless() -> Result<Entered> {
    let outside = current()?;
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a namespace")?;
    Ok(Entered { outside, _same_thread: PhantomData })
}

/// The namespace of this thread.
fn current() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("cannot open this thread's namespace")
}

/// While this lives, the thread is inside a namespace. Guards are to be dropped in reverse order.
#[derive(Debug)]
#[must_use = "the thread leaves the namespace when the guard is dropped"]
pub struct Entered {
    outside: File,
    /// Keeps the guard on the thread that it is for.
    _same_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.outside, CloneFlags::CLONE_NEWNET) {
            // Going on would touch the wrong network.
            panic!("cannot leave a namespace: {error}");
        }
    }
}
