//! Many random packets through the program in the kernel: it does with every one what the library does.
//!
//! LB_SEED=4711 begins with other ones, LB_FUZZ_PACKETS=10000000 has as many.

use std::env;
use std::time::Instant;

use anyhow::{Context as _, Result};
use lb_common::{Action, Reason};
use lb_ebpf::answer::BUDGET;
use lb_ebpf::host::fuzz::{Fuzzer, SEED_VARIABLE, SEQUENCE, first_seed};
use lb_tests::guest::{FUZZ_PACKETS_VARIABLE, NOTE};

use crate::check_root;
use crate::kernel::{self, Constants, Kernel};

/// As many as take a quarter of a minute.
const PACKETS: usize = 1_000_000;

/// More than a sequence makes.
const FLOW_ENTRIES: usize = 1 << 15;

/// After so many packets counters and flows are compared too, which takes as long as a thousand packets do.
const BETWEEN_COMPARISONS: usize = 1_000;

fn packets() -> Result<usize> {
    match env::var(FUZZ_PACKETS_VARIABLE) {
        Ok(number) => number.parse().with_context(|| format!("{FUZZ_PACKETS_VARIABLE} is no number")),
        Err(_) => Ok(PACKETS),
    }
}

#[test]
fn the_program_does_with_random_packets_what_the_library_does() -> Result<()> {
    check_root();
    let _inside = kernel::enter_network()?;
    let (packets, first) = (packets()?, first_seed());
    let started = Instant::now();
    let mut forwarded = 0;
    for (seed, done) in (first..).zip((0..packets).step_by(SEQUENCE)) {
        let mut fuzzer = Fuzzer::new(seed);
        // Which pair gives way in a full table depends on where flows lie in it, and there the two are not alike.
        fuzzer.tables().set_capacity(FLOW_ENTRIES);
        let mut kernel = Kernel::borrow(FLOW_ENTRIES, Constants::default())?;
        follow(&mut kernel, &mut fuzzer, SEQUENCE.min(packets - done))?;
        forwarded += fuzzer.tables().count_of(Reason::Forwarded);
        kernel.give_back();
    }
    let seconds = started.elapsed().as_secs_f32();
    println!(
        "{NOTE}{packets} random packets from {SEED_VARIABLE}={first} on, of which {forwarded} were forwarded, the same by \
         library and kernel ({seconds:.1} s)"
    );
    Ok(())
}

/// Has the kernel follow one sequence.
fn follow(kernel: &mut Kernel, fuzzer: &mut Fuzzer, packets: usize) -> Result<()> {
    kernel.configure(fuzzer.tables())?;
    let mut answers = 0;
    for number in 1..=packets {
        let step = fuzzer.step_of_kernel();
        kernel.process(step.ingress, &step.frame, &step.outcome).with_context(|| step.to_string())?;
        answers += u32::from(step.outcome.reason.action() == Action::Answer);
        // The two clocks do not go alike: neither side is to come to the end of its answers in a tick.
        if answers == BUDGET / 2 {
            answers = 0;
            fuzzer.forget_answers();
            kernel.forget_answers()?;
        }
        if number % BETWEEN_COMPARISONS == 0 || number == packets {
            kernel.compare_tables(fuzzer.tables()).with_context(|| {
                format!("between the last {BETWEEN_COMPARISONS} packets and this one, after it: {step}")
            })?;
            fuzzer.reconfigure();
            kernel.configure(fuzzer.tables())?;
        }
    }
    Ok(())
}
