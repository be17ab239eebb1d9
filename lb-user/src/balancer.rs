//! The balancer behind a pin directory, as the commands other than `lb run` meet it.

use std::path::{Path, PathBuf};

use crate::{
    apply, host,
    links::{self, Pinned},
    lock::{self, Lock},
    maps::Maps,
    pins,
};

/// An open balancer.
pub(crate) struct Balancer {
    pub(crate) dir: PathBuf,
    pub(crate) maps: Maps,
    pub(crate) keeper: Keeper,
}

/// What keeps the program on its interfaces.
#[derive(Debug)]
pub(crate) enum Keeper {
    /// `lb run`, which lives.
    Daemon,
    /// Pinned links: `lb run --persist` has ended.
    Links(Vec<Pinned>),
    /// Nothing: `lb run` was killed.
    Nothing,
}

impl Keeper {
    fn of(dir: &Path) -> anyhow::Result<Self> {
        if lock::daemon_lives(dir)? {
            return Ok(Self::Daemon);
        }
        Ok(links::pinned(dir)?.map_or(Self::Nothing, Self::Links))
    }

    /// Whether the program is on that interface, which it was attached to.
    pub(crate) fn keeps(&self, index: u32) -> bool {
        match self {
            Self::Daemon => true,
            Self::Links(links) => links.iter().any(|link| link.index == index && link.holds),
            Self::Nothing => false,
        }
    }
}

impl Balancer {
    /// Opens it for reading.
    ///
    /// # Errors
    ///
    /// There is none, or not the right to open it.
    pub(crate) fn read(dir: &Path, command: &str) -> anyhow::Result<Self> {
        host::check_rights(command)?;
        if !pins::present(dir) {
            return Err(pins::nothing_at(dir));
        }
        let keeper = Keeper::of(dir)?;
        let mut maps = Maps::open(dir)?;
        // An edit that is not through and that nobody is at was killed.
        if maps.meta()?.edited != 0
            && let Some(_lock) = lock::try_edit(dir)?
        {
            apply::repair(&mut maps)?;
        }
        let balancer = Self { dir: dir.to_owned(), maps, keeper };
        balancer.join_daemon()?;
        Ok(balancer)
    }

    /// Opens it for an edit: nobody else edits it until the lock is dropped.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub(crate) fn lock(self) -> anyhow::Result<(Lock, Maps)> {
        let lock = lock::edit(&self.dir)?.ok_or_else(|| pins::nothing_at(&self.dir))?;
        // While this process waited, `lb run` may have ended and taken the pins with it, or have come back with new ones.
        if !pins::present(&self.dir) {
            return Err(pins::nothing_at(&self.dir));
        }
        let mut maps = Maps::open(&self.dir)?;
        apply::repair(&mut maps)?;
        Ok((lock, maps))
    }

    /// Interfaces, routes and neighbours are to be those that `lb run` sees, from wherever the command is given.
    fn join_daemon(&self) -> anyhow::Result<()> {
        match self.keeper {
            Keeper::Daemon => {
                // None if it has just ended.
                if let Some(pid) = lock::daemon_process(&self.dir) {
                    return host::enter_network_of(pid);
                }
            }
            Keeper::Links(_) => {}
            Keeper::Nothing => log::warn!(
                "lb run was killed and its program is attached nowhere: start it again with `lb run`, or clean up with \
                 `lb detach`"
            ),
        }
        Ok(())
    }
}
