//! What can be measured.

use anyhow::Result;

use crate::cores::Cores;
use crate::setting::Setting;
use crate::web::{self, Way};
use crate::{forwarding, resources};

/// Something to measure, not yet prepared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Packets of connections that are known, in millions a second.
    Forward(Setting),
    /// The same, on two cores.
    ForwardOnBoth(Setting),
    /// How long such a packet is under way, in microseconds, at half of what the forwarder can do.
    Delay(Setting, Percentile),
    /// First packets of connections, in thousands a second.
    Open(Setting),
    /// Whole handshakes, in thousands a second.
    Connect(Setting),
    /// Requests over HTTP, in thousands a second.
    Fetch(Way, web::Connections),
    /// Milliseconds until the forwarder is ready.
    Start(Setting),
    /// Bytes that a connection takes.
    Memory(Setting),
}

/// Which of many values in order, of 1 000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Percentile(pub(crate) u64);

/// Something that is ready to be measured.
pub(crate) trait Subject {
    fn measure(&mut self) -> Result<f64>;
}

impl Work {
    pub(crate) fn prepare(&self, cores: Cores) -> Result<Box<dyn Subject>> {
        Ok(match *self {
            Self::Forward(setting) => Box::new(forwarding::Forwarding::new(setting, cores)?),
            Self::ForwardOnBoth(setting) => Box::new(forwarding::OnBoth::new(setting, cores)?),
            Self::Delay(setting, which) => Box::new(forwarding::Delay::new(setting, cores, which)?),
            Self::Open(setting) => Box::new(forwarding::Opening { setting, cores, handshakes: false }),
            Self::Connect(setting) => Box::new(forwarding::Opening { setting, cores, handshakes: true }),
            Self::Fetch(way, connections) => Box::new(web::Fetching::new(way, connections, cores)?),
            Self::Start(setting) => Box::new(resources::Start { setting, cores }),
            Self::Memory(setting) => Box::new(resources::Memory { setting, cores }),
        })
    }
}
