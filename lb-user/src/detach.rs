//! `lb detach`: ends `lb run` and removes what it, or a killed one, has left.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{host, links, lock, netlink::Netlink, pins, runtime};

/// How long `lb run` may take to end: it stops between two steps of whatever it does.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// Detaches the balancer pinned in `dir`.
pub(crate) fn detach(dir: &Path) -> anyhow::Result<()> {
    host::check_rights("lb detach")?;
    if lock::daemon_lives(dir)? {
        let pid = stop(dir)?;
        println!("stopped lb run (process {pid}) at {}", dir.display());
    } else if links::directory(dir).exists() {
        println!("removed what went on without lb run at {}", dir.display());
    } else if !pins::present(dir) {
        println!("nothing to detach: no balancer at {}", dir.display());
    } else {
        println!("removed what a killed lb run left at {}", dir.display());
    }
    // Nothing is there any more, unless `lb run` was killed or was to leave its data path running.
    if dir.exists() {
        let Some(_lock) = lock::edit(dir)? else { return Ok(()) };
        if lock::daemon_lives(dir)? {
            bail!("another lb run has just started at {}: try again", dir.display());
        }
        let links = links::pinned(dir)?.unwrap_or_default();
        let held: Vec<(u32, u32)> = links.iter().map(|link| (link.index, link.program)).collect();
        drop(links);
        pins::remove(dir)?;
        runtime()?.block_on(is_detached(&held))?;
    }
    Ok(())
}

/// Waits until these programs are off their interfaces: the kernel lets go a moment after the last pin is gone.
async fn is_detached(held: &[(u32, u32)]) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    let deadline = Instant::now() + PATIENCE;
    for (interface, program) in held {
        while netlink.link_by_index(*interface).await?.is_some_and(|link| link.xdp == Some(*program)) {
            if Instant::now() > deadline {
                bail!(
                    "the kernel does not take program {program} off interface {interface}: somebody else holds it"
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Stops the `lb run` that lives on `dir`, and says which process it was.
pub(crate) fn stop(dir: &Path) -> anyhow::Result<u32> {
    let pid = lock::daemon_process(dir).unwrap_or_default();
    let raw = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let Some(raw) = raw.filter(|_| is_lb(pid)) else {
        // It may have ended since somebody looked.
        if !lock::daemon_lives(dir)? {
            return Ok(pid);
        }
        bail!(
            "lb run lives at {}, but its process is not to be seen from here, perhaps it is in another container: stop \
             it there",
            dir.display()
        );
    };
    match kill(Pid::from_raw(raw), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot stop lb run (process {pid})")),
    }
    let deadline = Instant::now() + PATIENCE;
    while lock::daemon_lives(dir)? {
        if Instant::now() > deadline {
            bail!("lb run (process {pid}) does not end: `kill -9 {pid}`, then `lb detach` again");
        }
        thread::sleep(PAUSE);
    }
    Ok(pid)
}

/// Process numbers are used again: a stale one must not hit somebody else.
fn is_lb(pid: u32) -> bool {
    let Ok(executable) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let own = fs::read_link("/proc/self/exe").ok();
    let is_named_lb = executable.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lb"));
    own.as_ref() == Some(&executable) || is_named_lb
}
