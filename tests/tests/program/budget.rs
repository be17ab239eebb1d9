//! What the XDP program may cost, as `tests/budget.toml` says.

use anyhow::{Context as _, Result, ensure};

use crate::stack;

/// Compiled in, because the machines of `cargo xtask vm-test` have no sources.
const TEXT: &str = include_str!("../../budget.toml");

/// What the kernel follows of one program at most (BPF_COMPLEXITY_LIMIT_INSNS in its linux/bpf.h).
const INSTRUCTIONS_LIMIT: u32 = 1_000_000;

/// The most that each may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// With logging off.
    pub(crate) instructions: u32,
    /// At the log level that takes most.
    pub(crate) instructions_when_logging: u32,
    /// In bytes.
    pub(crate) stack: u32,
    /// Of a packet of a known connection.
    pub(crate) instructions_per_packet: u32,
    /// Of the kernel's functions, by such a packet.
    pub(crate) calls_per_packet: u32,
    /// Bytes of the flow tables' entries.
    pub(crate) flow_v4: u32,
    pub(crate) flow_v6: u32,
}

impl Budget {
    pub(crate) fn read() -> Result<Self> {
        let budget = Self {
            instructions: entry(TEXT, "verified_instructions")?,
            instructions_when_logging: entry(TEXT, "verified_instructions_when_logging")?,
            stack: entry(TEXT, "stack")?,
            instructions_per_packet: entry(TEXT, "instructions_per_packet")?,
            calls_per_packet: entry(TEXT, "calls_per_packet")?,
            flow_v4: entry(TEXT, "flow_v4")?,
            flow_v6: entry(TEXT, "flow_v6")?,
        };
        ensure!(
            budget.instructions.max(budget.instructions_when_logging) < INSTRUCTIONS_LIMIT
                && budget.stack <= stack::LIMIT,
            "tests/budget.toml allows more than the kernel does: {budget:?}"
        );
        Ok(budget)
    }
}

/// The number behind `name =`. Like TOML's, it may have underscores.
fn entry(text: &str, name: &str) -> Result<u32> {
    let number = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, number)| number.trim().replace('_', ""))
        .with_context(|| format!("tests/budget.toml has no {name}"))?;
    number.parse().with_context(|| format!("{name} in tests/budget.toml is no number: {number}"))
}

/// What to tell whoever made the program cost more than it may; `None` within the budget.
pub(crate) fn excess(what: &str, is: u32, allowed: u32, kernel: &str) -> Option<String> {
    (is > allowed).then(|| {
        format!(
            "{what}: {is} on Linux {kernel}, {} more than the budget of {allowed}; make it less, or raise the number \
             in tests/budget.toml deliberately and say what for",
            is - allowed
        )
    })
}

#[test]
fn only_what_exceeds_the_budget_is_reported_with_by_how_much() {
    for (is, says) in
        [(0, None), (100, None), (101, Some("1 more than the budget of 100")), (300, Some("200 more"))]
    {
        let told = excess("stack", is, 100, "6.1");
        assert_eq!(told.is_some(), says.is_some(), "{is}");
        assert!(told.is_none_or(|told| says.is_some_and(|says| told.contains(says))), "{is}");
    }
}

#[test]
fn budget_entries_are_found_by_their_whole_name() {
    let text = "# stack = 1\nstack_of_hay = 2\nstack = 4_096\nrest = many\n";
    assert_eq!(entry(text, "stack").ok(), Some(4096));
    assert!(entry(text, "hay").is_err());
    assert!(entry(text, "rest").is_err());
}
