//! `lb detach`: ends `lb run` and removes what it, or a killed one, has left.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{host, lock, maps::Maps, pins};

/// How long `lb run` may take to end: it stops between two steps of whatever it does.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// Detaches the balancer pinned in `dir`.
pub(crate) fn detach(dir: &Path) -> anyhow::Result<()> {
    host::check_rights("lb detach")?;
    if lock::daemon_lives(dir)? {
        let pid = Maps::open(dir)?.meta()?.pid;
        stop(dir, pid)?;
        println!("stopped lb run (process {pid}) at {}", dir.display());
    } else if !pins::present(dir) {
        println!("nothing to detach: no balancer at {}", dir.display());
    } else {
        println!("removed what a killed lb run left at {}", dir.display());
    }
    // Nothing is there any more, unless `lb run` was killed.
    if dir.exists() {
        let Some(_lock) = lock::edit(dir)? else { return Ok(()) };
        if lock::daemon_lives(dir)? {
            bail!("another lb run has just started at {}: try again", dir.display());
        }
        pins::remove(dir)?;
    }
    Ok(())
}

fn stop(dir: &Path, pid: u32) -> anyhow::Result<()> {
    let raw = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let Some(raw) = raw.filter(|_| is_lb(pid)) else {
        bail!(
            "lb run lives at {}, but process {pid} is not it, perhaps in another container: stop it there",
            dir.display()
        );
    };
    kill(Pid::from_raw(raw), Signal::SIGTERM)
        .with_context(|| format!("cannot stop lb run (process {pid})"))?;
    let deadline = Instant::now() + PATIENCE;
    while lock::daemon_lives(dir)? {
        if Instant::now() > deadline {
            bail!("lb run (process {pid}) does not end: `kill -9 {pid}`, then `lb detach` again");
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Process numbers are used again: a stale one must not hit somebody else.
fn is_lb(pid: u32) -> bool {
    let Ok(executable) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let own = fs::read_link("/proc/self/exe").ok();
    let is_named_lb = executable.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lb"));
    own.as_ref() == Some(&executable) || is_named_lb
}
