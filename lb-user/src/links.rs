//! The links that hold the program on interfaces. The kernel takes one away with the process that made it, unless it is
//! pinned: then it stays until its pin is removed. Pins are named after the interface's index.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya::programs::links::{FdLink, PinnedLink};

/// Name of the directory of pinned links. It is made when all maps are complete and removed before any of them: where it
/// is, there is a data path that can be adopted.
const LINKS: &str = "links";

/// A pinned link.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// Index of the interface that it was made for.
    pub(crate) index: u32,
    /// Whether it still holds the program there: it does until the interface goes.
    pub(crate) holds: bool,
    /// The id of the program that it holds.
    pub(crate) program: u32,
    pub(crate) link: FdLink,
}

/// Where links are pinned.
pub(crate) fn directory(dir: &Path) -> PathBuf {
    dir.join(LINKS)
}

fn pin_of(dir: &Path, index: u32) -> PathBuf {
    directory(dir).join(index.to_string())
}

/// The links pinned in `dir`; `None` if its data path goes with the daemon.
pub(crate) fn pinned(dir: &Path) -> anyhow::Result<Option<Vec<Pinned>>> {
    let directory = directory(dir);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    let mut links = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("cannot read {}", directory.display()))?.file_name();
        // Whatever else is there is not ours.
        if let Some(index) = name.to_str().and_then(|name| name.parse().ok()) {
            links.push(open(&pin_of(dir, index), index)?);
        }
    }
    links.sort_unstable_by_key(|link| link.index);
    Ok(Some(links))
}

fn open(pin: &Path, index: u32) -> anyhow::Result<Pinned> {
    let what = || format!("cannot open the pinned link {}", pin.display());
    let link = FdLink::from(PinnedLink::from_pin(pin).with_context(what)?);
    let info = link.info().with_context(what)?;
    Ok(Pinned { index, holds: holder(info.id())? != Some(0), program: info.program_id(), link })
}

/// The index of the interface that a link of this process is on, 0 if that has gone; `None` if the kernel does not tell.
/// `bpf_link_info` has it too, but aya does not give that out: the kernel also writes it beside the file descriptor.
fn holder(link: u32) -> anyhow::Result<Option<u32>> {
    const TABLE: &str = "/proc/self/fdinfo";
    for entry in fs::read_dir(TABLE).with_context(|| format!("cannot read {TABLE}"))? {
        // This walk's own descriptor is among them, and closed when looked at.
        let Ok(text) = entry.and_then(|entry| fs::read_to_string(entry.path())) else { continue };
        if field(&text, "link_id") == Some(link) {
            return Ok(field(&text, "ifindex"));
        }
    }
    Ok(None)
}

fn field(text: &str, name: &str) -> Option<u32> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// Makes the directory for pinned links: from here on the data path can be adopted.
pub(crate) fn create(dir: &Path) -> anyhow::Result<()> {
    let directory = directory(dir);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))
}

/// Pins the link to an interface.
pub(crate) fn pin(dir: &Path, index: u32, link: FdLink) -> anyhow::Result<FdLink> {
    let pin = pin_of(dir, index);
    let pinned = link.pin(&pin).with_context(|| format!("cannot pin a link at {}", pin.display()))?;
    Ok(pinned.into())
}

/// Removes the pin of the link to an interface; none there is as good.
pub(crate) fn unpin(dir: &Path, index: u32) -> anyhow::Result<()> {
    remove_pin(&pin_of(dir, index))
}

/// Removes all pins of links and their directory, unless there is something in it that is not ours.
pub(crate) fn unpin_all(dir: &Path) -> anyhow::Result<()> {
    let directory = directory(dir);
    let Ok(entries) = fs::read_dir(&directory) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()) {
            remove_pin(&entry.path())?;
        }
    }
    fs::remove_dir(&directory).with_context(|| format!("cannot remove the directory {}", directory.display()))
}

fn remove_pin(pin: &Path) -> anyhow::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", pin.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_about_a_link_are_read() {
        // kernel/bpf/syscall.c, bpf_link_show_fdinfo, and net/core/dev.c, bpf_xdp_link_show_fdinfo
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t2081\nlink_type:\txdp\nlink_id:\t14\n\
                    prog_tag:\tb0a8a0a5b5c1d1e1\nprog_id:\t77\nifindex:\t3\n";
        for (name, value) in
            [("link_id", Some(14)), ("prog_id", Some(77)), ("ifindex", Some(3)), ("index", None)]
        {
            assert_eq!(field(text, name), value, "{name}");
        }
        assert_eq!(field("link_id:\t14\nifindex:\t0\n", "ifindex"), Some(0), "its interface has gone");
    }

    #[test]
    fn without_a_directory_of_links_there_is_nothing_to_adopt() {
        assert!(pinned(Path::new("/nonexistent/lb")).unwrap().is_none());
        unpin_all(Path::new("/nonexistent/lb")).unwrap();
    }
}
