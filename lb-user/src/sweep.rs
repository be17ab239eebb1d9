//! The sweeper: removes connections that have been idle for longer than their state allows, bit by bit.

use std::{
    convert::Infallible,
    ops::Range,
    time::{Duration, Instant},
};

use lb_common::{V4, V6};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    clock, flows,
    maps::{FlowTable, Maps},
};

/// Between the beginnings of two rounds, if the tables are small.
const ROUND: Duration = Duration::from_secs(1);

/// After something went wrong.
const RETRY: Duration = Duration::from_secs(10);

/// Goes through the flow tables again and again.
pub(crate) async fn forever(maps: Maps) -> Infallible {
    loop {
        let begin = Instant::now();
        match sweep(&maps).await {
            Ok(()) => sleep(ROUND.saturating_sub(begin.elapsed())).await,
            // The balancer works on without, and memory may be short for a moment only.
            Err(error) => {
                log::warn!("{error:#}");
                sleep(RETRY).await;
            }
        }
    }
}

/// What `lb sweep --json` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Removed {
    /// Connections.
    pub(crate) removed: u64,
}

impl Removed {
    /// For people.
    pub(crate) fn text(self) -> String {
        match self.removed {
            1 => "removed 1 idle connection".to_owned(),
            number => format!("removed {number} idle connections"),
        }
    }
}

/// Goes through the flow tables once, without rest: for a data path without a daemon.
pub(crate) fn once(maps: &Maps) -> anyhow::Result<Removed> {
    Ok(Removed { removed: once_through::<V4>(maps)? + once_through::<V6>(maps)? })
}

fn once_through<F: FlowTable>(maps: &Maps) -> anyhow::Result<u64> {
    let slots = F::flows(maps).slots();
    let mut removed = 0;
    for first in (0..slots).step_by(usize::try_from(CHUNK)?) {
        removed += step::<F>(maps, first..(first + CHUNK).min(slots))?.removed;
    }
    Ok(removed)
}

async fn sweep(maps: &Maps) -> anyhow::Result<()> {
    round::<V4>(maps).await?;
    round::<V6>(maps).await
}

/// Slots looked at between two rests: less than a millisecond's work.
const CHUNK: u32 = 4_096;

/// Goes through one table once.
async fn round<F: FlowTable>(maps: &Maps) -> anyhow::Result<()> {
    let table = F::flows(maps);
    let entries = maps.meta()?.flow_entries;
    for first in (0..table.slots()).step_by(usize::try_from(CHUNK)?) {
        let begin = Instant::now();
        let step = step::<F>(maps, first..(first + CHUNK).min(table.slots()))?;
        sleep(begin.elapsed() * rest(&step, is_nearly_full(table.room(), entries))).await;
    }
    Ok(())
}

/// What a step of a round has come to.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    seen: u64,
    removed: u64,
}

/// Looks at the flows in these slots.
fn step<F: FlowTable>(maps: &Maps, slots: Range<u32>) -> anyhow::Result<Step> {
    let now = clock::now()?;
    let table = F::flows(maps);
    let mut step = Step::default();
    for flow in table.flows(slots.clone()) {
        step.seen += 1;
        step.removed += u64::from(flows::expire(table, &flow, now));
    }
    table.shorten(slots);
    Ok(step)
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

/// Whether three quarters of a table that takes so many entries are taken.
fn is_nearly_full(room: i64, entries: u32) -> bool {
    room <= i64::from(entries / 4)
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
    fn with_a_quarter_of_its_room_left_a_table_is_nearly_full() {
        for (room, is_full) in [(1_000, false), (251, false), (250, true), (0, true), (-3, true)] {
            assert_eq!(is_nearly_full(room, 1_000), is_full, "{room}");
        }
    }
}
