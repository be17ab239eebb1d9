//! The sweeper: removes connections that have been idle for longer than their state allows, bit by bit.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_common::{FlowEntry, FlowKey, V4, V6};
use tokio::time::sleep;

use crate::{
    batch::Walk,
    clock, flows,
    maps::{FlowTable, Maps},
};

/// Between the beginnings of two rounds, if the tables are small.
const ROUND: Duration = Duration::from_secs(1);

/// After something went wrong.
const RETRY: Duration = Duration::from_secs(10);

/// Goes through the flow tables again and again.
pub(crate) async fn forever(mut maps: Maps) -> Infallible {
    loop {
        let begin = Instant::now();
        match sweep(&mut maps).await {
            Ok(()) => sleep(ROUND.saturating_sub(begin.elapsed())).await,
            // The balancer works on without, and memory may be short for a moment only.
            Err(error) => {
                log::warn!("{error:#}");
                sleep(RETRY).await;
            }
        }
    }
}

async fn sweep(maps: &mut Maps) -> anyhow::Result<()> {
    round::<V4>(maps).await?;
    round::<V6>(maps).await
}

/// Goes through one table once.
async fn round<F: FlowTable>(maps: &mut Maps) -> anyhow::Result<()> {
    let room = maps.flow_room::<F>()?;
    let mut walk = Walk::new();
    let mut seen = 0;
    loop {
        let begin = Instant::now();
        let Some(step) = step::<F>(maps, &mut walk)? else { return Ok(()) };
        seen += step.seen;
        let is_full = is_nearly_full(seen, walk.buckets(), room);
        sleep(begin.elapsed() * rest(&step, is_full)).await;
    }
}

/// What a step of a round has come to.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    seen: u64,
    removed: u64,
}

/// Looks at the next entries; `None` behind the last ones.
fn step<F: FlowTable>(
    maps: &mut Maps,
    walk: &mut Walk<FlowKey<F>, FlowEntry<F>>,
) -> anyhow::Result<Option<Step>> {
    let Some((keys, entries)) = walk.next_chunk(F::flows(maps)).context("cannot read the flow table")? else {
        return Ok(None);
    };
    let now = clock::now()?;
    let mut step = Step::default();
    for (key, entry) in keys.iter().zip(entries) {
        step.seen += 1;
        step.removed += u64::from(flows::expire(maps, key, entry, now)?);
    }
    Ok(Some(step))
}

/// How many times as long as it works the sweeper is to rest: while there is much to remove, four times, so that it takes
/// a fifth of a CPU; in a full table, where new connections wait for what it removes, a tenth; else a fiftieth.
const fn rest(step: &Step, is_full: bool) -> u32 {
    /// A step that removes one of so many entries is worth its while.
    const MUCH: u64 = 16;
    match is_full {
        _ if step.removed * MUCH > step.seen => 4,
        true => 9,
        false => 49,
    }
}

/// Whether three quarters of a table's room are taken, as far as the part with these buckets tells.
fn is_nearly_full(seen: u64, buckets: u32, room: u64) -> bool {
    // include/linux/bpf.h, kernel/bpf/hashtab.c: as many buckets as entries, rounded up to a power of two.
    let all = u128::from(seen) * u128::from(room.next_power_of_two()) / u128::from(buckets.max(1));
    all * 4 >= u128::from(room) * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_there_is_to_do_the_less_rest() {
        let step = |removed| Step { seen: 1_600, removed };
        for (removed, is_full, times) in
            [(0, false, 49), (100, false, 49), (101, false, 4), (0, true, 9), (1_600, true, 4)]
        {
            assert_eq!(rest(&step(removed), is_full), times, "{removed} removed, full: {is_full}");
        }
        assert_eq!(rest(&Step::default(), false), 49);
    }

    #[test]
    fn a_part_of_a_table_tells_how_full_it_is() {
        // Room for 1000 entries is 1024 buckets; a quarter of them has been seen.
        for (seen, is_full) in [(0, false), (187, false), (188, true), (250, true)] {
            assert_eq!(is_nearly_full(seen, 256, 1_000), is_full, "{seen}");
        }
        assert!(!is_nearly_full(0, 0, 1_000));
    }
}
