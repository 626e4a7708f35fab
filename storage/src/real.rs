//! Files of the operating system. Direct writes use a second descriptor with O_DIRECT (R31), opened when it is needed, where
//! the file system accepts it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::descriptors::{Descriptors, Slots};
use crate::{Directory, DiskFile, FileSystemSpace, durable};

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDirectory {
    path: PathBuf,
    descriptors: Arc<Descriptors>,
    /// Open from the start where it can be, so that syncing names needs no descriptor when there is none left.
    handle: OnceLock<File>,
}

impl RealDirectory {
    /// The directory at `path`, which exists. Its files stay open as long as their handles live.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self::with_descriptors(path, Descriptors::new(usize::MAX))
    }

    /// The directory at `path`, which exists, whose files share bounded descriptors. A file that has been given another name
    /// while its handle lives cannot be opened again through it.
    #[must_use]
    pub fn with_descriptors(path: &Path, descriptors: Arc<Descriptors>) -> Self {
        let handle = File::open(path).map(OnceLock::from).unwrap_or_default();
        Self { path: path.to_owned(), descriptors, handle }
    }

    fn file(&self, name: &str, options: &OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let (path, slots) = (self.path.join(name), Arc::<Slots>::default());
        let first = self.descriptors.get(&slots, &slots.buffered, || options.open(&path))?;
        let metadata = first.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        let descriptors = self.descriptors.clone();
        Ok(Arc::new(RealFile { path, identity, slots, descriptors, use_direct: AtomicBool::new(true) }))
    }
}

impl Directory for RealDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(name, OpenOptions::new().read(true).write(true).create_new(true))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(name, OpenOptions::new().read(true).write(true))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        if self.handle.get().is_none() {
            // Another thread may have been first.
            let _ = self.handle.set(File::open(&self.path)?);
        }
        self.handle.get().ok_or(io::ErrorKind::NotFound)?.sync_all()
    }

    fn make_directory(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        // mkdir of what is there may say EROFS or EACCES instead of EEXIST.
        if path.is_dir() { Err(io::ErrorKind::AlreadyExists.into()) } else { std::fs::create_dir(path) }
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        let path = self.path.join(name);
        if !std::fs::metadata(&path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Arc::new(Self::with_descriptors(&path, self.descriptors.clone())))
    }

    fn space(&self) -> io::Result<FileSystemSpace> {
        let path = CString::new(self.path.as_os_str().as_bytes())?;
        // SAFETY: a statvfs of zeros is a valid value of this plain C struct.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: `path` is a C string and `stat` a statvfs, both alive during the call.
        if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(FileSystemSpace {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            file_system: std::fs::metadata(&self.path)?.dev(),
        })
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = std::fs::metadata(&self.path)?;
        Ok((metadata.dev(), metadata.ino()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    /// As the trait says, and readable by its owner only.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        durable::replace_file(&self.path.join(name), bytes)
    }
}

struct RealFile {
    path: PathBuf,
    /// Device and inode at the first opening: a path that leads elsewhere later must not be taken for this file.
    identity: (u64, u64),
    slots: Arc<Slots>,
    descriptors: Arc<Descriptors>,
    /// Cleared when the file system refuses O_DIRECT.
    use_direct: AtomicBool,
}

impl RealFile {
    fn reopen(&self, flags: i32) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path)?;
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) == self.identity {
            Ok(file)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESTALE))
        }
    }

    fn buffered(&self) -> io::Result<Arc<File>> {
        self.descriptors.get(&self.slots, &self.slots.buffered, || self.reopen(0))
    }

    /// The descriptor for direct writes; none where they are not possible.
    fn direct(&self) -> io::Result<Option<Arc<File>>> {
        if !self.use_direct.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let direct = self.descriptors.get(&self.slots, &self.slots.direct, || self.reopen(libc::O_DIRECT));
        match direct {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.use_direct.store(false, Ordering::Relaxed);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// The buffered descriptor, held open until the next sync has succeeded.
    fn to_change(&self) -> io::Result<Arc<File>> {
        let file = self.buffered()?;
        self.slots.begin_write();
        Ok(file)
    }
}

impl Drop for RealFile {
    fn drop(&mut self) {
        self.descriptors.forget(&self.slots);
    }
}

impl DiskFile for RealFile {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.buffered()?.metadata()?.len())
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.to_change()?.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let file = self.to_change()?;
        allocate(&file, 0, 0, bytes)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let file = self.buffered()?;
        let mut done = 0;
        while done < into.len() {
            match file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.to_change()?.write_all_at(bytes, offset)
    }

    fn write_direct(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let direct = self.direct()?;
        // The sync goes through the buffered descriptor, which must be open from before the write on.
        let buffered = self.to_change()?;
        if let Some(direct) = direct {
            match direct.write_all_at(bytes, offset) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.use_direct.store(false, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        buffered.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mark = self.slots.begin_sync();
        self.buffered()?.sync_data()?;
        self.slots.end_sync(mark);
        Ok(())
    }

    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()> {
        let file = self.to_change()?;
        allocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, length_bytes)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let from = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let file = self.buffered()?;
        // SAFETY: the descriptor is open for as long as `file`; lseek touches no memory of ours.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_DATA) };
        if let Ok(found) = u64::try_from(found) {
            return Ok(Some(found));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENXIO) => Ok(None),
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Ok(Some(offset)),
            _ => Err(error),
        }
    }
}

