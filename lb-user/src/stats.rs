//! `lb stats`: counters of the whole balancer.

use std::collections::BTreeMap;

use lb_common::Reason;
use serde::Serialize;

use crate::{
    maps::Maps,
    view::{self, Column},
};

/// What `lb stats --json` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Stats {
    /// Packets by what became of them.
    pub(crate) reasons: BTreeMap<&'static str, u64>,
    /// To and from the backends that there are.
    pub(crate) packets: u64,
    /// Likewise, of whole frames.
    pub(crate) bytes: u64,
    /// Made with the backends that there are.
    pub(crate) connections: u64,
}

impl Stats {
    pub(crate) fn read(maps: &Maps) -> anyhow::Result<Self> {
        let reasons = maps.reasons()?.into_iter().map(|(reason, count)| (reason.name(), count)).collect();
        let mut stats = Self { reasons, packets: 0, bytes: 0, connections: 0 };
        for index in maps.state()?.backends.keys() {
            let counters = maps.backend_counters(*index)?;
            stats.packets += counters.requests.packets + counters.replies.packets;
            stats.bytes += counters.requests.bytes + counters.replies.bytes;
            stats.connections += counters.connections;
        }
        Ok(stats)
    }

    /// For people: totals, and every reason with its words.
    pub(crate) fn text(&self) -> String {
        let rows = Reason::ALL.iter().map(|reason| {
            let count = self.reasons.get(reason.name()).copied().unwrap_or_default();
            vec![reason.name().to_owned(), count.to_string(), reason.text().to_owned()]
        });
        let reasons =
            view::table(&[Column::Text("REASON"), Column::Number("PACKETS"), Column::Text("MEANING")], rows);
        format!(
            "{} packets and {} to and from the backends, {} connections made\n\n{reasons}",
            self.packets,
            view::bytes(self.bytes),
            self.connections
        )
    }
}
