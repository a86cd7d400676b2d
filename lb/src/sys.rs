//! The one place with `unsafe` in the daemon: arrays of the kernel mapped into our memory, and what crates lack.

use std::{
    ffi::CString,
    fs,
    hash::Hasher,
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    maps::{MapData, MapType},
    util::nr_cpus,
};
use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use tokio::io::unix::AsyncFd;

/// Flag of a BPF array that can be mapped into memory.
pub const MMAPABLE: u32 = 1 << 10;

/// An array that the kernel's programs and we share, one 8-byte word after the other.
///
/// Every access is a relaxed atomic one of a whole word: no word is ever seen half written, and two words may be seen
/// in any order unless [`Mapped::store_u64`] writes the last of them.
#[derive(Debug)]
pub struct Mapped<T> {
    words: NonNull<AtomicU64>,
    len: u32,
    value: PhantomData<fn() -> T>,
}

// SAFETY: the memory stays mapped until drop, and is only used by atomic operations.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: AnyBitPattern + NoUninit + Zeroable> Mapped<T> {
    /// The kernel rounds the size of each value up to whole words.
    const WORDS: usize = size_of::<T>().div_ceil(8);

    /// Maps all of an array of `len` values that was made with [`MMAPABLE`].
    pub fn new(array: impl AsFd, len: u32) -> nix::Result<Self> {
        let bytes = NonZeroUsize::new(len as usize * Self::WORDS * 8).ok_or(nix::Error::EINVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let memory = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                array,
                0,
            )
        }?;
        Ok(Self {
            words: memory.cast(),
            len,
            value: PhantomData,
        })
    }

    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value at `index`.
    ///
    /// # Panics
    /// If `index` is not below the length.
    #[must_use]
    pub fn read(&self, index: u32) -> T {
        let mut value = T::zeroed();
        for (to, word) in bytemuck::bytes_of_mut(&mut value)
            .chunks_mut(8)
            .zip(self.entry(index))
        {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            to.copy_from_slice(&bytes[..to.len()]);
        }
        value
    }

    /// Writes the value at `index`, word by word.
    ///
    /// # Panics
    /// If `index` is not below the length.
    pub fn write(&self, index: u32, value: &T) {
        for (from, word) in bytemuck::bytes_of(value).chunks(8).zip(self.entry(index)) {
            let mut bytes = [0; 8];
            bytes[..from.len()].copy_from_slice(from);
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
    }

    /// Writes values from `first` on.
    ///
    /// # Panics
    /// If they don't fit.
    pub fn write_range(&self, first: u32, values: impl IntoIterator<Item = T>) {
        for (index, value) in (first..).zip(values) {
            self.write(index, &value);
        }
    }

    /// Writes one word of the value at `index` at once, after all that was written before.
    ///
    /// # Panics
    /// If there is no such word.
    pub fn store_u64(&self, index: u32, offset_bytes: usize, value: u64) {
        self.entry(index)[offset_bytes / 8].store(value, Ordering::Release);
    }

    /// A word of the value at `index`.
    ///
    /// # Panics
    /// If there is no such word.
    #[inline]
    #[must_use]
    pub fn load_u64(&self, index: u32, offset_bytes: usize) -> u64 {
        self.entry(index)[offset_bytes / 8].load(Ordering::Relaxed)
    }

    /// Half a word of the value at `index`.
    ///
    /// # Panics
    /// If there is no such word.
    #[inline]
    #[must_use]
    pub fn load_u32(&self, index: u32, offset_bytes: usize) -> u32 {
        let halves: [u32; 2] = bytemuck::cast(self.load_u64(index, offset_bytes));
        halves[offset_bytes % 8 / 4]
    }

    /// Writes half a word of the value at `index` at once, after all that was written before.
    ///
    /// # Panics
    /// If there is no such word.
    pub fn store_u32(&self, index: u32, offset_bytes: usize, value: u32) {
        let word = &self.entry(index)[offset_bytes / 8];
        let half = offset_bytes % 8;
        let replace = |old: u64| {
            let mut bytes = old.to_ne_bytes();
            bytes[half..half + 4].copy_from_slice(&value.to_ne_bytes());
            Some(u64::from_ne_bytes(bytes))
        };
        let _old = word.fetch_update(Ordering::Release, Ordering::Relaxed, replace);
    }

    /// Replaces a word of the value at `index` if it still is `old`.
    ///
    /// # Panics
    /// If there is no such word.
    pub fn replace_u64(&self, index: u32, offset_bytes: usize, old: u64, new: u64) -> bool {
        self.entry(index)[offset_bytes / 8]
            .compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// All values from the first on, word by word: the quickest way to see a large array.
    pub fn iter_u64(&self) -> impl Iterator<Item = u64> {
        self.words().iter().map(|word| word.load(Ordering::Relaxed))
    }

    /// Feeds the values in `range` to `hasher`, word by word.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn hash(&self, range: Range<u32>, hasher: &mut impl Hasher) {
        let words = range.start as usize * Self::WORDS..range.end as usize * Self::WORDS;
        for word in &self.words()[words] {
            hasher.write_u64(word.load(Ordering::Relaxed));
        }
    }

    #[inline]
    fn entry(&self, index: u32) -> &[AtomicU64] {
        let first = index as usize * Self::WORDS;
        &self.words()[first..first + Self::WORDS]
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: that many words are mapped for as long as `self` lives; mappings are aligned to pages.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len as usize * Self::WORDS) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<T>().div_ceil(8) * 8;
        // SAFETY: what `new` mapped; no reference outlives `self`.
        let _unmapped = unsafe { munmap(self.words.cast(), bytes) };
    }
}

