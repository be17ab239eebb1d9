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
    flows,
    maps::{FlowTable, Maps},
};

/// Between the beginnings of two rounds, if the tables are small.
const ROUND: Duration = Duration::from_secs(1);

/// Goes through the flow tables again and again.
pub(crate) async fn forever(mut maps: Maps) -> anyhow::Result<Infallible> {
    let mut rests = (rest(0, 1), rest(0, 1));
    loop {
        let begin = Instant::now();
        rests.0 = round::<V4>(&mut maps, rests.0).await?;
        rests.1 = round::<V6>(&mut maps, rests.1).await?;
        sleep(ROUND.saturating_sub(begin.elapsed())).await;
    }
}

/// How many times as long as it works the sweeper is to rest, when a table of `room` entries holds so many: the fuller
/// it is, the more new connections depend on what is removed. 2 % of a CPU, 10 %, or half of one.
const fn rest(entries: u64, room: u64) -> u32 {
    match entries * 100 / room {
        0..50 => 49,
        50..75 => 9,
        _ => 1,
    }
}

/// Goes through one table once; how much to rest in the next round.
async fn round<F: FlowTable>(maps: &mut Maps, rest_now: u32) -> anyhow::Result<u32> {
    let room = maps.flow_room::<F>()?;
    let mut entries = 0;
    let mut walk = Walk::new();
    loop {
        let begin = Instant::now();
        let seen = step::<F>(maps, &mut walk)?;
        sleep(begin.elapsed() * rest_now).await;
        match seen {
            Some(seen) => entries += seen,
            None => return Ok(rest(entries, room)),
        }
    }
}

/// Looks at the next entries and says how many; `None` behind the last ones.
fn step<F: FlowTable>(
    maps: &mut Maps,
    walk: &mut Walk<FlowKey<F>, FlowEntry<F>>,
) -> anyhow::Result<Option<u64>> {
    let Some((keys, entries)) = walk.next_chunk(F::flows(maps)).context("cannot read the flow table")? else {
        return Ok(None);
    };
    let now = flows::now()?;
    let mut seen = 0;
    for (key, entry) in keys.iter().zip(entries) {
        flows::expire(maps, key, entry, now)?;
        seen += 1;
    }
    Ok(Some(seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuller_the_table_the_less_rest() {
        for (entries, times) in [(0, 49), (499, 49), (500, 9), (749, 9), (750, 1), (1_000, 1)] {
            assert_eq!(rest(entries, 1_000), times, "{entries} of 1000");
        }
    }
}
