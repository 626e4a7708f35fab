//! The kernel's list of mounts, `/proc/thread-self/mountinfo`: reading it never touches a mounted file system.
//!
//! The thread's own list, because a thread can be in another mount namespace than its process.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const MOUNT_LIST: &str = "/proc/thread-self/mountinfo";

/// A file system instance's device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    pub(super) id: u64,
    pub(super) parent: u64,
    pub(super) device: Device,
    pub(super) point: PathBuf,
    /// With the subtype: `fuse.holdfast`.
    pub(super) kind: String,
    pub(super) source: OsString,
}

/// All mounts this thread sees, a later one above an earlier one at the same place.
pub(super) fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read(MOUNT_LIST)?))
}

/// Lines that do not look like mounts are left out.
fn parse(list: &[u8]) -> Vec<MountEntry> {
    list.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`, the tags before the dash being none or several.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = Device { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = OsString::from_vec(unescape(fields.next()?));
    Some(MountEntry { id, parent, device, point, kind, source })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Space, tab, newline, backslash and others stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let escaped = behind.first_chunk::<3>().filter(|_| first == b'\\').and_then(|digits| octal(*digits));
        if let Some(byte) = escaped {
            plain.push(byte);
            rest = &behind[3..];
        } else {
            plain.push(first);
            rest = behind;
        }
    }
    plain
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    let value = digits.iter().try_fold(0_u32, |value, digit| {
        digit.checked_sub(b'0').filter(|digit| *digit < 8).map(|digit| value * 8 + u32::from(digit))
    })?;
    u8::try_from(value).ok()
}

/// The mount that a path lookup of `path` ends in: the last one there.
pub(super) fn topmost<'list>(list: &'list [MountEntry], path: &Path) -> Option<&'list MountEntry> {
    list.iter().rfind(|entry| entry.point == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:5 - ext3 /dev/root rw,errors=continue\n\
        40 27 0:52 / /mnt/demo rw,relatime - fuse.holdfast 127.0.0.1:7400/demo rw,user_id=0\n\
        41 40 0:53 / /mnt/demo rw,relatime - tmpfs none rw\n\
        nonsense\n\n";

    #[test]
    fn a_mount_list_is_read_as_proc_5_says() {
        let list = parse(LIST);
        assert_eq!(list.len(), 4);
        assert_eq!(
            list[1],
            MountEntry {
                id: 36,
                parent: 35,
                device: Device { major: 98, minor: 0 },
                point: "/mnt two".into(),
                kind: "ext3".into(),
                source: "/dev/root".into(),
            }
        );
        assert_eq!((list[2].kind.as_str(), list[2].source.to_str()), ("fuse.holdfast", Some("127.0.0.1:7400/demo")));
    }

    #[test]
    fn the_topmost_mount_is_the_last_one_at_a_path() {
        let list = parse(LIST);
        assert_eq!(topmost(&list, Path::new("/mnt/demo")).map(|entry| entry.id), Some(41));
        assert_eq!(topmost(&list, Path::new("/mnt")), None);
    }

    #[test]
    fn escapes_are_undone_and_what_only_looks_like_one_is_kept() {
        assert_eq!(unescape(b"a\\040b\\011\\134\\012"), b"a b\t\\\n");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\999\\777"), b"\\999\\777");
        assert_eq!(unescape("\\303\\251".as_bytes()), "é".as_bytes());
    }

    #[test]
    fn the_kernels_own_list_is_understood() {
        assert!(topmost(&read().unwrap(), Path::new("/proc")).is_some_and(|entry| entry.kind == "proc"));
    }
}
