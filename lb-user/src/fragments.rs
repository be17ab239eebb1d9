//! Fragments that have come before the first one of their datagram, which alone says where they go: the XDP program gives them
//! to the daemon, which has them come in once more when that one has come.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use aya::{
    maps::{
        MapData,
        perf::{PerfEvent, PerfEventArrayBuffer},
    },
    util::online_cpus,
};
use futures_util::future::select_all;
use lb_common::datagram::Early;
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, timeout},
};

use crate::{
    maps::DatagramMaps,
    program::{Mode, Program},
};

/// How often it is looked whether first fragments have come, while others wait for them.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a fragment is kept: as long as Linux keeps one (`net.ipv4.ipfrag_time`).
const PATIENCE: Duration = Duration::from_secs(30);

/// Fragments that are kept at a time; for more the one goes that has waited longest.
const MOST: usize = 4_096;

/// Pages of each CPU's buffer: some forty fragments of 1 500 bytes.
const PAGES: usize = 16;

/// A fragment that waits.
struct Held {
    early: Early,
    frame: Vec<u8>,
    since: Instant,
}

/// All that wait.
pub(crate) struct Fragments {
    maps: DatagramMaps,
    buffers: Vec<AsyncFd<PerfEventArrayBuffer<MapData>>>,
    modes: HashMap<u32, Mode>,
    held: VecDeque<Held>,
}

impl Fragments {
    /// Has the program of the balancer pinned in `dir`, which is attached to these interfaces, give early fragments to this
    /// process.
    pub(crate) fn open(dir: &Path, modes: HashMap<u32, Mode>) -> anyhow::Result<Self> {
        let mut maps = DatagramMaps::open(dir)?;
        let cpus = online_cpus().map_err(|(path, error)| anyhow!("cannot read {path}: {error}"))?;
        #[expect(
            deprecated,
            reason = "what it warns of, a descriptor that is closed too early, a buffer does not do"
        )]
        let open = |cpu| {
            let buffer = maps.early.open(cpu, Some(PAGES)).map_err(anyhow::Error::from)?;
            AsyncFd::new(buffer).map_err(anyhow::Error::from)
        };
        let buffers = cpus.into_iter().map(open).collect::<Result<_, _>>();
        let buffers = buffers.context("cannot make buffers for fragments")?;
        Ok(Self { maps, buffers, modes, held: VecDeque::new() })
    }

    /// Waits for fragments, and has them come in again.
    pub(crate) async fn play_in(mut self, program: &Program) -> anyhow::Result<Infallible> {
        loop {
            if self.held.is_empty() {
                readable(&self.buffers).await?;
            } else if let Ok(result) = timeout(PAUSE, readable(&self.buffers)).await {
                result?;
            }
            self.gather();
            self.release(program)?;
        }
    }

    /// Takes what the program has given.
    fn gather(&mut self) {
        let now = Instant::now();
        for buffer in &mut self.buffers {
            buffer.get_mut().for_each(|event| match event {
                PerfEvent::Sample { head, tail } => {
                    if let Some((early, frame)) = split(&[head, tail].concat()) {
                        if self.held.len() >= MOST {
                            self.held.pop_front();
                        }
                        self.held.push_back(Held { early, frame, since: now });
                    }
                }
                PerfEvent::Lost { count } => {
                    log::debug!("{count} early fragments came too fast and are lost")
                }
            });
        }
    }

    /// Has those come in again whose datagram's first has come, in their order, and forgets those that have waited too long.
    fn release(&mut self, program: &Program) -> anyhow::Result<()> {
        for held in std::mem::take(&mut self.held) {
            let Held { early, frame, since } = &held;
            let first = self.maps.datagram(&early.key)?;
            if first.is_some_and(|datagram| datagram.is_of(early.at)) {
                if let Some(mode) = self.modes.get(&early.ingress)
                    && let Err(error) = program.play_in(frame, early.ingress, *mode)
                {
                    log::debug!("{error:#}");
                }
            } else if since.elapsed() < PATIENCE {
                self.held.push_back(held);
            }
        }
        Ok(())
    }
}

/// Waits until one of the buffers has something.
async fn readable(buffers: &[AsyncFd<PerfEventArrayBuffer<MapData>>]) -> anyhow::Result<()> {
    let all = buffers.iter().map(|buffer| Box::pin(buffer.readable()));
    let (ready, _, _) = select_all(all).await;
    ready.context("cannot wait for fragments")?.clear_ready();
    Ok(())
}

/// What the program has given: what precedes a frame, and the frame.
fn split(sample: &[u8]) -> Option<(Early, Vec<u8>)> {
    let early = Early::from_bytes(sample)?;
    let frame = sample.get(size_of::<Early>()..)?.get(..usize::try_from(early.length).ok()?)?;
    Some((early, frame.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_holds_a_whole_frame_and_perhaps_padding() {
        let mut sample = vec![0; size_of::<Early>()];
        sample[size_of::<Early>() - 4..].copy_from_slice(&3_u32.to_ne_bytes());
        sample.extend([1, 2]);
        assert!(split(&sample).is_none(), "a byte is missing");
        sample.extend([3, 0, 0]);
        assert!(split(&sample).is_some_and(|(early, frame)| early.length == 3 && frame == [1, 2, 3]));
        assert!(split(&sample[..10]).is_none());
    }
}
