//! A difference for people: the fewest events that lead to it, and their frames in the words of tcpdump.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Result, bail};
use lb_tests::leftovers::Tag;
use lb_tests::process;

use crate::hosts::Side;
use crate::packet::{FIN, RST, SYN};
use crate::pair::{Difference, Exchange, Pair, Played, Setting};
use crate::random::{self, FIRST_PORT, Mixture};
use crate::script::{Event, Script, Sends};

/// What runs without LB_SEED.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Gives other seeds, separated by commas.
const SEED_VARIABLE: &str = "LB_SEED";

/// How many attempts, each with new balancers, are made at a shorter script.
const ATTEMPTS: usize = 24;

fn seeds() -> Result<Vec<u64>> {
    match std::env::var(SEED_VARIABLE) {
        Ok(seeds) => Ok(seeds.split(',').map(|seed| seed.trim().parse()).collect::<Result<_, _>>()?),
        Err(_) => Ok(SEEDS.to_vec()),
    }
}

/// Plays scripts of that mixture, from all seeds. Nothing may be different.
pub(crate) fn check_mixture(mixture: &Mixture, setting: Setting) -> Result<()> {
    let mut pair = Pair::new(setting)?;
    for (seed, block) in seeds()?.into_iter().zip(0..) {
        let first_port = FIRST_PORT + 1_000 * block;
        let script = random::script(seed, first_port, mixture);
        match pair.play(&script)? {
            Ok(played) => println!("seed {seed}: {} events, the same from both", played.len()),
            Err(difference) => {
                let (script, difference) = shorten(&script, difference, setting)?;
                bail!("{SEED_VARIABLE}={seed}: {}", explain(&script, &difference, setting)?);
            }
        }
    }
    Ok(())
}

/// What was played, in the words of tcpdump, and what is different.
pub(crate) fn explain(script: &Script, difference: &Difference, setting: Setting) -> Result<String> {
    let other = setting.other.name();
    let mut text =
        format!("the kernel and {other}, at the {}: {}\n", difference.side.name(), difference.what);
    let mut sessions: Vec<_> = difference.played.iter().map(|played| played.event.session).collect();
    sessions.sort_unstable();
    sessions.dedup();
    for session in sessions {
        writeln!(text, "session {session}: {}", script.sessions[session])?;
    }
    let frames = Frames::new()?;
    let last = difference.played.len().saturating_sub(1);
    for (number, Played { event, kernel, other }) in difference.played.iter().enumerate() {
        writeln!(text, "\n{}. {event}", number + 1)?;
        frames.exchange(&mut text, "the kernel", kernel, number == last)?;
        // Up to the last event both have done the same.
        if number == last {
            frames.exchange(&mut text, setting.other.name(), other, true)?;
        }
    }
    Ok(text)
}

/// Leaves out what the difference does not need: other sessions, then events.
fn shorten(script: &Script, found: Difference, setting: Setting) -> Result<(Script, Difference)> {
    let mut script = script.clone();
    let original = found.clone();
    let mut found = found;
    let mut attempts = ATTEMPTS;
    let mut attempt = |script: &Script| -> Result<Option<Difference>> {
        if attempts == 0 {
            return Ok(None);
        }
        attempts -= 1;
        Ok(Pair::new(setting)?.play(script)?.err().filter(|difference| difference.is_like(&original)))
    };
    script.events = found.played.iter().map(|played| played.event.clone()).collect();
    let guilty = script.events.last().map(|event| event.session);
    let mut alone = script.clone();
    alone.events.retain(|event| Some(event.session) == guilty);
    if let Some(difference) = attempt(&alone)? {
        (script, found) = (alone, difference);
    }
    let mut size = script.events.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < script.events.len().saturating_sub(1) {
            let end = (start + size).min(script.events.len() - 1);
            let mut shorter = script.clone();
            let mut begun = HashSet::new();
            shorter.events = (0..)
                .zip(&script.events)
                .filter(|(number, event)| {
                    let first = begun.insert(event.session);
                    !(start..end).contains(number) || first || shapes(event)
                })
                .map(|(_, event)| event.clone())
                .collect();
            let removed = script.events.len() - shorter.events.len();
            match (removed > 0).then(|| attempt(&shorter)).transpose()?.flatten() {
                Some(difference) => {
                    (script, found) = (shorter, difference);
                    start = end - removed;
                }
                None => start = end,
            }
        }
        size /= 2;
    }
    Ok((script, found))
}

/// Whether a connection without this event is another one.
fn shapes(event: &Event) -> bool {
    matches!(event.sends, Sends::Segment { control, .. } if control & (SYN | FIN | RST) != 0)
}

/// Prints frames.
struct Frames {
    tag: Tag,
}

impl Frames {
    fn new() -> Result<Self> {
        Ok(Self { tag: Tag::new()? })
    }

    fn exchange(&self, text: &mut String, who: &str, exchange: &Exchange, bytes: bool) -> Result<()> {
        self.frames(text, &format!("{who} got"), &exchange.sent, bytes)?;
        for side in [Side::Client, Side::Server] {
            let title = format!("{who} put out at the {}", side.name());
            self.frames(text, &title, exchange.emitted.on(side), bytes)?;
        }
        Ok(())
    }

    /// What tcpdump says of them.
    fn frames(&self, text: &mut String, title: &str, frames: &[Vec<u8>], bytes: bool) -> Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        let path = self.tag.directory().join("frames.pcap");
        std::fs::write(&path, capture(frames)?)?;
        let mut tcpdump = Command::new("tcpdump");
        tcpdump.args(["-t", "-nn", "-e", if bytes { "-vvx" } else { "-v" }, "-r"]).arg(&path);
        writeln!(text, "   {title}:")?;
        // Bytes after the headers, and after those that an ICMP error quotes, are the test's own.
        let later = |line: &str| line.trim_start().strip_prefix("0x").is_some_and(|line| line >= "0090");
        for line in process::output(&mut tcpdump)?.lines().filter(|line| !later(line)) {
            writeln!(text, "      {line}")?;
        }
        Ok(())
    }
}

/// A capture file (the format of pcap-savefile(5)), all at one time.
fn capture(frames: &[Vec<u8>]) -> Result<Vec<u8>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const VERSION: [u8; 4] = [0, 2, 0, 4];
    const SNAPSHOT: u32 = 0x4_0000;
    const ETHERNET: u32 = 1;
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
    let mut file = [words(&[MAGIC]), VERSION.to_vec(), words(&[0, 0, SNAPSHOT, ETHERNET])].concat();
    for frame in frames {
        let length = u32::try_from(frame.len())?;
        file.extend(words(&[0, 0, length, length]));
        file.extend(frame);
    }
    Ok(file)
}
