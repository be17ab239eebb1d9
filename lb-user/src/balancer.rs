//! The balancer behind a pin directory, as the commands other than `lb run` meet it.

use std::path::{Path, PathBuf};

use crate::{
    host,
    lock::{self, Lock},
    maps::Maps,
    pins,
};

/// An open balancer.
pub(crate) struct Balancer {
    pub(crate) dir: PathBuf,
    pub(crate) maps: Maps,
    /// Whether `lb run` lives. Without it the program is attached to nothing.
    pub(crate) lives: bool,
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
        let maps = Maps::open(dir)?;
        let lives = lock::daemon_lives(dir)?;
        let balancer = Self { dir: dir.to_owned(), maps, lives };
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
        Ok((lock, Maps::open(&self.dir)?))
    }

    /// Interfaces, routes and neighbours are to be those that `lb run` sees, from wherever the command is given.
    fn join_daemon(&self) -> anyhow::Result<()> {
        let pid = self.maps.meta()?.pid;
        if self.lives && pid != 0 {
            return host::enter_network_of(pid);
        }
        log::warn!(
            "lb run was killed and its program is attached nowhere: start it again with `lb run`, or clean up with \
             `lb detach`"
        );
        Ok(())
    }
}
