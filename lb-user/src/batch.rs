//! Reading maps thousands of elements at a time: `BPF_MAP_LOOKUP_BATCH` of bpf(2), which aya does not have.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{IterableMap, MapData},
};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Elements asked for at once: some hundred kilobytes of flows.
const CHUNK: usize = 4_096;

/// The part of `union bpf_attr` that batch commands use.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The kernel's place in a map. A hash map's is a bucket's number, an array's the last key: four bytes. Some other
/// maps' is as large as a key; there is room for those too.
type Cursor = [u64; 8];

/// A walk over all elements of a map. What is in the map from the walk's beginning to its end is seen exactly once; what
/// comes or goes meanwhile may be seen or not.
pub(crate) struct Walk<K, V> {
    cursor: Option<Cursor>,
    keys: Vec<K>,
    values: Vec<V>,
    at_end: bool,
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// A walk from the beginning.
    pub(crate) const fn new() -> Self {
        Self { cursor: None, keys: Vec::new(), values: Vec::new(), at_end: false }
    }

    /// The next elements, in keys and values of equal number; `None` behind the last ones.
    pub(crate) fn next_chunk(&mut self, map: &impl IterableMap<K, V>) -> io::Result<Option<(&[K], &[V])>> {
        if self.at_end {
            return Ok(None);
        }
        let mut room = CHUNK;
        loop {
            match self.look_up(map.map(), room) {
                // A bucket with more elements than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => room *= 2,
                Err(error) => return Err(error),
                Ok(()) => return Ok(Some((&self.keys, &self.values))),
            }
        }
    }

    fn look_up(&mut self, map: &MapData, room: usize) -> io::Result<()> {
        check_layout::<K, V>(map)?;
        self.keys.clear();
        self.values.clear();
        self.keys.reserve(room);
        self.values.reserve(room);
        let mut next = Cursor::default();
        let mut attr = BatchAttr {
            in_batch: self.cursor.as_ref().map_or(0, |cursor| address(cursor)),
            out_batch: address(&raw mut next),
            keys: address(self.keys.as_mut_ptr()),
            values: address(self.values.as_mut_ptr()),
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: u32::try_from(map.fd().as_fd().as_raw_fd()).map_err(io::Error::other)?,
            ..BatchAttr::default()
        };
        // SAFETY: `attr` has the layout of the command; `keys` and `values` were just given room for `count` elements of
        // the sizes that `check_layout` compared with the map's; a cursor has room for what any map writes there.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of_val(&attr)) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // What precedes the end comes together with this error.
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
            self.at_end = true;
        }
        let count = usize::try_from(attr.count).unwrap_or(room).min(room);
        // SAFETY: the kernel wrote `count` elements, at most `room`, which the vectors have room for; both are `Pod`.
        unsafe {
            self.keys.set_len(count);
            self.values.set_len(count);
        }
        self.cursor = Some(next);
        Ok(())
    }
}

/// Everything in a map, in the kernel's order.
pub(crate) fn read_all<K: Pod, V: Pod>(map: &impl IterableMap<K, V>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let mut walk = Walk::new();
    while let Some((keys, values)) = walk.next_chunk(map)? {
        all.extend(keys.iter().copied().zip(values.iter().copied()));
    }
    Ok(all)
}

fn check_layout<K, V>(map: &MapData) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    let fits = usize::try_from(info.key_size()) == Ok(size_of::<K>())
        && usize::try_from(info.value_size()) == Ok(size_of::<V>())
        && size_of::<K>() <= size_of::<Cursor>();
    fits.then_some(()).ok_or_else(|| io::Error::other("the map has another layout"))
}

/// How bpf(2) takes pointers.
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attributes_have_the_layout_of_the_kernels_header() {
        // struct { __aligned_u64 x 4; __u32 x 2; __u64 x 2; } batch, include/uapi/linux/bpf.h
        assert_eq!(size_of::<BatchAttr>(), 56);
        assert_eq!(std::mem::offset_of!(BatchAttr, map_fd), 36);
        assert_eq!(std::mem::offset_of!(BatchAttr, flags), 48);
    }
}
