//! Why a packet was treated as it was. One list gives the action, the counter's name and the words that users read.

use crate::flow::Tick;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sent on, rewritten.
    Forward,
    /// Thrown away, and an answer sent back to its sender.
    Answer,
    /// Left to the kernel, untouched.
    Pass,
    /// Thrown away.
    Drop,
}

macro_rules! reasons {
    ($($variant:ident, $action:ident, $name:literal, $text:literal;)*) => {
        /// The one reason of a verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $text] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As functions of the XDP program return a reason, or none.
            #[inline(always)]
            pub const fn code(reason: Option<Self>) -> u64 {
                match reason {
                    Some(reason) => reason as u64,
                    None => Self::ALL.len() as u64,
                }
            }

            /// From that number.
            #[inline(always)]
            pub const fn from_code(code: u64) -> Option<Self> {
                match code {
                    $(code if code == Self::$variant as u64 => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)* }
            }

            /// The reason of the same packet where it gets no answer.
            #[inline(always)]
            pub const fn unanswered(self) -> Self {
                match self {
                    Self::TtlExpired => Self::TtlExpiredUnanswered,
                    Self::TooBig => Self::TooBigUnanswered,
                    other => other,
                }
            }

            /// Name of the counter, stable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// For people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    Forwarded, Forward, "forwarded", "belongs to a connection; rewritten and sent on";
    NotIp, Pass, "not-ip", "neither IPv4 nor IPv6; left to the kernel";
    OtherProtocol, Pass, "other-protocol", "neither TCP nor UDP nor an error about them; left to the kernel";
    NoService, Pass, "no-service", "not for a service; left to the kernel";
    Fragment, Pass, "fragment", "a fragment of what is of no connection; left to the kernel";
    Malformed, Pass, "malformed", "headers or lengths that do not fit the frame; left to the kernel";
    NoChecksum, Pass, "no-checksum", "UDP over IPv6 without a checksum (RFC 8200 section 8.1); left to the kernel";
    Stray, Pass, "stray", "TCP for a service, but no SYN and of no connection; left to the kernel, which resets it";
    NoBackend, Drop, "no-backend", "the service has no backend; dropped";
    NoNextHop, Drop, "no-next-hop", "the backend's next hop has no known MAC address yet; dropped";
    PortsExhausted, Drop, "ports-exhausted", "no free source port towards the backend; dropped";
    TableFull, Drop, "table-full", "the flow table is full; new connection refused";
    TtlExpired, Answer, "ttl-expired", "TTL or hop limit at its end; answered with 'time exceeded'";
    IcmpForwarded, Forward, "icmp-forwarded", "an ICMP error about a connection; rewritten and sent on";
    TtlExpiredUnanswered, Drop, "ttl-expired-unanswered",
        "TTL or hop limit at its end; dropped, for no answer is allowed or there were too many";
    TooBig, Answer, "too-big", "larger than the MTU of its way out; answered with that MTU";
    TooBigUnanswered, Drop, "too-big-unanswered",
        "larger than the MTU of its way out; dropped, for no answer is allowed or there were too many";
    IcmpOfNoConnection, Pass, "icmp-no-connection", "an ICMP error about no connection of ours; left to the kernel";
    Martian, Drop, "martian",
        "for a service, but from its own or a SNAT address or from that of no host (RFC 1812 section 5.3.7); dropped";
    FragmentEarly, Drop, "fragment-early",
        "a fragment before its datagram's first; kept back until that comes, and then counted once more";
    FragmentDropped, Drop, "fragment-dropped", "a fragment of a datagram whose first was dropped; dropped";
    Extension, Pass, "extension",
        "IPv6 extension headers that go on for too long or are cut off; left to the kernel";
    UnfinishedChecksum, Drop, "unfinished-checksum",
        "a checksum that its sender left to a network card, in a frame of several pieces; dropped: use `ethtool -K DEV tx off` at \
         the sender";
    ProgramMissing, Pass, "program-missing", "a part of the XDP program is not there; left to the kernel";
    OtherVlan, Pass, "other-vlan", "tagged for a VLAN that this host has no device for, but for others; left to the kernel";
    NoHeadroom, Drop, "no-headroom", "no room before the frame for the tag of its way out; dropped";
}

/// Room for counters of reasons; more than there are, so that a new one does not change the layout.
pub const REASON_COUNTERS: usize = 64;

/// Packets by reason, on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ReasonCounters {
    /// Indexed by `Reason as usize`.
    pub packets: [u64; REASON_COUNTERS],
}

/// ICMP errors that one CPU has sent in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Answers {
    /// Which tick.
    pub tick: Tick,
    /// How many.
    pub number: u32,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl aya::Pod for super::ReasonCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Answers {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gets_no_answer_is_dropped() {
        for reason in Reason::ALL {
            let answered = reason.action() == Action::Answer;
            assert_eq!(reason.unanswered() != *reason, answered, "{reason:?}");
            assert!(!answered || reason.unanswered().action() == Action::Drop, "{reason:?}");
        }
    }

    #[test]
    fn every_reason_has_a_counter_and_a_name_of_its_own() {
        assert!(Reason::ALL.len() <= REASON_COUNTERS);
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_code(Reason::code(Some(*reason))), Some(*reason));
            assert!(Reason::ALL[..index].iter().all(|other| other.name() != reason.name()));
        }
        assert_eq!(Reason::from_code(Reason::code(None)), None);
    }
}
