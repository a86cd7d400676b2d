//! A disk in memory that loses power, tears writes and runs full when a test says so.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use redb::StorageBackend;

use super::Medium;

/// Shares its disk with the test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shaky(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    /// What is on it for sure.
    durable: Vec<u8>,
    /// What is written and not synced yet, in order.
    pending: Vec<Write>,
    /// What a reader sees.
    current: Vec<u8>,
    /// The power goes at the write or sync after so many.
    power: Option<usize>,
    /// No growth beyond this.
    room: Option<u64>,
    /// Every write fails.
    broken: bool,
    /// Nothing can be set aside.
    stuck: bool,
    /// Whether what is here was published.
    is_there: bool,
    asides: usize,
}

#[derive(Clone, Debug)]
enum Write {
    Bytes(u64, Vec<u8>),
    Len(u64),
}

/// What of a write that was not synced is there after the power came back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Luck {
    None,
    All,
    /// Sectors, each by a bit of these.
    Some(u64),
}

const SECTOR: usize = 512;

impl Shaky {
    /// The power goes after so many writes and syncs.
    pub(super) fn fail_after(&self, operations: usize) {
        self.0.lock().unwrap().power = Some(operations);
    }

    /// It answers nobody until what comes back is dropped.
    pub(crate) fn hang(&self) -> impl Sized {
        self.0.lock().unwrap()
    }

    pub(crate) fn break_down(&self, broken: bool) {
        self.0.lock().unwrap().broken = broken;
    }

    pub(super) fn get_stuck(&self, stuck: bool) {
        self.0.lock().unwrap().stuck = stuck;
    }

    /// No room but for so many bytes more.
    pub(super) fn fill_up(&self, left: Option<u64>) {
        let mut disk = self.0.lock().unwrap();
        let length = disk.current.len() as u64;
        disk.room = left.map(|left| length + left);
    }

    /// What is there when the power comes back.
    pub(super) fn power_on(&self, luck: Luck) {
        let mut disk = self.0.lock().unwrap();
        let mut state = std::mem::take(&mut disk.durable);
        let mut bits = match luck {
            Luck::None => 0,
            Luck::All => u64::MAX,
            Luck::Some(bits) => bits,
        };
        for write in std::mem::take(&mut disk.pending) {
            match write {
                Write::Bytes(at, bytes) => {
                    for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                        bits = bits.rotate_left(1);
                        if bits & 1 == 1 {
                            put(&mut state, at + (n * SECTOR) as u64, sector);
                        }
                    }
                }
                // Lengths are kept in the file system's journal, in order.
                Write::Len(len) => state.resize(usize::try_from(len).unwrap(), 0),
            }
        }
        disk.durable.clone_from(&state);
        disk.current = state;
        disk.power = None;
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().current.clone()
    }

    pub(super) fn with_bytes(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            durable: bytes.clone(),
            current: bytes,
            is_there: true,
            ..Disk::default()
        })))
    }

    pub(super) fn asides(&self) -> usize {
        self.0.lock().unwrap().asides
    }
}

impl Disk {
    fn operate(&mut self, write: Option<Write>) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("broken"));
        }
        match &mut self.power {
            Some(0) => return Err(io::Error::other("no power")),
            Some(left) => *left -= 1,
            None => {}
        }
        if self.power == Some(0) {
            // The operation during which it went may be half done.
            self.pending.extend(write);
            return Err(io::Error::other("the power went"));
        }
        if let Some(write) = write {
            match &write {
                Write::Bytes(at, bytes) => put(&mut self.current, *at, bytes),
                Write::Len(len) => self.current.resize(usize::try_from(*len).unwrap(), 0),
            }
            self.pending.push(write);
        } else {
            self.pending.clear();
            self.durable.clone_from(&self.current);
        }
        Ok(())
    }
}

fn put(state: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap();
    if state.len() < at + bytes.len() {
        state.resize(at + bytes.len(), 0);
    }
    state[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Medium for Shaky {
    type Backend = Self;

    fn path(&self) -> &Path {
        Path::new("/shaky/state.redb")
    }

    fn exists(&self) -> io::Result<bool> {
        Ok(self.0.lock().unwrap().is_there)
    }

    fn open(&self) -> io::Result<Self> {
        Ok(self.clone())
    }

    fn create(&self) -> io::Result<Self> {
        let mut disk = self.0.lock().unwrap();
        disk.durable.clear();
        disk.current.clear();
        disk.pending.clear();
        Ok(self.clone())
    }

    fn publish(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.operate(None)?;
        disk.is_there = true;
        Ok(())
    }

    fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = self.copy_aside()?;
        self.0.lock().unwrap().is_there = false;
        Ok(aside)
    }

    fn copy_aside(&self) -> io::Result<PathBuf> {
        let mut disk = self.0.lock().unwrap();
        if disk.stuck {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.asides += 1;
        Ok("/shaky/aside".into())
    }
}

impl StorageBackend for Shaky {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let bytes = disk.current.get(at..at + out.len());
        let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let grows = len > disk.current.len() as u64;
        if grows && disk.room.is_some_and(|room| len > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.operate(Some(Write::Len(len)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.lock().unwrap().operate(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let write = Write::Bytes(offset, data.to_vec());
        self.0.lock().unwrap().operate(Some(write))
    }
}
