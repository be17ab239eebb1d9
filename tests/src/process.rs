//! Programs: run to their end, or kept running behind a guard.

use std::env;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a wait looks whether its condition holds.
const POLL: Duration = Duration::from_millis(10);

/// How long a program that is told to stop may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Finds a program on the PATH, or where programs for root are: a user's PATH may leave those directories out.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let _infallible = write!(shown, " {}", arg.to_string_lossy());
    }
    shown
}

/// Runs a program to its end and returns what it printed.
///
/// It gets a process group of its own, so that Ctrl-C reaches only this process, which has to clean up.
///
/// # Errors
///
/// If it cannot be started or fails; the error has what it printed on stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .process_group(0)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program that keeps running until this is dropped. What it prints is kept.
#[derive(Debug)]
pub struct Process {
    shown: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// Lines that a thread adds to.
type Lines = Arc<Mutex<Vec<String>>>;

impl Process {
    /// Starts a program, in a process group of its own like [`output`].
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let shown = show(command);
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        let stdout = child.stdout.take().map(collect).unwrap_or_default();
        let stderr = child.stderr.take().map(collect).unwrap_or_default();
        Ok(Self { shown, child, stdout, stderr })
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The lines that it has printed on stdout.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lines that it has printed on stderr.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the condition holds.
    ///
    /// # Errors
    ///
    /// If it does not hold in time, or if the program ends before; the error has what it printed.
    pub fn wait_until(&mut self, timeout: Duration, mut condition: impl FnMut(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !condition(self) {
            if let Some(status) = self.ended()? {
                // The last lines may still be on their way.
                thread::sleep(5 * POLL);
                bail!("`{}` ended ({status}){}", self.shown, self.printed());
            }
            if Instant::now() >= deadline {
                bail!("`{}` was not ready within {} s{}", self.shown, timeout.as_secs(), self.printed());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// If the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id is out of range")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to `{}`", self.shown))
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    ///
    /// If the program is still there after some seconds; then it is killed.
    pub fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(signal)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        self.child.kill().with_context(|| format!("cannot kill `{}`", self.shown))?;
        self.child.wait().with_context(|| format!("cannot wait for `{}`", self.shown))?;
        bail!(
            "`{}` ignored {signal} for {} s and was killed{}",
            self.shown,
            PATIENCE.as_secs(),
            self.printed()
        )
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for `{}`", self.shown))
    }

    fn printed(&self) -> String {
        let lines = [self.stdout(), self.stderr()].concat();
        if lines.is_empty() { String::new() } else { format!(":\n{}", lines.join("\n")) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM first: lb takes its program off the interfaces, nginx closes its log.
        if let Err(error) = self.stop(Signal::SIGTERM) {
            eprintln!("{error:#}");
        }
    }
}

fn collect(output: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let writer = Arc::clone(&lines);
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            writer.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
    lines
}
