//! Loaded programs that tests leave to those after them, with empty maps: the verifier needs most of a second for each program.

use std::{
    io,
    num::NonZeroUsize,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd},
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
    util::nr_cpus,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A program with maps of its own, for one test at a time.
pub(crate) struct Loaded {
    /// Until it is given back.
    object: Option<Ebpf>,
    /// How many maps it came with.
    maps: usize,
}

impl Loaded {
    /// One that nobody uses, or what `load` makes.
    pub(crate) fn any(load: impl FnOnce() -> Ebpf) -> Self {
        let idle = idle().pop();
        let object = idle.unwrap_or_else(load);
        Self {
            maps: object.maps().count(),
            object: Some(object),
        }
    }

    /// One that nobody gets afterwards.
    pub(crate) fn only(object: Ebpf) -> Self {
        Self {
            object: Some(object),
            maps: 0,
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let object = self.object.take();
        // Some maps are taken out of an object for good by what writes them.
        let whole = object.filter(|it| it.maps().count() == self.maps);
        if let (Some(mut object), false) = (whole, thread::panicking()) {
            empty_all(&mut object).expect("maps can be emptied");
            idle().push(object);
        }
    }
}

impl Deref for Loaded {
    type Target = Ebpf;

    fn deref(&self) -> &Ebpf {
        self.object.as_ref().expect("not given back")
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Ebpf {
        self.object.as_mut().expect("not given back")
    }
}

static IDLE: Mutex<Vec<Ebpf>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Ebpf>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn empty_all(object: &mut Ebpf) -> io::Result<()> {
    // Those of the compiler hold constants.
    let ours = object.maps_mut().filter(|(name, _)| !name.starts_with('.'));
    for (_, map) in ours {
        empty(map)?;
    }
    Ok(())
}

fn empty(map: &mut Map) -> io::Result<()> {
    match map {
        Map::Array(array) => zero_memory(array).or_else(|_not_mappable| zero_values(array, 1)),
        Map::PerCpuArray(array) => zero_values(array, nr_cpus().map_err(|(_, error)| error)?),
        Map::RingBuf(_) => {
            let mut ring = RingBuf::try_from(map).map_err(io::Error::other)?;
            while ring.next().is_some() {}
            Ok(())
        }
        other => panic!("no such map was thought of: {other:?}"),
    }
}

fn value_bytes(array: &MapData) -> io::Result<(u32, usize)> {
    let info = array.info().map_err(io::Error::other)?;
    let bytes = info.value_size() as usize;
    Ok((info.max_entries(), bytes.next_multiple_of(8)))
}

/// By way of our own memory, if the kernel shares it.
fn zero_memory(array: &MapData) -> io::Result<()> {
    let (entries, value) = value_bytes(array)?;
    let length = NonZeroUsize::new(entries as usize * value).expect("no array is empty");
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
    let memory = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
            array.fd().as_fd(),
            0,
        )
    }?;
    // SAFETY: all of it is mapped, and nobody reads it: no test has the program.
    unsafe { ptr::write_bytes(memory.as_ptr().cast::<u8>(), 0, length.get()) };
    // SAFETY: it was mapped above, and nothing refers to it.
    unsafe { munmap(memory, length.get()) }?;
    Ok(())
}

/// By a call for all values.
fn zero_values(array: &MapData, copies: usize) -> io::Result<()> {
    /// Of `union bpf_attr`, for commands on many values (kernel 5.6).
    #[repr(C)]
    struct Batch {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: u32,
        flags: [u64; 2],
    }
    const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
    let (entries, value) = value_bytes(array)?;
    let keys: Vec<u32> = (0..entries).collect();
    let values = vec![0_u8; entries as usize * value * copies];
    let batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: entries,
        map: array.fd().as_fd().as_raw_fd().cast_unsigned(),
        flags: [0; 2],
    };
    // SAFETY: the pointers are to as many keys and values as are told, for as long as the call takes.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_BATCH,
            &raw const batch,
            size_of::<Batch>(),
        )
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
