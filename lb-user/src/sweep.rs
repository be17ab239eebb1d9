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

/// How long to rest for each unit of work: the sweeper takes a fiftieth of a CPU, however large the tables are.
const REST: u32 = 49;

/// Goes through the flow tables again and again.
pub(crate) async fn forever(mut maps: Maps) -> anyhow::Result<Infallible> {
    loop {
        let begin = Instant::now();
        round::<V4>(&mut maps).await?;
        round::<V6>(&mut maps).await?;
        sleep(ROUND.saturating_sub(begin.elapsed())).await;
    }
}

async fn round<F: FlowTable>(maps: &mut Maps) -> anyhow::Result<()> {
    let mut walk = Walk::new();
    loop {
        let begin = Instant::now();
        let at_end = !step::<F>(maps, &mut walk)?;
        sleep(begin.elapsed() * REST).await;
        if at_end {
            return Ok(());
        }
    }
}

/// Looks at the next entries; whether there were any.
fn step<F: FlowTable>(maps: &mut Maps, walk: &mut Walk<FlowKey<F>, FlowEntry<F>>) -> anyhow::Result<bool> {
    let Some((keys, entries)) = walk.next_chunk(F::flows(maps)).context("cannot read the flow table")? else {
        return Ok(false);
    };
    let now = flows::now()?;
    for (key, entry) in keys.iter().zip(entries) {
        flows::expire(maps, key, entry, now)?;
    }
    Ok(true)
}
