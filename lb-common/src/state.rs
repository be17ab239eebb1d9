//! The state of a connection, a pure function of what its two directions saw.
//!
//! Limits: RFC 5382 REQ-5 (TCP: 2 h 4 min established, 4 min transitory), RFC 4787 REQ-5 (UDP: no less than 2 min,
//! 5 min recommended), RFC 9293 section 3.4.2 (TIME-WAIT is twice the maximum segment lifetime).

use core::time::Duration;

use crate::{flow::Seen, service::Protocol};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// TCP: the client's SYN has no answer yet. UDP: no datagram came back yet.
    Opening,
    /// TCP: the backend answered, the client did not confirm yet.
    Answered,
    /// Both sides talk.
    Established,
    /// One side has said FIN.
    HalfClosed,
    /// Both sides have said FIN.
    Closed,
    /// One side has sent RST.
    Reset,
}

impl ConnectionState {
    /// The state of a connection whose requests and replies have been `request` and `reply`.
    pub const fn of(protocol: Protocol, request: Seen, reply: Seen) -> Self {
        match protocol {
            Protocol::Udp if reply.has(Seen::PACKET) => Self::Established,
            Protocol::Udp => Self::Opening,
            Protocol::Tcp if request.has(Seen::RST) || reply.has(Seen::RST) => Self::Reset,
            Protocol::Tcp => match (request.has(Seen::FIN), reply.has(Seen::FIN)) {
                (true, true) => Self::Closed,
                (true, false) | (false, true) => Self::HalfClosed,
                (false, false) if !reply.has(Seen::SYN) => Self::Opening,
                (false, false) if !request.has(Seen::ACK) => Self::Answered,
                (false, false) => Self::Established,
            },
        }
    }

    /// Whether nothing more is expected: a new SYN is then a new connection, and the port may be taken again.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }

    /// How long a pair in this state may stay idle before it is removed.
    pub const fn limit(self, protocol: Protocol) -> Duration {
        const MINUTE: u64 = 60;
        Duration::from_secs(match (protocol, self) {
            (Protocol::Tcp, Self::Established) => 124 * MINUTE,
            (Protocol::Tcp, Self::Closed) => 2 * MINUTE,
            (Protocol::Tcp, Self::Reset) => 10,
            (Protocol::Tcp, Self::Opening | Self::Answered | Self::HalfClosed) => 4 * MINUTE,
            (Protocol::Udp, Self::Established) => 5 * MINUTE,
            (Protocol::Udp, _) => MINUTE,
        })
    }

    /// As the command line prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Seen = Seen::when(false, Seen::PACKET);
    const SYN: Seen = Seen::PACKET.and(Seen::SYN);
    const SYN_ACK: Seen = SYN.and(Seen::ACK);
    const FIN: Seen = SYN_ACK.and(Seen::FIN);
    const RST: Seen = SYN_ACK.and(Seen::RST);

    #[test]
    fn tcp_states_follow_from_what_both_directions_saw() {
        use ConnectionState::*;
        for (request, reply, state) in [
            (SYN, NONE, Opening),
            (SYN, SYN_ACK, Answered),
            (SYN_ACK, SYN_ACK, Established),
            (SYN_ACK, FIN, HalfClosed),
            (FIN, SYN_ACK, HalfClosed),
            (FIN, FIN, Closed),
            (SYN, RST, Reset),
            (RST, SYN_ACK, Reset),
            (FIN, RST, Reset),
            // Simultaneous open (RFC 9293 section 3.5): SYNs cross, then both confirm.
            (SYN, SYN, Answered),
        ] {
            assert_eq!(ConnectionState::of(Protocol::Tcp, request, reply), state, "{request:?} {reply:?}");
        }
    }

    #[test]
    fn udp_is_established_by_the_first_answer() {
        use ConnectionState::*;
        assert_eq!(ConnectionState::of(Protocol::Udp, Seen::PACKET, NONE), Opening);
        assert_eq!(ConnectionState::of(Protocol::Udp, Seen::PACKET, Seen::PACKET), Established);
    }

    #[test]
    fn limits_are_not_below_what_the_rfcs_ask_for() {
        let tcp = ConnectionState::Established.limit(Protocol::Tcp);
        assert!(tcp >= Duration::from_secs(2 * 3600 + 4 * 60), "RFC 5382 REQ-5");
        for state in [ConnectionState::Opening, ConnectionState::Answered, ConnectionState::HalfClosed] {
            assert!(state.limit(Protocol::Tcp) >= Duration::from_secs(4 * 60), "RFC 5382 REQ-5");
        }
        assert!(
            ConnectionState::Established.limit(Protocol::Udp) >= Duration::from_secs(2 * 60),
            "RFC 4787 REQ-5"
        );
    }
}
