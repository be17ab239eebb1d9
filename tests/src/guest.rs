//! What `cargo xtask vm-test` and the machines that it boots have agreed on: where things are in a machine, and what it
//! says on its serial line.

/// Where the first process finds the kernel modules that it has to load, in the order of their names.
pub const MODULES: &str = "/modules";

/// Where all programs are.
pub const PROGRAMS: &str = "/bin";

/// What each machine runs.
pub const STEPS: [Step; 2] = [
    Step {
        what: "single packets through the program",
        program: "program",
        // Also of tests that succeed, what they print: there are notes in it.
        args: &["--show-output"],
    },
    Step { what: "sessions through lb run", program: "network", args: &["session::", "vlans::"] },
];

/// Says how many random packets go through the program.
pub const FUZZ_PACKETS_VARIABLE: &str = "LB_FUZZ_PACKETS";

/// How many in a machine, which is some times slower.
pub const FUZZ_PACKETS: usize = 10_000;

/// A test binary, and which of its tests.
#[derive(Debug)]
pub struct Step {
    /// In words for the user.
    pub what: &'static str,
    /// The test target of this crate.
    pub program: &'static str,
    /// Arguments for it.
    pub args: &'static [&'static str],
}

/// Begins what a test prints for whoever waits for the machine.
pub const NOTE: &str = "summary: ";

/// Begins the machine's lines for whoever waits for it; all others go to the log only.
const REPORT: &str = "lb-guest: ";

/// What a machine says last if something went wrong, before the reason.
pub const FAILED: &str = "failed: ";

/// What a machine says last if all went well. There is no other sign: qemu ends alike, whatever happened inside.
pub const PASSED: &str = "passed";

/// A line for whoever waits for the machine.
pub fn report(line: &str) -> String {
    format!("{REPORT}{line}")
}

/// What [`report`] made, from a line of the serial log.
pub fn reported(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix(REPORT)
}
