//! What the store asks of a disk, and how a folder gives it: numbered segments of which one is open at its end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Files of personal data are their owner's alone.
const MODE: u32 = 0o600;

/// Segments on a disk. What a call returned `Ok` for is durable, except for [`append`](Disk::append), which
/// [`sync`](Disk::sync) makes so.
pub(crate) trait Disk: Send {
    /// The numbers of the segments, in order.
    fn segments(&self) -> io::Result<Vec<u64>>;
    /// A segment's bytes.
    fn read(&self, number: u64) -> io::Result<Vec<u8>>;
    /// Begins a segment and opens it.
    fn create(&mut self, number: u64, header: &[u8]) -> io::Result<()>;
    /// Opens a segment of the given length, what is behind that being cut off.
    fn resume(&mut self, number: u64, length: u64) -> io::Result<()>;
    /// Writes at the end of the open segment; where it fails, any part of it may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes durable what was appended. After an error nothing is known, and the segment must not be synced again.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the open segment, after an append that failed.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Replaces a segment that is not open, as a whole or not at all.
    fn replace(&mut self, number: u64, bytes: &[u8]) -> io::Result<()>;
    /// Removes a segment that is not open.
    fn remove(&mut self, number: u64) -> io::Result<()>;
}

/// A folder with files `00000001.seg`, and a lock that its one writer holds.
pub(crate) struct Directory {
    path: PathBuf,
    open: Option<File>,
    /// Freed by the system when the process ends, however it ends.
    _lock: File,
}

impl Directory {
    /// Opens or makes the folder, for writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where another process writes there.
    pub(crate) fn open(path: &Path) -> io::Result<Directory> {
        make(path)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(MODE).open(path.join("LOCK"))?;
        lock.try_lock()?;
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            // Left by a crash amid a replacement.
            if name.to_str().is_some_and(|name| name.ends_with(".seg.new")) {
                fs::remove_file(path.join(name))?;
            }
        }
        Ok(Directory { path: path.to_owned(), open: None, _lock: lock })
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn open_file(&mut self) -> io::Result<&mut File> {
        self.open.as_mut().ok_or_else(|| io::Error::other("no segment is open"))
    }
}

/// Makes a folder that only its owner can look into.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A segment's file.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:08}.seg")
}

/// The numbers of the segments in a folder, in order.
pub(crate) fn segments(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg")).map(str::parse::<u64>);
        numbers.extend(number.and_then(Result::ok));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Writes a file as a whole or not at all.
pub(crate) fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(MODE).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, folder.join(name))?;
        File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

impl Disk for Directory {
    fn segments(&self) -> io::Result<Vec<u64>> {
        segments(&self.path)
    }

    fn read(&self, number: u64) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(file_name(number)))
    }

    fn create(&mut self, number: u64, header: &[u8]) -> io::Result<()> {
        let path = self.path.join(file_name(number));
        let mut file = OpenOptions::new().create_new(true).append(true).mode(MODE).open(&path)?;
        let written = file.write_all(header).and_then(|()| file.sync_all()).and_then(|()| self.sync_folder());
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.open = Some(file);
        Ok(())
    }

    fn resume(&mut self, number: u64, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().append(true).open(self.path.join(file_name(number)))?;
        if file.metadata()?.len() != length {
            file.set_len(length)?;
            file.sync_all()?;
        }
        self.open = Some(file);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open_file()?.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.open_file()?.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.open_file()?.set_len(length)
    }

    fn replace(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        write_whole(&self.path, &file_name(number), bytes)
    }

    fn remove(&mut self, number: u64) -> io::Result<()> {
        fs::remove_file(self.path.join(file_name(number)))?;
        self.sync_folder()
    }
}
