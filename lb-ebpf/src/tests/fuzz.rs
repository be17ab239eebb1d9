//! Many random packets through the library alone. `LB_SEED=4711` has others; tests in `lb-tests` have the kernel follow.

use std::{collections::BTreeMap, println, vec::Vec};

use lb_common::Reason;

use super::pairs::check_whole_pairs;
use crate::host::fuzz::{Fuzzer, SEED_VARIABLE, SEQUENCE, first_seed};

#[test]
fn whatever_comes_nothing_panics_grows_or_spoils_a_checksum() {
    const SEQUENCES: u64 = 30;
    let first = first_seed();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + SEQUENCES {
        let mut fuzzer = Fuzzer::new(seed);
        for number in 0..SEQUENCE {
            fuzzer.step();
            // Ticks pass, but not so fast that all answers may be sent.
            if number % 2_000 == 0 {
                fuzzer.forget_answers();
                fuzzer.reconfigure();
            }
        }
        check_whole_pairs(fuzzer.tables());
        for reason in Reason::ALL {
            *counts.entry(reason.name()).or_default() += fuzzer.tables().count_of(*reason);
        }
    }
    println!("{SEED_VARIABLE}={first}: {counts:?}");
    // All parts of the program are one here.
    counts.remove(Reason::ProgramMissing.name());
    // There is room before every frame, and all of it is in one piece.
    counts.remove(Reason::NoHeadroom.name());
    counts.remove(Reason::UnfinishedChecksum.name());
    // Among random packets there is always a connection that is half open, and gives way.
    counts.remove(Reason::TableFull.name());
    let rare: Vec<_> = counts.iter().filter(|(_, count)| **count < 10).collect();
    assert!(rare.is_empty(), "the packets hardly reach {rare:?}");
}
