//! Loading and attaching what is measured with.

use anyhow::{Context as _, Result};
use aya::programs::Xdp;
use aya::programs::xdp::{XdpLinkId, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_tests::namespace::Namespace;
use nix::net::if_::if_nametoindex;

use crate::frame::Mac;

/// The object, with these constants and these sizes of maps.
pub(crate) fn load(constants: &[(&'static str, u32)], sizes: &[(&'static str, u32)]) -> Result<Ebpf> {
    // What only one forwarder needs is as small as can be where it is not told.
    const UNUSED: [(&str, u32); 2] = [("OFFERED", 1), ("SKETCH_FLOWS", 1)];
    let mut loader = EbpfLoader::new();
    for (name, value) in constants {
        loader.override_global(name, value, true);
    }
    for (name, entries) in UNUSED.iter().chain(sizes) {
        loader.map_max_entries(name, *entries);
    }
    loader.load(lb_user::program::BENCH).context("cannot load what benchmarks measure with")
}

pub(crate) fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

/// A program in the kernel.
pub(crate) fn xdp_loaded<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = xdp(ebpf, name)?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("the kernel does not take the program {name}"))?;
    }
    Ok(program)
}

/// Attaches a program, which is loaded if it has not been before.
pub(crate) fn attach(ebpf: &mut Ebpf, name: &str, namespace: &Namespace, device: &str) -> Result<XdpLinkId> {
    let program = xdp_loaded(ebpf, name)?;
    let _inside = namespace.enter()?;
    program.attach(device, XdpMode::Driver).with_context(|| format!("cannot attach {name}"))
}

pub(crate) fn index(namespace: &Namespace, device: &str) -> Result<u32> {
    let _inside = namespace.enter()?;
    Ok(if_nametoindex(device)?)
}

pub(crate) fn mac(namespace: &Namespace, device: &str) -> Result<Mac> {
    let text = namespace.ip(&format!("-o link show dev {device}"))?;
    let address = text.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap_or_default();
    let bytes: Vec<u8> =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    <[u8; 6]>::try_from(bytes).ok().map(Mac).with_context(|| format!("{device} has no MAC address"))
}

/// Bytes as the words that BPF moves.
pub(crate) fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}
