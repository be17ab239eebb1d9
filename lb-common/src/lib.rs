//! Vocabulary that the XDP program and the control path share: addresses, flows, connection state, checksums,
//! services, backends, verdicts, and the layout of the maps' keys and values.
//!
//! Invariant: nothing here touches a packet, a map or a clock.
#![no_std]

pub mod backend;
pub mod checksum;
pub mod control;
pub mod datagram;
pub mod family;
pub mod flow;
pub mod service;
pub mod state;
pub mod table;
pub mod verdict;
pub mod vlan;

pub use backend::{Backend, BackendCounters, BackendState, Hop, Traffic};
pub use checksum::Delta;
pub use control::{Interface, LAYOUT_VERSION, Meta, Program};
pub use datagram::{Datagram, DatagramKey, Fate};
pub use family::{Addr, Address4, Address6, Family, V4, V6};
pub use flow::{FlowEntry, FlowKey, Port, Ports, Seen, Side, Tick, Tuple};
pub use service::{Protocol, Service, ServiceKey, SlotTable};
pub use state::ConnectionState;
pub use verdict::{Action, Answers, Reason};
pub use vlan::{Tag, Tags, Vlan};
