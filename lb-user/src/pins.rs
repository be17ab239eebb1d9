//! The pin directory: where in the bpf file system the maps of one balancer are.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{host, links, lock, maps::name};

/// Where the pins are unless `--pin-dir` says otherwise.
pub(crate) const DEFAULT: &str = "/sys/fs/bpf/lb";

/// Name of the pin of the program.
pub(crate) const PROGRAM: &str = "program";
/// Name of a pin that is going to replace it.
pub(crate) const NEXT_PROGRAM: &str = "next_program";

/// Where the bpf file system belongs.
const BPF_FS: &str = "/sys/fs/bpf";

/// Whether a pin directory can have that name at all.
pub(crate) fn check(dir: &Path) -> anyhow::Result<()> {
    if !dir.is_absolute() {
        bail!("the pin directory {0} is not an absolute path: write {BPF_FS}/{0}", dir.display());
    }
    if dir.file_name().is_none_or(|name| name.to_string_lossy().contains('.')) {
        bail!(
            "the pin directory {} cannot be made: the bpf file system allows no dots in names",
            dir.display()
        );
    }
    Ok(())
}

/// Makes sure that `dir` can be made: that it is in a bpf file system, which is mounted if it is missing in its place.
pub(crate) fn prepare(dir: &Path) -> anyhow::Result<()> {
    if on_bpf_fs(dir)? {
        return Ok(());
    }
    if !dir.starts_with(BPF_FS) {
        bail!(
            "{} is not in a bpf file system, so that nothing can be pinned there: choose a directory below {BPF_FS}",
            dir.display()
        );
    }
    mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
        format!("cannot mount the bpf file system, try `mount -t bpf bpf {BPF_FS}` as root of the host")
    })?;
    log::info!("mounted the bpf file system on {BPF_FS}");
    Ok(())
}

fn on_bpf_fs(dir: &Path) -> anyhow::Result<bool> {
    let existing = dir.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let kind = statfs(existing).with_context(|| format!("cannot look at {}", existing.display()))?;
    Ok(kind.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes the pin directory and the daemon's one in it.
pub(crate) fn create(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(lock::daemon_directory(dir))
        .with_context(|| format!("cannot make the directory {}", dir.display()))
}

/// Whether a balancer's maps are pinned in `dir`.
pub(crate) fn present(dir: &Path) -> bool {
    dir.join(name::META).exists()
}

/// Removes the pins of the program; none there is as good.
pub(crate) fn remove_program(dir: &Path) -> anyhow::Result<()> {
    [PROGRAM, NEXT_PROGRAM].iter().try_for_each(|name| remove_file(&dir.join(name)))
}

/// Removes the pins of all maps from `dir`, also those of another version's maps; none there is as good.
pub(crate) fn remove_maps(dir: &Path) -> anyhow::Result<()> {
    // First what says that there is a balancer.
    remove_file(&dir.join(name::META))?;
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.to_str().is_some_and(is_maps_name))
        .try_for_each(|name| remove_file(&dir.join(name)))
}

/// Whether maps of lb have such names.
fn is_maps_name(name: &str) -> bool {
    let of_names = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.starts_with(|first: char| first.is_ascii_uppercase()) && name.bytes().all(of_names)
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    ignore_missing(fs::remove_file(path)).with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes the pins and the directories, unless there is something in them that is not ours. In the reverse of the order
/// in which they are made, so that what a kill leaves of it is always something that was on the way to be made.
pub(crate) fn remove(dir: &Path) -> anyhow::Result<()> {
    links::unpin_all(dir)?;
    remove_program(dir)?;
    // Without the directory of its daemon it is not one of ours, whatever the names in it.
    if lock::daemon_directory(dir).exists() {
        remove_maps(dir)?;
    }
    for directory in [lock::daemon_directory(dir), dir.to_owned()] {
        ignore_missing(fs::remove_dir(&directory))
            .with_context(|| format!("cannot remove the directory {}", directory.display()))?;
    }
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// That there is no balancer, and how to get one.
pub(crate) fn nothing_at(dir: &Path) -> anyhow::Error {
    let option =
        if dir == Path::new(DEFAULT) { String::new() } else { format!(" --pin-dir {}", dir.display()) };
    let hint = if host::in_own_mount_namespace() {
        "; this shell has a mount namespace of its own, as `ip netns exec` makes, where the pins of others do not show: \
         use `nsenter --net=/run/netns/NAME`"
    } else {
        ""
    };
    anyhow::anyhow!(
        "no balancer runs at {}: start one with `lb run --iface IFACE{option}`{hint}",
        dir.display()
    )
}

/// Removes what it names, unless told to keep it: undoes a start that failed half-way.
#[derive(Debug)]
pub(crate) struct Undo(Option<PathBuf>);

impl Undo {
    pub(crate) fn of(dir: &Path) -> Self {
        Self(Some(dir.to_owned()))
    }

    /// Leaves everything where it is.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }

    /// Removes it now, and says what went wrong.
    pub(crate) fn now(mut self) -> anyhow::Result<()> {
        self.0.take().map_or(Ok(()), |dir| remove(&dir))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take()
            && let Err(error) = remove(&dir)
        {
            log::warn!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_in_capitals_are_those_of_maps() {
        for name in [name::META, name::FLOWS_V4, name::BACKEND_COUNTERS] {
            assert!(is_maps_name(name), "{name}");
        }
        for name in [PROGRAM, NEXT_PROGRAM, lock::DAEMON, "links", "", "0", "Map", "cilium_METRICS"] {
            assert!(!is_maps_name(name), "{name}");
        }
    }

    #[test]
    fn a_pin_directory_is_absolute_and_has_no_dots() {
        for (dir, is_good) in [
            (DEFAULT, true),
            ("/sys/fs/bpf/teams/blue", true),
            ("lb", false),
            ("/sys/fs/bpf/lb.1", false),
            ("/sys/fs/bpf/..", false),
            ("/", false),
        ] {
            assert_eq!(check(Path::new(dir)).is_ok(), is_good, "{dir}");
        }
    }
}
