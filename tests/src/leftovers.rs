//! The names of what a run makes, and the removal of what killed runs left behind.
//!
//! Everything is called `lb-PID-N`, and namespaces `lb-PID-N-ROLE`: PID is the process that made it, N counts in that
//! process. When no process has that id, nobody will clean up any more, and the next run does it.

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::output;

pub(crate) const NAMESPACES: &str = "/run/netns";
const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// How long the processes in a namespace may take to end, before they are killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Marks what belongs to one topology. Dropping it removes its directory and its pins.
#[derive(Debug)]
pub struct Tag {
    name: String,
}

impl Tag {
    /// A tag that no other has, with an empty directory for files.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = Self { name: format!("lb-{}-{count}", process::id()) };
        let directory = tag.directory();
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        Ok(tag)
    }

    /// The name of a namespace.
    pub fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    /// For `--pin-dir`.
    pub fn pin_dir(&self) -> PathBuf {
        Path::new(BPF_FILE_SYSTEM).join(&self.name)
    }

    /// For configuration, pages and logs.
    pub fn directory(&self) -> PathBuf {
        env::temp_dir().join(&self.name)
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        for directory in [self.pin_dir(), self.directory()] {
            if directory.exists()
                && let Err(error) = fs::remove_dir_all(&directory)
            {
                eprintln!("cannot remove {}: {error}", directory.display());
            }
        }
    }
}

/// Removes what runs left behind whose process is gone, and returns the names.
///
/// # Errors
///
/// If something cannot be removed.
pub fn remove() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in ownerless(Path::new(NAMESPACES)) {
        if let Err(error) = delete_namespace(&name) {
            // Another run may be cleaning up too.
            if Path::new(NAMESPACES).join(&name).exists() {
                return Err(error);
            }
            continue;
        }
        removed.push(format!("namespace {name}"));
    }
    for parent in [Path::new(BPF_FILE_SYSTEM), &env::temp_dir()] {
        for name in ownerless(parent) {
            let directory = parent.join(name);
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
            removed.push(format!("directory {}", directory.display()));
        }
    }
    Ok(removed)
}

/// The entries of a directory that bear the name of a process that is gone.
fn ownerless(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()))
        .collect()
}

/// The process that made the thing of this name, if it is one of ours.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix("lb-")?.splitn(3, '-');
    let pid = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    Some(pid)
}

/// Ends every process in a namespace, then removes it and with it all its interfaces.
pub(crate) fn delete_namespace(name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut signal = Signal::SIGTERM;
    loop {
        let pids = processes_in(name)?;
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            // It may have ended since.
            let _gone = kill(pid, signal);
        }
        if Instant::now() >= deadline {
            signal = Signal::SIGKILL;
        }
        thread::sleep(Duration::from_millis(20));
    }
    output(Command::new("ip").args(["netns", "delete", name])).map(drop)
}

fn processes_in(namespace: &str) -> Result<Vec<Pid>> {
    let pids = output(Command::new("ip").args(["netns", "pids", namespace]))?;
    let myself = Pid::this();
    Ok(pids
        .lines()
        .filter_map(|pid| pid.trim().parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| *pid != myself)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_form_have_an_owner() {
        let table = [
            ("lb-4711-0-client", Some(4711)),
            ("lb-4711-12", Some(4711)),
            ("lb-4711-client", None),
            ("lb-production", None),
            ("lb", None),
            ("xlb-4711-0-client", None),
            ("lb-4711", None),
        ];
        for (name, pid) in table {
            assert_eq!(owner(name), pid, "{name}");
        }
    }

    #[test]
    fn a_tag_names_this_process_as_its_owner() {
        let tag = Tag::new().expect("a temporary directory can be made");
        assert_eq!(owner(&tag.namespace("client")), Some(process::id()));
        assert!(!remove().expect("leftovers can be removed").iter().any(|name| name.contains(&tag.name)));
        assert!(tag.directory().exists());
    }
}
