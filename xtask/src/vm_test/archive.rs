//! The archive that Linux unpacks into memory when it starts: cpio in the format newc (Documentation/driver-api/
//! early-userspace/buffer-format.rst in its sources). Not worth a program on the host, nor a crate.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Files, and the directories that they are in.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: usize,
    names: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a file, which all may execute. The first of a name stays.
    pub(super) fn add(&mut self, path: &str, content: &[u8]) {
        let path = Path::new(path.trim_start_matches('/'));
        for directory in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if directory != Path::new("") {
                self.entry(directory, DIRECTORY, &[]);
            }
        }
        self.entry(path, PROGRAM, content);
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        if self.names.insert(path.to_owned()) {
            self.record(&path.to_string_lossy(), mode, content);
        }
    }

    fn record(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let mode = usize::try_from(mode).unwrap_or_default();
        let mut header = String::from("070701");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for field in fields {
            let _infallible = write!(header, "{field:08x}");
        }
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Names and contents begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.record("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_once_and_before_what_is_in_it() {
        let mut archive = Archive::default();
        archive.add("/bin/ip", b"first");
        archive.add("/bin/lb", b"second");
        archive.add("/bin/lb", b"again");
        let bytes = archive.finish();
        let mut names = Vec::new();
        let mut rest = &bytes[..];
        // As the kernel reads it: by the lengths in the headers.
        while !rest.is_empty() {
            let field = |at: usize| {
                let text = std::str::from_utf8(&rest[at..at + 8]).expect("fields are text");
                usize::from_str_radix(text, 16).expect("fields are hexadecimal")
            };
            assert_eq!(&rest[..6], b"070701");
            let (size, name_size) = (field(6 + 6 * 8), field(6 + 11 * 8));
            let name = &rest[110..110 + name_size - 1];
            names.push(String::from_utf8_lossy(name).into_owned());
            rest = &rest[(110 + name_size).next_multiple_of(4) + size.next_multiple_of(4)..];
        }
        assert_eq!(names, ["bin", "bin/ip", "bin/lb", "TRAILER!!!"]);
    }
}
