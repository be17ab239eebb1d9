//! Long steps of other programs: a spinner with the time and the program's last line, or plain lines where stderr is
//! no terminal. Their output is kept, and its end shown, only if they fail.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, PipeReader};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::command;

/// How many lines of a failed program's output are shown.
const SHOWN_LINES: usize = 25;

/// Without a terminal, how often a step says that it is still at work.
const REMINDER: Duration = Duration::from_secs(20);

/// Runs a program to its end while showing that it is at work.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    let shown = command::show(command);
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdin(std::process::Stdio::null());
    command.stdout(writer.try_clone().context("cannot make a pipe")?).stderr(writer);
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    // The command holds the pipe's writing end too; the reader sees the end only when that is closed.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());

    let last_lines = watch(what, started, &lines(reader));
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    if !status.success() {
        for line in last_lines {
            eprintln!("    {line}");
        }
        bail!("`{shown}` failed ({status}), its last words are above");
    }
    eprintln!("  done: {what} ({} s)", started.elapsed().as_secs());
    Ok(())
}

/// Shows the progress until the output ends, and returns its last lines.
fn watch(what: &str, started: Instant, lines: &Receiver<String>) -> VecDeque<String> {
    let spinner = io::stderr().is_terminal().then(|| spinner(what));
    if spinner.is_none() {
        eprintln!("  {what} ...");
    }
    let mut reminded = Instant::now();
    let mut last_lines = VecDeque::new();
    loop {
        match lines.recv_timeout(REMINDER) {
            Ok(line) => {
                if let Some(spinner) = &spinner {
                    spinner.set_message(line.clone());
                }
                if last_lines.len() == SHOWN_LINES {
                    last_lines.pop_front();
                }
                last_lines.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if spinner.is_none() && reminded.elapsed() >= REMINDER {
            reminded = Instant::now();
            eprintln!("  {what} ... {} s", started.elapsed().as_secs());
        }
    }
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    last_lines
}

fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_prefix(what.to_owned());
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
