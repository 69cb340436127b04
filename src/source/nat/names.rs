//! The kernel's lists of the tables of the older iptables that are in use.
//!
//! Source of the format: `/proc/net/ip_tables_names`, one name a line. Looking at it loads nothing.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;

/// Bytes that are read; there are five tables at most.
const NAMES_BYTES_MAX: usize = 512;

/// One such list. It stays open: reading it again then costs a fiftieth.
pub struct Names {
    path: &'static str,
    file: Option<File>,
}

impl Names {
    /// The list at that path, once it is there.
    pub fn new(path: &'static str) -> Names {
        Names { path, file: None }
    }

    /// Where it is.
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// Whether table `nat` is in use. No list is an empty one: its module is not loaded.
    pub fn have_nat(&mut self) -> io::Result<bool> {
        let mut buffer = [0; NAMES_BYTES_MAX];
        // A list that was open while its module went away cannot be read any more.
        if let Some(length) = self.file.as_ref().and_then(|file| file.read_at(&mut buffer, 0).ok()) {
            return Ok(names_nat(buffer.get(..length).unwrap_or_default()));
        }
        self.file = None;
        let file = match File::open(self.path) {
            Ok(file) => self.file.insert(file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let length = file.read_at(&mut buffer, 0)?;
        Ok(names_nat(buffer.get(..length).unwrap_or_default()))
    }
}

/// Whether table `nat` is in that list.
pub fn names_nat(names: &[u8]) -> bool {
    names.split(|byte| *byte == b'\n').any(|name| name == b"nat")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_count() {
        for (names, expect) in
            [("", false), ("nat\n", true), ("filter\nnat\nmangle\n", true), ("natural\nxnat\n", false)]
        {
            assert_eq!(names_nat(names.as_bytes()), expect, "{names:?}");
        }
        assert!(!Names::new("/proc/no/such/list").have_nat().unwrap());
    }
}
