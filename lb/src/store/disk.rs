//! The store's file in the state directory.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use redb::StorageBackend;

use super::Medium;

/// The state directory, which one daemon at a time uses.
#[derive(Clone, Debug)]
pub struct Directory {
    file: PathBuf,
}

impl Directory {
    pub fn new(directory: &Path) -> Self {
        Self {
            file: directory.join(FILE),
        }
    }

    fn unpublished(&self) -> PathBuf {
        self.file.with_added_extension("new")
    }

    fn unused_name(&self) -> PathBuf {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        (seconds..)
            .map(|seconds| {
                self.file
                    .with_extension(format!("redb.unreadable-{seconds}"))
            })
            .find(|name| !name.exists())
            .unwrap_or_else(|| self.file.with_extension("redb.unreadable"))
    }

    /// Names are on the disk too before anything counts.
    fn sync_names(&self) -> io::Result<()> {
        match self.file.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Medium for Directory {
    type Backend = Allocated;

    fn path(&self) -> &Path {
        &self.file
    }

    fn exists(&self) -> io::Result<bool> {
        fs::exists(&self.file)
    }

    fn open(&self) -> io::Result<Allocated> {
        let file = File::options().read(true).write(true).open(&self.file)?;
        // If it was published, that may be all that failed.
        self.sync_names()?;
        Ok(Allocated(file))
    }

    fn create(&self) -> io::Result<Allocated> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.unpublished())?;
        Ok(Allocated(file))
    }

    fn publish(&self) -> io::Result<()> {
        fs::rename(self.unpublished(), &self.file)?;
        self.sync_names()
    }

    fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = self.unused_name();
        fs::rename(&self.file, &aside)?;
        self.sync_names()?;
        Ok(aside)
    }

    fn copy_aside(&self) -> io::Result<PathBuf> {
        let aside = self.unused_name();
        let copied = || {
            fs::copy(&self.file, &aside)?;
            File::open(&aside)?.sync_all()?;
            self.sync_names()
        };
        if let Err(error) = copied() {
            // Each try would leave a part.
            _ = fs::remove_file(&aside);
            return Err(error);
        }
        Ok(aside)
    }
}

/// A file that is written to its end before it is used: a full disk refuses to let it grow, and never a write inside.
///
/// Blocks that were only reserved would do for that; but the first write to each of them changes the file system's own
/// books, and then an fsync waits for its journal, that is, for whatever others write.
#[derive(Debug)]
pub struct Allocated(File);

impl StorageBackend for Allocated {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.len()?;
        if len <= now {
            return self.0.set_len(len);
        }
        let zeros = vec![0; GROWTH_BYTES];
        let mut at = now;
        while at < len {
            let bytes =
                usize::try_from(len - at).map_or(GROWTH_BYTES, |left| left.min(GROWTH_BYTES));
            if let Err(error) = self.0.write_all_at(&zeros[..bytes], at) {
                // What it has so far is of no use; if even that cannot be undone, it does no harm.
                _ = self.0.set_len(now);
                return Err(error);
            }
            at += bytes as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

const FILE: &str = "state.redb";
const GROWTH_BYTES: usize = 1 << 20;
