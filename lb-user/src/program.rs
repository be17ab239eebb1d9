//! The XDP program: loading it, and attaching it to interfaces.

use std::{fs, path::Path};

use anyhow::{Context as _, anyhow, bail};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    programs::{
        ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp,
        links::FdLink,
        loaded_programs,
        xdp::{XdpLink, XdpMode},
    },
};

use lb_common::{
    Meta,
    control::{GENERIC, NATIVE},
    table::slots_for,
};

use crate::{
    maps::{Maps, name},
    netlink::Link,
    pins,
};

/// The balancer, compiled for BPF.
pub static LB: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"));

/// A program that passes everything, compiled for BPF: veth wants some program on the peer of an interface that sends
/// by XDP.
pub static PASS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pass"));

/// A generator, a bare forwarder and a sink, compiled for BPF: what benchmarks measure with.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));

/// The constant in the object that says how.
const SEND_BACK_BY_REDIRECT: &str = "SEND_BACK_BY_REDIRECT";

/// The constants that places in the flow tables depend on ([`lb_common::table::Geometry`]).
const FLOW_MASK: &str = "FLOW_MASK";
const FLOW_SECRET: &str = "FLOW_SECRET";

/// How frames leave through the interface that they came in through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendBack {
    /// `XDP_TX`, which costs least.
    ByTx,
    /// `XDP_REDIRECT`. What one end of a veth sends by `XDP_TX` is lost where the other end has no XDP program; what is
    /// redirected to it arrives if that only polls (GRO).
    ByRedirect,
}

/// How the program hangs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In the driver.
    Native,
    /// In the network stack, where every driver can.
    Generic,
}

impl Mode {
    /// As the map of interfaces has it.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Native => NATIVE,
            Self::Generic => GENERIC,
        }
    }

    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            NATIVE => Some(Self::Native),
            GENERIC => Some(Self::Generic),
            _ => None,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Which modes the user allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ModeChoice {
    /// Native where the driver can, else generic with a warning
    Auto,
    /// In the driver
    Native,
    /// In the network stack: slower, works with every driver
    Generic,
}

/// The programs, loaded; their maps are pinned in a directory.
pub(crate) struct Program {
    ebpf: Ebpf,
    /// One that passes everything.
    pass: Ebpf,
}

impl Program {
    /// Loads the program over the maps pinned in `dir`, or makes them. `log_level` and `send_back` are constants to the kernel,
    /// which leaves out of the program what they rule out.
    pub(crate) fn load(
        dir: &Path,
        meta: &Meta,
        log_level: log::LevelFilter,
        send_back: SendBack,
    ) -> anyhow::Result<Self> {
        let level = log_level as u8;
        let slots = slots_for(meta.flow_entries);
        let mask = slots - 1;
        let by_redirect = u8::from(send_back == SendBack::ByRedirect);
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(dir)
            .map_max_entries(name::FLOWS_V4, slots)
            .map_max_entries(name::FLOWS_V6, slots)
            .override_global(FLOW_MASK, &mask, true)
            .override_global(FLOW_SECRET, &meta.secret, true)
            .override_global(aya_log::LEVEL, &level, false)
            .override_global(SEND_BACK_BY_REDIRECT, &by_redirect, true)
            .load(LB)
            .map_err(|error| explain_load(error, meta.flow_entries / 2))?;
        for program in lb_common::Program::ALL {
            load_undisturbed(xdp(&mut ebpf, program.name())?).map_err(explain_verifier)?;
        }
        let mut pass = Ebpf::load(PASS).context("cannot load the program that passes everything")?;
        load_undisturbed(xdp(&mut pass, "pass")?).map_err(explain_verifier)?;
        Ok(Self { ebpf, pass })
    }

    /// Has the program that is attached hand over to those that were loaded with this one.
    pub(crate) fn join(&mut self, maps: &mut Maps) -> anyhow::Result<()> {
        for program in lb_common::Program::ALL {
            maps.set_program(program, xdp(&mut self.ebpf, program.name())?.fd()?)?;
        }
        Ok(())
    }

