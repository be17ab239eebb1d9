//! The end of a cable in the hands of the test: it sees every frame that arrives, and sends any frame.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::namespace::Namespace;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, sendmsg, socket,
};

/// More than the largest frame that can arrive with offloads off.
const LARGEST: usize = 65_536;

/// A packet socket (packet(7)) that is bound to one interface.
pub(crate) struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub(crate) fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        let _inside = namespace.enter()?;
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .context("cannot open a packet socket")?;
        let link = getifaddrs()
            .context("cannot list the interfaces")?
            .filter(|interface| interface.interface_name == device)
            .filter_map(|interface| interface.address)
            .find(|address| address.family() == Some(AddressFamily::Packet))
            .with_context(|| format!("there is no interface {device} in {}", namespace.name()))?;
        // The address names no protocol, so that the socket keeps its own.
        bind(socket.as_raw_fd(), &link)
            .with_context(|| format!("cannot bind a packet socket to {device}"))?;
        Ok(Self { socket })
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let sent =
            sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(frame)], &[], MsgFlags::empty(), None)
                .with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "sent {sent} of the {} bytes of a frame", frame.len());
        Ok(())
    }

    /// The next frame that has arrived, if any.
    pub(crate) fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; LARGEST];
        match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("cannot receive from a packet socket"),
        }
    }

    /// The next frame that arrives before the deadline.
    pub(crate) fn receive_until(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(frame) = self.receive()? {
                return Ok(Some(frame));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = PollTimeout::try_from(left.max(Duration::from_millis(1)))?;
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for a packet socket"),
            }
        }
    }
}
