//! Who may edit, and who is the daemon.
//!
//! Two locks, both of flock(2) on directories, for the bpf file system has no regular files. Edits lock the pin
//! directory itself, `lb run` locks the directory `daemon` in it as long as it lives. The kernel gives a lock back when
//! its holder dies, however it dies.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

/// Name of the directory that `lb run` locks.
pub(crate) const DAEMON: &str = "daemon";

/// How long a lock is tried whose holder cannot be told: somebody who only looks whether `lb run` lives has it for microseconds.
const PATIENCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);

/// How long a process that was killed may take to go: it has flow tables to unmap.
const DYING: Duration = Duration::from_secs(10);

/// A lock, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _directory: File,
}

/// Waits for the right to edit the maps pinned in `dir`; `None` if there is no such directory.
pub(crate) fn edit(dir: &Path) -> anyhow::Result<Option<Lock>> {
    loop {
        let Some(directory) = open(dir)? else { return Ok(None) };
        directory.lock().with_context(|| format!("cannot lock {}", dir.display()))?;
        if is_still(&directory, dir) {
            return Ok(Some(Lock { _directory: directory }));
        }
    }
}

/// The right to edit, if nobody has it at the moment.
pub(crate) fn try_edit(dir: &Path) -> anyhow::Result<Option<Lock>> {
    try_lock(dir).with_context(|| format!("cannot lock {}", dir.display()))
}

/// The right to be the daemon of `dir`, which must have its directory `daemon`; `None` if another process has it.
pub(crate) fn daemon(dir: &Path) -> anyhow::Result<Option<Lock>> {
    let path = daemon_directory(dir);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lock = try_lock(&path).with_context(|| format!("cannot lock {}", path.display()))?;
        if lock.is_some() || Instant::now() > deadline {
            return Ok(lock);
        }
        thread::sleep(PAUSE);
    }
}

/// Whether a daemon lives on `dir`. One that has just been killed has its lock for as long as the kernel takes to clear it away;
/// that is waited for.
pub(crate) fn daemon_lives(dir: &Path) -> anyhow::Result<bool> {
    let begin = Instant::now();
    while is_held(dir)? {
        let wait = match daemon_process(dir) {
            Some(pid) if is_dying(pid) => DYING,
            Some(_) => return Ok(true),
            // It may just have gone; or be one that is not to be seen from here.
            None => PATIENCE,
        };
        if begin.elapsed() > wait {
            return Ok(true);
        }
        thread::sleep(PAUSE);
    }
    Ok(false)
}

/// Whether a process has been killed, though it is still there: it runs nothing any more, or is about to be told.
fn is_dying(pid: u32) -> bool {
    // One that is not to be seen from this namespace.
    if pid == 0 {
        return false;
    }
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    // In the course of exit_mm a process loses its memory, and with it what it runs.
    let runs = |field: &str| status.lines().any(|line| line.starts_with(field));
    !runs("VmSize:") || is_told_to_die(&status)
}

/// Whether SIGKILL waits for a process, as `/proc/PID/status` has it (proc_pid_status(5)).
fn is_told_to_die(status: &str) -> bool {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    status.lines().any(|line| {
        let mask = line.strip_prefix("ShdPnd:").or_else(|| line.strip_prefix("SigPnd:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & SIGKILL != 0)
    })
}

/// Whether the lock of a daemon is held.
fn is_held(dir: &Path) -> anyhow::Result<bool> {
    let path = daemon_directory(dir);
    let Some(directory) = open(&path)? else { return Ok(false) };
    match directory.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The process of the daemon that lives on `dir`, as far as this process can see it.
pub(crate) fn daemon_process(dir: &Path) -> Option<u32> {
    let metadata = daemon_directory(dir).metadata().ok()?;
    let (dev, inode) = (metadata.dev(), metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    holder(&locks, &format!("{:02x}:{:02x}:{inode}", libc::major(dev), libc::minor(dev)))
}

/// Who has the exclusive lock on a file, as `/proc/locks` has it (proc_locks(5)).
fn holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let kind = [words.next()?, words.next()?, words.next()?];
        let (pid, locked) = (words.next()?, words.next()?);
        (kind == ["FLOCK", "ADVISORY", "WRITE"] && locked == file).then(|| pid.parse().ok())?
    })
}

/// The directory that `lb run` locks.
pub(crate) fn daemon_directory(dir: &Path) -> PathBuf {
    dir.join(DAEMON)
}

fn open(dir: &Path) -> anyhow::Result<Option<File>> {
    match File::open(dir) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open {}", dir.display())),
    }
}

fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    let directory = File::open(path)?;
    match directory.try_lock() {
        Ok(()) => Ok(is_still(&directory, path).then_some(Lock { _directory: directory })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the path still leads to that directory: its holder may have removed it while somebody waited for it.
fn is_still(directory: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (directory.metadata(), path.metadata()) {
        (Ok(locked), Ok(present)) => identity(locked) == identity(present),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, process};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("lb-lock-{name}-{}", process::id()));
            fs::create_dir_all(path.join(DAEMON)).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn one_daemon_a_directory_and_it_lives_as_long_as_its_lock() {
        let scratch = Scratch::new("daemon");
        assert!(!daemon_lives(&scratch.0).unwrap());
        let first = daemon(&scratch.0).unwrap();
        assert!(first.is_some());
        assert!(daemon_lives(&scratch.0).unwrap());
        assert!(daemon(&scratch.0).unwrap().is_none());
        assert_eq!(daemon_process(&scratch.0), Some(process::id()));
        drop(first);
        assert_eq!(daemon_process(&scratch.0), None);
        assert!(!daemon_lives(&scratch.0).unwrap());
        assert!(daemon(&scratch.0).unwrap().is_some());
    }

    #[test]
    fn the_holder_of_a_lock_is_told_from_who_waits_and_who_looks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1b:77 0 EOF\n2: FLOCK  ADVISORY  READ  12 00:1b:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 00:1b:78 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 14 00:1b:78 0 EOF\n";
        assert_eq!(holder(locks, "00:1b:78"), Some(13));
        assert_eq!(holder(locks, "00:1b:77"), None);
    }

    #[test]
    fn who_is_killed_is_not_alive() {
        // proc_pid_status(5); signal 9 is bit 8.
        for (mask, told) in
            [("0000000000000000", false), ("0000000000000100", true), ("0000000000004102", true)]
        {
            assert_eq!(is_told_to_die(&format!("Name:\tlb\nSigPnd:\t{mask}\nShdPnd:\t0\n")), told);
            assert_eq!(is_told_to_die(&format!("SigPnd:\t0\nShdPnd:\t{mask}\nSigBlk:\t0100\n")), told);
        }
        assert!(!is_dying(process::id()));
        assert!(!is_dying(0));
        assert!(is_dying(u32::MAX));
    }

    #[test]
    fn edits_exclude_each_other_but_not_the_daemon() {
        let scratch = Scratch::new("edit");
        let _daemon = daemon(&scratch.0).unwrap();
        let edit = edit(&scratch.0).unwrap();
        assert!(edit.is_some());
        assert!(try_edit(&scratch.0).unwrap().is_none());
        drop(edit);
        assert!(try_edit(&scratch.0).unwrap().is_some());
    }

    #[test]
    fn without_the_directory_there_is_nothing_to_edit_and_no_daemon() {
        let missing = Path::new("/nonexistent/lb");
        assert!(edit(missing).unwrap().is_none());
        assert!(!daemon_lives(missing).unwrap());
    }
}
