//! What happens, in words that hold for every balancer: who says what in which session. Ports and quotes, which depend
//! on what a balancer did before, are filled in when an event is played.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;

use lb_common::Protocol;

use crate::hosts::{Family, Host, Side, service};
use crate::packet::{ACK, Carriage, Content, FIN, PSH, RST, SYN};

/// A client's connection to the service of its protocol, or several of them, one after another, from one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) family: Family,
    pub(crate) protocol: Protocol,
    pub(crate) client: u8,
    pub(crate) port: u16,
}

impl Session {
    pub(crate) fn client(&self) -> SocketAddr {
        SocketAddr::new(Host::Client(self.client).address(self.family), self.port)
    }

    pub(crate) fn service(&self) -> SocketAddr {
        service(self.family, self.protocol)
    }
}

impl Display for Session {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} -> {}", self.protocol, self.client(), self.service())
    }
}

/// Something goes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Index of the session.
    pub(crate) session: usize,
    pub(crate) from: Side,
    pub(crate) sends: Sends,
    pub(crate) carriage: Carriage,
}

/// What goes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    /// TCP: the sequence numbers are what the session has come to, `skew` apart.
    Segment { control: u8, length: usize, options: Vec<u8>, skew: u32 },
    /// TCP: what was sent last, once more.
    Again,
    /// UDP: one datagram for each length. If they are fragmented, their fragments travel in one crowd.
    Datagrams { lengths: Vec<usize>, checksum: bool },
    /// An ICMP error about the last packet that came out on this side.
    Error { by: Reporter, kind: u8, code: u8, rest: [u8; 4], quote: Quote },
}

impl Sends {
    pub(crate) const fn segment(control: u8, length: usize) -> Self {
        Self::Segment { control, length, options: Vec::new(), skew: 0 }
    }

    pub(crate) fn datagram(length: usize) -> Self {
        Self::Datagrams { lengths: vec![length], checksum: true }
    }
}

/// Who reports an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reporter {
    /// Whom the packet was for.
    Receiver,
    /// Somebody on the way there.
    Router,
}

/// How much of a packet an error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quote {
    /// The network header, and so many bytes more.
    Bytes(usize),
    /// All that fits a small packet (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
    Most,
    /// 128 bytes, and behind them an extension structure with an MPLS label (RFC 4884, RFC 4950).
    Extended,
}

impl Event {
    pub(crate) fn new(session: usize, from: Side, sends: Sends) -> Self {
        Self { session, from, sends, carriage: Carriage::default() }
    }

    #[must_use]
    pub(crate) fn carried(self, carriage: Carriage) -> Self {
        Self { carriage, ..self }
    }

    /// Whether a TCP connection begins with it.
    pub(crate) const fn opens(&self) -> bool {
        matches!(self.sends, Sends::Segment { control, .. } if control & (SYN | ACK) == SYN)
    }
}

impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "session {}, from the {}'s side: ", self.session, self.from.name())?;
        match &self.sends {
            Sends::Segment { control, length, options, skew } => {
                for (bit, name) in [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK")] {
                    if control & bit != 0 {
                        write!(f, "{name} ")?;
                    }
                }
                write!(f, "with {length} bytes")?;
                if !options.is_empty() {
                    write!(f, ", options {options:02x?}")?;
                }
                if *skew != 0 {
                    write!(f, ", {skew} off in the sequence")?;
                }
            }
            Sends::Again => write!(f, "the last segment again")?,
            Sends::Datagrams { lengths, checksum } => {
                write!(f, "datagrams of {lengths:?} bytes")?;
                if !checksum {
                    write!(f, " without a checksum")?;
                }
            }
            Sends::Error { by, kind, code, rest, quote } => {
                write!(f, "{by:?} reports ICMP type {kind} code {code}, {rest:02x?}, quoting {quote:?}")?;
            }
        }
        write!(f, "; {}", self.carriage)?;
        Ok(())
    }
}

/// Sessions, and what happens in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) sessions: Vec<Session>,
    pub(crate) events: Vec<Event>,
}

/// How far the sessions of a script have come. It is the same for every balancer: hosts talk as if all that they sent
/// had arrived.
#[derive(Debug)]
pub(crate) struct Talks {
    talks: Vec<Talk>,
    /// Identification of the next packet.
    id: u16,
}

#[derive(Clone, Debug)]
struct Talk {
    client: Stream,
    server: Stream,
}

/// One direction of a TCP connection.
#[derive(Clone, Debug, Default)]
struct Stream {
    next: u32,
    last: Option<Content>,
}

/// The window in every segment. Options may scale it.
const WINDOW: u16 = 0xfff0;

impl Talks {
    pub(crate) fn of(script: &Script) -> Self {
        // Some begin so high that their sequence numbers wrap.
        let talk = |number: u32| Talk {
            client: Stream { next: 0u32.wrapping_sub(2_000 + 100_000 * number), last: None },
            server: Stream { next: 0x1234_5678 + 1_000 * number, last: None },
        };
        Self { talks: (0..).map(talk).take(script.sessions.len()).collect(), id: 0 }
    }

    /// An identification that no packet had before.
    pub(crate) fn next_id(&mut self) -> u16 {
        self.id += 1;
        self.id
    }

    /// What an event's packets hold, but for errors.
    pub(crate) fn contents(&mut self, event: &Event) -> Vec<Content> {
        let talk = &mut self.talks[event.session];
        let (stream, other) = match event.from {
            Side::Client => (&mut talk.client, &talk.server),
            Side::Server => (&mut talk.server, &talk.client),
        };
        match &event.sends {
            Sends::Segment { control, length, options, skew } => {
                if event.opens() {
                    // A new connection begins beyond the old one's sequence numbers (RFC 6191).
                    stream.next = stream.next.wrapping_add(100_000);
                }
                let content = Content::Tcp {
                    sequence: stream.next.wrapping_add(*skew),
                    acknowledgement: if control & ACK == 0 { 0 } else { other.next },
                    control: *control,
                    window: WINDOW,
                    options: options.clone(),
                    payload: payload(event.session, *length),
                };
                if *skew == 0 {
                    let numbered = length + usize::from(control & SYN != 0) + usize::from(control & FIN != 0);
                    stream.next = stream.next.wrapping_add(u32::try_from(numbered).unwrap_or_default());
                    stream.last = Some(content.clone());
                }
                vec![content]
            }
            Sends::Again => stream.last.iter().cloned().collect(),
            Sends::Datagrams { lengths, checksum } => lengths
                .iter()
                .map(|length| Content::Udp { checksum: *checksum, payload: payload(event.session, *length) })
                .collect(),
            Sends::Error { .. } => Vec::new(),
        }
    }
}

/// Bytes that are of this session and show where they stand.
fn payload(session: usize, length: usize) -> Vec<u8> {
    let first = u8::try_from(session % 251).unwrap_or_default();
    (0..length).map(|at| u8::try_from(at % 249).unwrap_or_default().wrapping_mul(3) ^ first).collect()
}