/// Calls fallocate in a mode after which the range reads as zeros.
fn allocate(file: &File, mode: i32, offset: u64, length_bytes: u64) -> io::Result<()> {
    let signed = |n: u64| i64::try_from(n).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
    // SAFETY: the descriptor is open for as long as `file`; fallocate touches no memory of ours.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, signed(offset)?, signed(length_bytes)?) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) { zero(file, offset, length_bytes) } else { Err(error) }
}

/// Writes zeros where there are no holes: they say the same to a reader, only the space stays.
fn zero(file: &File, offset: u64, length_bytes: u64) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < length_bytes {
        let step = usize::try_from(length_bytes - done).unwrap_or(ZEROS.len()).min(ZEROS.len());
        file.write_all_at(&ZEROS[..step], offset + done)?;
        done += step as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|number| format!("file-{number}"))
    }

    #[test]
    fn many_files_share_few_descriptors_and_unsynced_ones_are_never_closed() {
        let temporary = tempfile::tempdir().unwrap();
        let descriptors = Descriptors::new(10);
        let directory = RealDirectory::with_descriptors(temporary.path(), descriptors.clone());
        let files: Vec<_> = names(200).map(|name| directory.create(&name).unwrap()).collect();
        assert!(descriptors.open_count() <= 10);
        for (file, number) in files.iter().zip(0u8..) {
            file.write_at(0, &[number; 100]).unwrap();
            file.sync_data().unwrap();
        }
        assert!(descriptors.open_count() <= 10, "{} are open", descriptors.open_count());
        files[..30].iter().for_each(|file| file.write_at(0, b"unsynced").unwrap());
        let mut bytes = [0; 100];
        for (file, number) in files.iter().zip(0u8..).skip(30) {
            assert_eq!(file.read_at(0, &mut bytes).unwrap(), 100);
            assert_eq!(bytes, [number; 100]);
        }
        assert!((30..=40).contains(&descriptors.open_count()), "{} are open", descriptors.open_count());
        files[..30].iter().for_each(|file| file.sync_data().unwrap());
        files[30..].iter().for_each(|file| file.read_exact_at(0, &mut bytes).unwrap());
        assert!(descriptors.open_count() <= 10, "{} are open", descriptors.open_count());
        drop(files);
        assert_eq!(descriptors.open_count(), 0);
    }

    #[test]
    fn a_closed_file_whose_name_leads_elsewhere_is_not_taken_for_itself() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = RealDirectory::with_descriptors(temporary.path(), Descriptors::new(1));
        let file = directory.create("a").unwrap();
        directory.create("b").unwrap();
        std::fs::rename(temporary.path().join("b"), temporary.path().join("a")).unwrap();
        let error = file.length_bytes().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    }

    #[test]
    fn direct_writes_holes_and_replacements_read_back() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = RealDirectory::new(temporary.path());
        let file = directory.create("a").unwrap();
        let memory = vec![7; 4096 * 3];
        let start = memory.as_ptr().align_offset(4096);
        file.write_direct(4096, &memory[start..start + 4096]).unwrap();
        assert_eq!(file.length_bytes().unwrap(), 8192);
        assert!(file.next_data(0).unwrap().is_some());
        file.punch(4096, 4096).unwrap();
        let mut bytes = [1; 4096];
        file.read_exact_at(4096, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4096]);
        assert_eq!(file.read_exact_at(8000, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let file = directory.create("room").unwrap();
        file.allocate(10_000).unwrap();
        assert_eq!(file.length_bytes().unwrap(), 10_000);
        assert!(std::fs::metadata(directory.path("room")).unwrap().blocks() * 512 >= 10_000);
        directory.replace("small", b"one").unwrap();
        directory.replace("small", b"two").unwrap();
        assert_eq!(directory.read("small").unwrap(), b"two");
        assert_eq!(directory.create("a").err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(directory.create_empty("a").unwrap().length_bytes().unwrap(), 0);
    }
}
