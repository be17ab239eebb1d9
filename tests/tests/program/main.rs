//! The XDP program, run by the kernel on single packets: the loaded program does what the library does on the host, which
//! does what the cases of [`lb_ebpf::host::cases`] expect.

mod budget;
mod fuzz;
mod interpreter;
mod kernel;
mod speed;
mod stack;

use std::fs;

use anyhow::Result;
use lb_common::Program;
use lb_ebpf::host::cases::{self, Case};
use lb_tests::guest::NOTE;

use crate::budget::Budget;
use crate::kernel::{Constants, Kernel};

/// Values of aya-log's level: off, error, warn, info, debug, trace.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn check_root() {
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").expect("/proc is mounted"));
    assert_eq!(owner, 0, "these tests load an XDP program: run them as root, as `cargo xtask test` does");
}

/// Runs the cases, each with empty tables.
fn check(cases: &[Case], constants: Constants) {
    check_root();
    let _inside = kernel::enter_network().expect("interfaces can be made");
    for case in cases {
        if let Err(error) = run(case, constants) {
            panic!("{}: {error:#}", case.name());
        }
    }
}

fn run(case: &Case, constants: Constants) -> Result<()> {
    let mut kernel = Kernel::borrow(case.flow_entries(), constants)?;
    case.run(|tables, event| kernel.follow(tables, &event))?;
    kernel.give_back();
    Ok(())
}

macro_rules! test_every_case {
    ($($rule:ident),* $(,)?) => {
        $(
            #[test]
            fn $rule() {
                check(&cases::$rule(), Constants::default());
            }
        )*
    };
}

lb_ebpf::every_case!(test_every_case);

#[test]
fn the_program_does_the_same_at_every_log_level() {
    for (log_level, name) in (0..).zip(LOG_LEVELS) {
        println!("--log-level {name}");
        let constants = Constants { log_level, ..Constants::default() };
        let cases = [
            cases::a_connection_is_translated_in_both_directions(),
            // These are what it logs.
            cases::without_a_backend_new_connections_are_refused(),
            cases::a_full_table_refuses_new_connections_only(),
        ];
        check(&cases.into_iter().flatten().collect::<Vec<_>>(), constants);
    }
}

#[test]
fn where_what_is_sent_back_would_not_arrive_it_is_redirected() {
    let constants = Constants { send_back_by_redirect: true, ..Constants::default() };
    check(&cases::with_one_arm_packets_leave_where_they_came_in(), constants);
    check(&cases::backends_of_one_service_may_be_behind_several_interfaces(), constants);
    check(&cases::with_one_arm_answers_leave_where_their_packets_came_in(), constants);
}

/// The verifier does not care for how large the tables are. Most cases have them of this size.
const ANY_SIZE: usize = 64;

/// `cargo xtask test --ring program -- --nocapture the_size` shows how much of it is taken.
#[test]
fn the_size_of_the_program_is_within_its_budget() -> Result<()> {
    check_root();
    let budget = Budget::read()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let instructions = LOG_LEVELS
        .iter()
        .zip(0..)
        .map(|(name, log_level)| {
            let constants = Constants { log_level, ..Constants::default() };
            let mut kernel = Kernel::borrow(ANY_SIZE, constants)?;
            let counts = Program::ALL.map(|program| kernel.verified_instructions(program));
            kernel.give_back();
            let counts = counts.into_iter().collect::<Result<Vec<_>>>()?;
            println!("--log-level {name}: {counts:?} instructions verified");
            Ok(counts.into_iter().max().unwrap_or_default())
        })
        .collect::<Result<Vec<_>>>()?;
    let chains = Program::ALL.map(|program| stack::deepest(lb_user::program::LB, program.name()));
    let chains = chains.into_iter().collect::<Result<Vec<_>>>()?;
    let frames = chains.into_iter().max_by_key(|frames| frames.iter().sum::<u32>()).unwrap_or_default();
    println!("stack: {} bytes in {} frames: {frames:?}", frames.iter().sum::<u32>(), frames.len());

    let (off, most) = (instructions[0], instructions.iter().copied().max().unwrap_or_default());
    assert_ne!(off, 0, "the kernel verifies without counting");
    let exceeded: Vec<_> = [
        ("verified instructions of a program with logging off", off, budget.instructions),
        (
            "verified instructions of a program at the log level that takes most",
            most,
            budget.instructions_when_logging,
        ),
        ("bytes of stack", frames.iter().sum(), budget.stack),
    ]
    .into_iter()
    .filter_map(|(what, is, allowed)| {
        println!("{NOTE}{what}: {is} of {allowed}");
        budget::excess(what, is, allowed, kernel.trim())
    })
    .collect();
    assert!(exceeded.is_empty(), "{}", exceeded.join("\n"));
    Ok(())
}