/// Reads ranges of an array of the kernel: a system call for many values, where the usual way takes one for each.
#[derive(Debug)]
pub struct ArrayReader {
    map: OwnedFd,
    entries: u32,
    /// Words of one value; of an array for each CPU, those of all CPUs that there could be.
    value_words: usize,
}

impl ArrayReader {
    /// For an array, or an array for each CPU, whose values are whole words.
    pub fn new(map: &MapData) -> io::Result<Self> {
        let unfit = || io::Error::new(io::ErrorKind::InvalidInput, "not an array of whole words");
        let info = map.info().map_err(io::Error::other)?;
        let copies = match info.map_type() {
            Ok(MapType::Array) => 1,
            Ok(MapType::PerCpuArray) => nr_cpus().map_err(|(_, error)| error)?,
            _ => return Err(unfit()),
        };
        let bytes = info.value_size() as usize;
        if bytes == 0 || !bytes.is_multiple_of(8) {
            return Err(unfit());
        }
        Ok(Self {
            map: map.fd().as_fd().try_clone_to_owned()?,
            entries: info.max_entries(),
            value_words: bytes / 8 * copies,
        })
    }

    /// Number of values.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Words that [`ArrayReader::read`] returns for each value.
    #[must_use]
    pub fn value_words(&self) -> usize {
        self.value_words
    }

    /// The values from `first` on, one after the other. Each word is read at once, two words at different times.
    pub fn read(&self, first: u32, count: u32) -> io::Result<Vec<u64>> {
        const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
        if first
            .checked_add(count)
            .is_none_or(|end| end > self.entries)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut values = vec![0u64; self.value_words * count as usize];
        let mut keys = vec![0u32; count as usize];
        // The kernel begins after this one; after what is no index, at the first.
        let before = first.wrapping_sub(1);
        let mut last = 0u32;
        let map = u32::try_from(self.map.as_raw_fd()).map_err(io::Error::other)?;
        let mut attributes = [
            &raw const before as u64,
            &raw mut last as u64,
            keys.as_mut_ptr() as u64,
            values.as_mut_ptr() as u64,
            bytemuck::cast([count, map]),
            0,
            0,
        ];
        bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes)?;
        Ok(values)
    }
}

/// The interface that a pinned link is attached to; `None` if that is gone.
pub fn link_ifindex(pin: &Path) -> io::Result<Option<u32>> {
    let link = open_pin(pin)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    let ifindex = info
        .lines()
        .find_map(|line| line.strip_prefix("ifindex:"))
        .and_then(|number| number.trim().parse().ok());
    Ok(ifindex.filter(|&ifindex| ifindex != 0))
}

/// Takes a pinned link's program off its interface at once; without this, the kernel does so some time after the last
/// handle is gone.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    const BPF_LINK_DETACH: libc::c_long = 34;
    let link = open_pin(pin)?;
    let fd = u64::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    bpf(BPF_LINK_DETACH, &mut [fd.to_le(), 0]).map(drop)
}

