//! The rights of root: had, borrowed through sudo, or missing.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Error;
use nix::unistd::geteuid;

use crate::command;

/// How this process can do what only root may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// It is root.
    Root,
    /// sudo asks for no password.
    Sudo,
    /// Not without asking the user.
    Missing,
}

impl Rights {
    pub(crate) fn of_this_process() -> Self {
        if is_root() {
            Self::Root
        } else if command::query("sudo", &["-n", "true"]).is_some() {
            Self::Sudo
        } else {
            Self::Missing
        }
    }
}

pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// A command that runs as root: directly or through sudo.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

/// Becomes the program, so that signals reach it. Returns only if that fails.
pub(crate) fn exec(mut command: Command) -> Error {
    let error = command.exec();
    let shown = command::show(&command);
    match error.kind() {
        std::io::ErrorKind::NotFound if !is_root() => Error::msg(format!(
            "this needs root, and there is no sudo here: become root, then type `{}`",
            shown.trim_start_matches("sudo ")
        )),
        _ => Error::new(error).context(format!("cannot start `{shown}`")),
    }
}