    /// Has a frame come in once more through an interface that the program is attached to in that mode.
    ///
    /// # Errors
    ///
    /// The kernel's: among others, the frame is longer than a page has room for.
    pub(crate) fn play_in(&self, frame: &[u8], interface: u32, mode: Mode) -> anyhow::Result<()> {
        // In generic mode what passes here meets the program in the network stack, as everything does.
        let (ebpf, name) = match mode {
            Mode::Native => (&self.ebpf, lb_common::Program::Plain.name()),
            Mode::Generic => (&self.pass, "pass"),
        };
        let program: &Xdp = ebpf.program(name).context("the object lacks a program")?.try_into()?;
        let context = xdp_md(u32::try_from(frame.len())?, interface);
        program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                attrs: TestRunAttrs::new().xdp_live_frames(1),
                ..TestRunOptions::new()
            })
            .map(drop)
            .context("the kernel does not take a fragment that was kept back")
    }

    /// Attaches the program to an interface. It is detached when the link is dropped.
    pub(crate) fn attach(&mut self, link: &Link, choice: ModeChoice) -> anyhow::Result<(FdLink, Mode)> {
        match choice {
            ModeChoice::Native => self.attach_in(link, Mode::Native),
            ModeChoice::Generic => self.attach_in(link, Mode::Generic),
            ModeChoice::Auto => self.attach_in(link, Mode::Native).or_else(|error| {
                let attached = self.attach_in(link, Mode::Generic)?;
                log::warn!("{error:#}; using generic mode, which is slower");
                Ok(attached)
            }),
        }
    }

    fn attach_in(&mut self, link: &Link, mode: Mode) -> anyhow::Result<(FdLink, Mode)> {
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let program = program(&mut self.ebpf)?;
        let id = program
            .attach_to_if_index(link.index, flags)
            .map_err(|error| explain_attach(error, link, mode))?;
        let attached = program.take_link(id)?;
        // aya falls back to attaching without a link, and that would outlive a killed process.
        let fd = FdLink::try_from(attached)
            .map_err(|_| anyhow!("the kernel gives no link for XDP on {}: it is too old", link.name))?;
        Ok((fd, mode))
    }

    /// Puts the program into the place of the one that a link holds, in one step: each packet meets one of the two.
    pub(crate) fn replace(&mut self, link: FdLink, interface: &Link) -> anyhow::Result<FdLink> {
        let what = || format!("cannot replace the XDP program on {}", interface.name);
        let program = program(&mut self.ebpf)?;
        let id = program.attach_to_link(XdpLink::try_from(link).with_context(what)?).with_context(what)?;
        FdLink::try_from(program.take_link(id)?).with_context(what)
    }

    /// Pins the program in `dir`, in the place of the one that is pinned there.
    pub(crate) fn pin(&mut self, dir: &Path) -> anyhow::Result<()> {
        let (pin, next) = (dir.join(pins::PROGRAM), dir.join(pins::NEXT_PROGRAM));
        let what = || format!("cannot pin the program at {}", pin.display());
        if next.exists() {
            fs::remove_file(&next).with_context(what)?;
        }
        program(&mut self.ebpf)?.pin(&next).with_context(what)?;
        fs::rename(&next, &pin).with_context(what)
    }

    /// What aya-log needs to find the program's messages.
    pub(crate) const fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Loads a program, again if a signal came meanwhile: the verifier stops for any (EAGAIN, do_check in
/// kernel/bpf/verifier.c), also for those that nobody is told of.
///
/// # Errors
///
/// The kernel's.
pub fn load_undisturbed(program: &mut Xdp) -> Result<(), ProgramError> {
    const ATTEMPTS: u32 = 100;
    for _ in 1..ATTEMPTS {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    program.load()
}

fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    xdp(ebpf, lb_common::Program::Plain.name())
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object holds no program '{name}'"))?;
    Ok(program.try_into()?)
}

/// `struct xdp_md` of linux/bpf.h for a frame of that length: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
/// egress_ifindex.
fn xdp_md(length: u32, interface: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (to, word) in bytes.chunks_exact_mut(4).zip([0, length, 0, interface, 0, 0]) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn explain_load(error: EbpfError, connections: u32) -> anyhow::Error {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            let hint = match io_error.raw_os_error() {
                Some(libc::ENOMEM | libc::E2BIG) => {
                    format!("; tables for {connections} connections do not fit, try a smaller --max-flows")
                }
                _ => String::new(),
            };
            anyhow!("the kernel does not make the map {name}: {io_error}{hint}")
        }
        error => anyhow::Error::new(error).context("cannot load the XDP program"),
    }
}

fn explain_verifier(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            log::debug!("the verifier says:\n{verifier_log}");
            anyhow!(
                "the kernel does not take the XDP program: {io_error}; `--log-level debug` shows its reasons"
            )
        }
        error => anyhow::Error::new(error).context("cannot load the XDP program"),
    }
}