/// Has all threads allocate from two arenas, where glibc would give each thread one of its own, which keeps what that thread
/// once needed: 14 MiB with 1,000 VIPs. To be called before there are threads.
pub fn share_memory() {
    // SAFETY: sets a parameter of the allocator.
    #[cfg(target_env = "gnu")]
    let _known = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

/// Waits until every program of the kernel that runs now has ended: they do so within one of the kernel's grace periods,
/// which this call waits for. An error where the kernel leaves CPUs alone (`nohz_full`).
pub fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only, and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The capabilities that the calling thread can use, a bit each.
pub fn capabilities() -> io::Result<u64> {
    let mut sets = [CapabilitySet::default(); 2];
    // The kernel writes the version that it knows, if it does not know ours.
    let mut header = CAPABILITIES_OF_THIS_THREAD;
    // SAFETY: the kernel writes no more than the header, and the two sets of this version.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(sets[1].effective) << 32 | u64::from(sets[0].effective))
}

/// Leaves the calling thread these capabilities and no others, which it cannot get back.
pub fn set_capabilities(kept: u64) -> io::Result<()> {
    let set = |bits: u64| {
        let bits = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        CapabilitySet {
            effective: bits,
            permitted: bits,
            inheritable: 0,
        }
    };
    let sets = [set(kept), set(kept >> 32)];
    let mut header = CAPABILITIES_OF_THIS_THREAD;
    // SAFETY: as above; the sets are only read.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// As the kernel's `__user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// As the kernel's `__user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITIES_OF_THIS_THREAD: CapabilityHeader = CapabilityHeader {
    // The third, with 64 bits in two halves.
    version: 0x2008_0522,
    pid: 0,
};

/// Has a raw ICMP socket receive echo replies only.
pub fn only_echo_replies(socket: impl AsFd, v4: bool) -> io::Result<()> {
    const ICMP_FILTER: libc::c_int = 1;
    const ICMPV6_FILTER: libc::c_int = 1;
    const SOL_RAW: libc::c_int = 255;
    // A bit for each type that is not wanted.
    let (level, option, filter) = if v4 {
        (SOL_RAW, ICMP_FILTER, vec![!1_u32])
    } else {
        let mut filter = vec![u32::MAX; 8];
        filter[129 / 32] &= !(1 << (129 % 32));
        (libc::IPPROTO_ICMPV6, ICMPV6_FILTER, filter)
    };
    let length =
        libc::socklen_t::try_from(size_of_val(filter.as_slice())).map_err(io::Error::other)?;
    // SAFETY: the kernel reads no more than the filter's length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            filter.as_ptr().cast(),
            length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The name of an interface's driver.
pub fn driver(interface: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    // `struct ethtool_drvinfo`: the command, then texts of 32 bytes, the first of which is the driver's name.
    let mut info = [0; 49];
    ethtool(interface, ETHTOOL_GDRVINFO, &mut info)?;
    let text: &[u8] = bytemuck::cast_slice(&info[1..9]);
    let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Queues of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub receiving: u32,
    pub most_receiving: u32,
    /// What `ethtool -L` calls them.
    pub word: &'static str,
}

/// How many queues receive. An error for drivers that have no say in it.
pub fn channels(interface: &str) -> io::Result<Channels> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut answer = [0; 9];
    ethtool(interface, ETHTOOL_GCHANNELS, &mut answer)?;
    let [_, most_rx, _, _, most_combined, rx, _, _, combined] = answer;
    Ok(Channels {
        receiving: rx + combined,
        most_receiving: most_rx.max(most_combined),
        word: if most_combined > 0 { "combined" } else { "rx" },
    })
}

/// A request whose answer is as long as `words`, which the caller takes from the kernel's headers.
fn ethtool(interface: &str, command: u32, words: &mut [u32]) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    words[0] = command;
    let mut request = named(interface);
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the kernel reads the request, and writes no more than the command's answer to what it points to.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A request about an interface.
fn named(interface: &str) -> libc::ifreq {
    // SAFETY: all zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// A descriptor of ours, to wait for it. Needs a Tokio runtime.
pub fn watched<T: Into<OwnedFd>>(fd: T) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register(fd.into()) }?)
}

/// Makes a TUN device of this name, which ends with the descriptor: what the kernel sends there is read from it,
/// packet by packet.
pub fn tun(name: &str) -> io::Result<OwnedFd> {
    let device = fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = named(name);
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes no more than the request.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device.into())
}

/// Ends a TCP connection by a reset, and leaves a socket that can connect anew.
pub fn disconnect(socket: impl AsFd) -> io::Result<()> {
    let nobody = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_UNSPEC).map_err(io::Error::other)?,
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of_val(&nobody)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads no more than the address.
    let result = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const nobody, length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0])?;
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A `bpf` system call. Pointers in its attributes must be valid until it returns.
fn bpf<const WORDS: usize>(
    command: libc::c_long,
    attributes: &mut [u64; WORDS],
) -> io::Result<libc::c_int> {
    // SAFETY: the kernel uses no more than the attributes and what they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}
