//! Long steps of other programs: a spinner with the time and the program's last line, or plain lines where stderr is
//! no terminal. Their output is kept, and its end shown, only if they fail.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, PipeReader};
use std::process::{Command, ExitStatus};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::command;

/// How many lines of a failed program's output are shown.
const SHOWN_LINES: usize = 25;

/// All spinners, of which each gets a line of its own.
static SPINNERS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Without a terminal, how often a step says that it is still at work.
const REMINDER: Duration = Duration::from_secs(20);

/// Runs a program to its end while showing that it is at work.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let mut last_lines = VecDeque::new();
    let status = run(what, command, |progress, line| {
        progress.show(line);
        if last_lines.len() == SHOWN_LINES {
            last_lines.pop_front();
        }
        last_lines.push_back(line.to_owned());
    })?;
    if !status.success() {
        for line in last_lines {
            eprintln!("    {line}");
        }
        bail!("`{}` failed ({status}), its last words are above", command::show(command));
    }
    eprintln!("  done: {what} ({} s)", started.elapsed().as_secs());
    Ok(())
}

/// Runs a program whose output is more than progress: `news` gets every line, and returns what of it is to stay on the
/// user's screen.
pub(crate) fn follow(
    what: &str,
    command: &mut Command,
    mut news: impl FnMut(&str) -> Option<String>,
) -> Result<ExitStatus> {
    run(what, command, |progress, line| match news(line) {
        Some(news) => progress.keep(&format!("{what}: {news}")),
        None => progress.show(line),
    })
}

/// Runs a program to its end; `each` gets every line that it prints.
fn run(what: &str, command: &mut Command, each: impl FnMut(&Progress, &str)) -> Result<ExitStatus> {
    let shown = command::show(command);
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdin(std::process::Stdio::null());
    command.stdout(writer.try_clone().context("cannot make a pipe")?).stderr(writer);
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    // The command holds the pipe's writing end too; the reader sees the end only when that is closed.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());

    watch(what, started, &lines(reader), each);
    child.wait().with_context(|| format!("cannot wait for `{shown}`"))
}

/// Where the user sees that something is at work: a spinner, or nothing where stderr is no terminal.
struct Progress(Option<ProgressBar>);

impl Progress {
    /// Shows a line until the next one.
    fn show(&self, line: &str) {
        if let Some(spinner) = &self.0 {
            spinner.set_message(line.to_owned());
        }
    }

    /// Shows a line that stays.
    fn keep(&self, line: &str) {
        SPINNERS.suspend(|| eprintln!("  {line}"));
    }
}

/// Hands on every line, and shows that somebody is at work, until the output ends.
fn watch(what: &str, started: Instant, lines: &Receiver<String>, mut each: impl FnMut(&Progress, &str)) {
    let progress = Progress(io::stderr().is_terminal().then(|| spinner(what)));
    if progress.0.is_none() {
        eprintln!("  {what} ...");
    }
    let mut reminded = Instant::now();
    loop {
        match lines.recv_timeout(REMINDER) {
            Ok(line) => each(&progress, &line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if progress.0.is_none() && reminded.elapsed() >= REMINDER {
            reminded = Instant::now();
            eprintln!("  {what} ... {} s", started.elapsed().as_secs());
        }
    }
    if let Some(spinner) = progress.0 {
        spinner.finish_and_clear();
    }
}

fn spinner(what: &str) -> ProgressBar {
    let spinner = SPINNERS.add(ProgressBar::new_spinner()).with_prefix(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} [{elapsed}] {wide_msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// The lines of the output; the channel closes when the last process that could write is gone.
fn lines(output: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}
