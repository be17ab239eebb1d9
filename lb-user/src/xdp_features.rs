//! What a driver can do with XDP, which the kernel tells since 6.3 (generic netlink family `netdev`,
//! Documentation/netlink/specs/netdev.yaml).

use std::io;

use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage, ctrl};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, Nla as _, NlasIterator, ParseableParametrized,
};

/// Large enough for the answers asked for here, which are a few hundred bytes.
const ANSWER: usize = 16 * 1024;

/// Features of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features(u64);

impl Features {
    /// `NETDEV_XDP_ACT_NDO_XMIT`: takes what is redirected to it.
    const TRANSMITS: u64 = 1 << 2;

    /// Whether packets can be redirected to it in native mode.
    pub(crate) const fn transmits(self) -> bool {
        self.0 & Self::TRANSMITS != 0
    }
}

/// The features of an interface's driver, at present: some change when a program is attached.
///
/// # Errors
///
/// The kernel's, also where it is too old to tell.
pub(crate) fn of(ifindex: u32) -> io::Result<Features> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    let _port = socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let family =
        ask(&socket, ctrl_request())?.payload.nlas.into_iter().find_map(|attribute| match attribute {
            ctrl::nlas::GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
    let mut request = GenlMessage::from_payload(Device(vec![word(Device::IFINDEX, ifindex)]));
    request.set_resolved_family_id(family.ok_or(io::ErrorKind::Unsupported)?);
    ask(&socket, request)?.payload.xdp_features().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn ctrl_request() -> GenlMessage<ctrl::GenlCtrl> {
    GenlMessage::from_payload(ctrl::GenlCtrl {
        cmd: ctrl::GenlCtrlCmd::GetFamily,
        nlas: vec![ctrl::nlas::GenlCtrlAttrs::FamilyName(Device::family_name().to_owned())],
    })
}

/// Sends a question that has one answer.
fn ask<T>(socket: &Socket, question: T) -> io::Result<T>
where
    T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
{
    let mut message = NetlinkMessage::from(question);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let _sent = socket.send(&bytes, 0)?;

    let mut answer = Vec::with_capacity(ANSWER);
    let _received = socket.recv(&mut answer, 0)?;
    match NetlinkMessage::<T>::deserialize(&answer).map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(answer),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The family's message about a device.
#[derive(Clone, Debug)]
struct Device(Vec<DefaultNla>);

impl Device {
    /// `NETDEV_CMD_DEV_GET`.
    const GET: u8 = 1;
    /// `NETDEV_A_DEV_IFINDEX`.
    const IFINDEX: u16 = 1;
    /// `NETDEV_A_DEV_XDP_FEATURES`.
    const XDP_FEATURES: u16 = 3;

    fn xdp_features(&self) -> Option<Features> {
        let attribute = self.0.iter().find(|attribute| attribute.kind() == Self::XDP_FEATURES)?;
        let mut value = [0; 8];
        (attribute.value_len() == value.len()).then(|| attribute.emit_value(&mut value))?;
        Some(Features(u64::from_ne_bytes(value)))
    }
}

fn word(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        Self::GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(bytes: &[u8], _header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|attribute| {
            attribute.map(|attribute| DefaultNla::new(attribute.kind(), attribute.value().to_vec()))
        });
        attributes.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_are_found_among_other_attributes() {
        let device = |value: &[u8]| {
            Device(vec![word(Device::IFINDEX, 7), DefaultNla::new(Device::XDP_FEATURES, value.to_vec())])
        };
        let transmits =
            |value: u64| device(&value.to_ne_bytes()).xdp_features().map(|features| features.transmits());
        // veth whose peer polls, and one whose peer does not.
        assert_eq!(transmits(0x67), Some(true));
        assert_eq!(transmits(0x23), Some(false));
        assert_eq!(device(&[1, 2]).xdp_features(), None);
    }
}