fn explain_attach(error: ProgramError, link: &Link, mode: Mode) -> anyhow::Error {
    let errno = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(aya::programs::xdp::XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    let hint = errno.and_then(|errno| attach_hint(errno, link, mode));
    let what = format!("cannot attach to {} in {} mode", link.name, mode.name());
    let what = hint.map_or(what.clone(), |hint| format!("{what}: {hint}"));
    anyhow::Error::new(error).context(what)
}

/// What the drivers mean by their errors. Their own words go to a trace point only.
fn attach_hint(errno: i32, link: &Link, mode: Mode) -> Option<String> {
    /// A page less what the kernel keeps before and behind a frame, roughly: drivers differ.
    const LARGEST: u32 = 3_498;
    let Link { name, mtu, .. } = link;
    match (errno, mode) {
        (libc::EOPNOTSUPP, Mode::Native) => {
            Some(format!("the driver of {name} has no XDP, use --mode generic"))
        }
        (libc::EBUSY | libc::EEXIST, _) => Some("another XDP program is attached there".to_owned()),
        (libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP, _) if *mtu > LARGEST => {
            Some(format!("its MTU {mtu} is too large for XDP, try `ip link set {name} mtu 1500`"))
        }
        (libc::ERANGE, _) => Some("its MTU or that of its peer is too large for XDP, try 1500".to_owned()),
        (libc::ENOSPC, _) => Some(format!("it has too few queues for XDP, see `ethtool -l {name}`")),
        (libc::EINVAL, Mode::Native) => Some(format!(
            "its driver refuses, often because of large receive offload: try `ethtool -K {name} lro off`"
        )),
        _ => None,
    }
}

/// Refuses an interface that somebody else's XDP program is attached to.
///
/// # Errors
///
/// There is one; it is named.
pub(crate) fn check_free(link: &Link) -> anyhow::Result<()> {
    let Some(id) = link.xdp else { return Ok(()) };
    let name = name_of(id).filter(|name| !name.is_empty());
    let name = name.map_or_else(String::new, |name| format!(" '{name}'"));
    let remedy = format!(
        "detach it with its own tool first, if it is not needed (another lb: `lb detach --pin-dir DIR`; one of ip: \
         `ip link set dev {} xdp off`)",
        link.name
    );
    bail!("another XDP program{name} (id {id}) is attached to {}: {remedy}", link.name)
}

/// Whether the program on an interface may be one of an lb that is gone: the kernel takes it away a moment after the process.
pub(crate) fn may_be_going(link: &Link) -> bool {
    link.xdp.and_then(name_of).is_some_and(|name| name == lb_common::Program::Plain.name())
}

fn name_of(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    info.name_as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(mtu: u32) -> Link {
        Link {
            index: 3,
            name: "eth0".to_owned(),
            mac: None,
            up: true,
            mtu,
            xdp: None,
            peer: None,
            vlan: None,
        }
    }

    #[test]
    fn what_a_driver_refuses_is_explained() {
        for (errno, mtu, mode, says) in [
            (libc::EOPNOTSUPP, 1500, Mode::Native, Some("use --mode generic")),
            (libc::EINVAL, 9000, Mode::Native, Some("MTU 9000 is too large")),
            (libc::ERANGE, 1500, Mode::Native, Some("its peer is too large")),
            (libc::EINVAL, 1500, Mode::Native, Some("lro off")),
            (libc::ENOSPC, 1500, Mode::Native, Some("ethtool -l eth0")),
            (libc::EBUSY, 1500, Mode::Generic, Some("another XDP program")),
            (libc::EPERM, 1500, Mode::Native, None),
        ] {
            let hint = attach_hint(errno, &link(mtu), mode);
            match says {
                Some(says) => {
                    assert!(hint.as_ref().is_some_and(|hint| hint.contains(says)), "{errno}: {hint:?}")
                }
                None => assert_eq!(hint, None),
            }
        }
    }

    #[test]
    fn modes_survive_the_map() {
        for mode in [Mode::Native, Mode::Generic] {
            assert_eq!(Mode::from_number(mode.number()), Some(mode));
        }
    }

    #[test]
    fn the_programs_are_embedded() {
        for object in [LB, PASS, BENCH] {
            assert_eq!(object.get(..4), Some(&b"\x7fELF"[..]));
        }
    }
}
