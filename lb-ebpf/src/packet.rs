//! Reading a frame: Ethernet, VLAN tags, IP with options and extension headers, fragments, TCP, UDP, ICMP.
//!
//! The same code runs in the kernel, where every read is checked against the frame's end as the verifier demands,
//! and on the host, where it is tested against an independent parser.

use core::hint::cold_path;

use crate::{abi::DropReason, hash::Tuple, hide};

pub const ETHERNET_BYTES: usize = 14;
pub const VLAN_BYTES: usize = 4;
/// EtherTypes, in network byte order.
pub const IPV4_BE: u16 = 0x0800u16.to_be();
pub const IPV6_BE: u16 = 0x86ddu16.to_be();
pub const VLAN_BE: u16 = 0x8100u16.to_be();
pub const QINQ_BE: u16 = 0x88a8u16.to_be();

pub const ICMP: u8 = 1;
pub const IPIP: u8 = 4;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const IPV6: u8 = 41;
pub const ICMPV6: u8 = 58;

pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;
pub const TCP_PSH: u8 = 8;
pub const TCP_ACK: u8 = 16;
pub const TCP_URG: u8 = 32;
pub const TCP_ECE: u8 = 64;
pub const TCP_CWR: u8 = 128;

/// Extension headers that we follow, and how far they may reach into the frame.
const MAX_EXTENSIONS: usize = 8;
const MAX_L4_OFFSET: usize = 1024;

/// The upper half of an IPv4-mapped address, and what precedes the IPv4 address in the lower, as words in memory.
pub const MAPPED: [u64; 2] = [0, 0x0000_0000_ffff_0000];

/// An IPv4 address (as a word in network byte order) as an IPv6 one.
#[inline(always)]
#[must_use]
pub const fn mapped(address: u32) -> [u64; 2] {
    [MAPPED[0], MAPPED[1] | (address as u64) << 32]
}

/// The bytes of a frame, from the first of Ethernet on.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// # Safety
    /// `start..end` must be readable memory, and stay so while this value is used.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    #[inline(always)]
    #[must_use]
    pub fn len(&self) -> usize {
        hide(self.end - self.start)
    }

    #[inline(always)]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A pointer to a `T` at a constant offset, if the frame is that long.
    #[inline(always)]
    #[must_use]
    pub fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            cold_path();
            None
        } else {
            Some(at as *mut T)
        }
    }

    /// The same for an offset that was computed.
    #[inline(always)]
    #[must_use]
    pub fn pointer_at<T>(&self, offset: usize) -> Option<*mut T> {
        let at = hide(self.start + (hide(offset) & (2 * MAX_L4_OFFSET - 1)));
        if at + size_of::<T>() > self.end {
            cold_path();
            None
        } else {
            Some(at as *mut T)
        }
    }

    /// The `T` at a computed offset.
    #[inline(always)]
    #[must_use]
    pub fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let pointer = self.pointer_at::<T>(offset)?;
        // SAFETY: the pointer was checked against the frame's end.
        Some(unsafe { load(pointer) })
    }
}

/// Loads from a frame: a single load each in the kernel, where `read_unaligned` would be taken apart into bytes.
///
/// # Safety
/// `pointer` must be readable for a `T`.
#[inline(always)]
pub unsafe fn load<T: Copy>(pointer: *const T) -> T {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise; this architecture's kernel takes unaligned loads.
    unsafe {
        pointer.read()
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        pointer.read_unaligned()
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Header {
    pub version_and_length: u8,
    pub tos: u8,
    pub total_length_be: u16,
    pub id: u16,
    pub fragment_be: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Header {
    pub version_class_flow_be: u32,
    pub payload_length_be: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpHeader {
    pub source_be: u16,
    pub destination_be: u16,
    pub sequence_be: u32,
    pub acknowledgement_be: u32,
    pub offset_and_flags: [u8; 2],
    pub window_be: u16,
    pub checksum: u16,
    pub urgent_be: u16,
}

/// Source and destination port, then what UDP and ICMP quotes are sure to have: eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FirstEight {
    pub ports: u32,
    pub rest: u32,
}

/// Whether a packet is a fragment. The id is as on the wire; IPv4's 16 bits are in the lower half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First(u32),
    Later(u32),
}

/// What the IP header says; enough to know whether the packet is for a VIP address.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    pub v6: bool,
    /// Offset of the IP header in the frame.
    pub offset: usize,
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// Length from the IP header on, by the header itself.
    pub length: u32,
    /// IPv4 header length, 40 for IPv6.
    pub header_length: u32,
    /// IPv4 protocol, IPv6 next header.
    pub protocol: u8,
    /// Type of service, traffic class.
    pub class: u8,
    /// IPv4's flags and fragment offset in host byte order, and its id as on the wire. Zero for IPv6, which has them in an
    /// extension header.
    pub fragment_bits: u16,
    pub id: u16,
}

impl Ip {
    #[inline(always)]
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.fragment_bits & 0x3fff == 0
    }

    #[inline(always)]
    #[must_use]
    pub fn fragment(&self) -> Fragment {
        let first = self.fragment_bits & 0x1fff == 0;
        let kind = if self.is_whole() {
            0
        } else {
            1 + usize::from(!first)
        };
        // Hidden, for the verifier to know on each way what it is: it could not tell from the bits again.
        match hide(kind) {
            0 => Fragment::Whole,
            1 => Fragment::First(self.id.into()),
            _ => Fragment::Later(self.id.into()),
        }
    }
}

/// EtherType (network byte order) and offset of what follows up to two VLAN tags.
#[inline(always)]
#[must_use]
pub fn ethernet(frame: &Frame) -> Option<(u16, usize)> {
    let mut offset = ETHERNET_BYTES;
    let mut ethertype = load_be16(frame, 12)?;
    if ethertype == VLAN_BE || ethertype == QINQ_BE {
        ethertype = load_be16(frame, 16)?;
        offset += VLAN_BYTES;
        if ethertype == VLAN_BE || ethertype == QINQ_BE {
            ethertype = load_be16(frame, 20)?;
            offset += VLAN_BYTES;
        }
    }
    Some((ethertype, offset))
}

#[inline(always)]
fn load_be16(frame: &Frame, offset: usize) -> Option<u16> {
    let pointer = frame.pointer::<u16>(offset)?;
    // SAFETY: the pointer was checked against the frame's end.
    Some(unsafe { load(pointer) })
}

/// The IP header at `offset`, or `None` where there is none or only a part.
#[inline(always)]
#[must_use]
pub fn ip(frame: &Frame, ethertype: u16, offset: usize) -> Option<Ip> {
    if ethertype == IPV4_BE {
        ipv4(frame, offset)
    } else if ethertype == IPV6_BE {
        ipv6(frame, offset)
    } else {
        None
    }
}

#[inline(always)]
#[must_use]
pub fn ipv4(frame: &Frame, offset: usize) -> Option<Ip> {
    let header: Ipv4Header = frame.read(offset)?;
    if header.version_and_length >> 4 != 4 {
        cold_path();
        return None;
    }
    Some(Ip {
        v6: false,
        offset,
        source: mapped(header.source),
        destination: mapped(header.destination),
        length: u32::from(u16::from_be(header.total_length_be)),
        header_length: u32::from(header.version_and_length & 15) * 4,
        protocol: header.protocol,
        class: header.tos,
        fragment_bits: u16::from_be(header.fragment_be),
        id: header.id,
    })
}

#[inline(always)]
#[must_use]
pub fn ipv6(frame: &Frame, offset: usize) -> Option<Ip> {
    let header: Ipv6Header = frame.read(offset)?;
    let first = u32::from_be(header.version_class_flow_be);
    if first >> 28 != 6 {
        cold_path();
        return None;
    }
    Some(Ip {
        v6: true,
        offset,
        source: words(header.source),
        destination: words(header.destination),
        length: 40 + u32::from(u16::from_be(header.payload_length_be)),
        header_length: 40,
        protocol: header.next_header,
        class: (first >> 20) as u8,
        fragment_bits: 0,
        id: 0,
    })
}

/// An address as it stands in an IPv6 header, as words in memory.
#[inline(always)]
#[must_use]
pub fn words(a: [u32; 4]) -> [u64; 2] {
    [
        u64::from(a[0]) | u64::from(a[1]) << 32,
        u64::from(a[2]) | u64::from(a[3]) << 32,
    ]
}

/// What lies behind the IP header and its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        ports: u32,
        flags: u8,
        /// As the header has it: a first fragment may hold less.
        header_bytes: u8,
    },
    Udp {
        ports: u32,
    },
    /// Its type; the rest is read where it is needed.
    Icmp {
        kind: u8,
    },
    /// A later fragment: no ports.
    NoPorts,
    /// Any other protocol.
    Other,
}

impl Transport {
    /// The same, whose bytes come by way of a number: LLVM leaves undefined what a variant lacks, and may compute with it
    /// before it asks which one it is, which the verifier refuses.
    #[inline(always)]
    #[must_use]
    pub fn defined(self) -> Self {
        let bytes = hide(match self {
            Self::Tcp {
                flags,
                header_bytes,
                ..
            } => usize::from(flags) | usize::from(header_bytes) << 8,
            Self::Icmp { kind } => usize::from(kind),
            Self::Udp { .. } | Self::NoPorts | Self::Other => 0,
        });
        match self {
            Self::Tcp { ports, .. } => Self::Tcp {
                ports,
                flags: bytes as u8,
                header_bytes: (bytes >> 8) as u8,
            },
            Self::Icmp { .. } => Self::Icmp { kind: bytes as u8 },
            Self::Udp { .. } | Self::NoPorts | Self::Other => self,
        }
    }
}

/// Where the transport header starts, of which protocol it is, and its fragment.
#[derive(Clone, Copy, Debug)]
pub struct L4 {
    pub offset: usize,
    pub protocol: u8,
    pub fragment: Fragment,
}

/// Walks IPv4 options; IPv6 extension headers are for [`extensions`].
///
/// # Errors
/// The reason for which a packet for a VIP is dropped.
#[inline(always)]
pub fn skip_options(ip: &Ip) -> Result<L4, DropReason> {
    if ip.header_length < 20 || ip.length < ip.header_length {
        return Err(DropReason::MalformedHeader);
    }
    Ok(L4 {
        offset: ip.offset + ip.header_length as usize,
        protocol: ip.protocol,
        fragment: ip.fragment(),
    })
}

/// Whether an IPv6 next header is an extension header that we follow: hop-by-hop, routing, fragment, authentication,
/// destination options, mobility, HIP, shim6 (RFC 8200, 4302, 6275, 7401, 5533).
#[inline(always)]
#[must_use]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// Walks IPv6 extension headers, and gives what was found as one number (see [`unpack`]): a function of its own in the
/// kernel, where the walk would multiply the ways that the verifier has to follow.
#[inline(always)]
#[must_use]
pub fn extensions(frame: &Frame, offset: usize, protocol: u8) -> u64 {
    let mut offset = offset;
    let mut protocol = protocol;
    let mut first = 0;
    let mut id = 0;
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(protocol) {
            return pack(offset, protocol, first, id);
        }
        let Some(header) = frame.read::<FirstEight>(offset) else {
            return TRUNCATED;
        };
        let units = (header.ports >> 8 & 0xff) as usize;
        let next = header.ports as u8;
        if protocol == 44 {
            let offset_and_more = u16::from_be((header.ports >> 16) as u16);
            if offset_and_more & 0xfff8 != 0 {
                return pack(offset + 8, next, LATER, header.rest);
            }
            // An atomic fragment (RFC 6946) is a whole packet.
            if offset_and_more & 1 != 0 {
                first = FIRST;
                id = header.rest;
            }
        }
        offset += match protocol {
            44 => 8,
            51 => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        protocol = next;
        if offset > MAX_L4_OFFSET {
            return TOO_MANY;
        }
        offset = hide(offset) & (2 * MAX_L4_OFFSET - 1);
    }
    if is_extension(protocol) {
        TOO_MANY
    } else {
        pack(offset, protocol, first, id)
    }
}

/// What [`extensions`] finds where there are none.
#[inline(always)]
#[must_use]
pub fn no_extensions(ip: &Ip) -> u64 {
    pack(ip.offset + 40, ip.protocol, 0, 0)
}

const FIRST: u64 = 1 << 24;
const LATER: u64 = 2 << 24;
const TRUNCATED: u64 = 1 << 28;
const TOO_MANY: u64 = 1 << 29;

#[inline(always)]
fn pack(offset: usize, protocol: u8, fragment: u64, id: u32) -> u64 {
    u64::from(id) << 32 | fragment | u64::from(protocol) << 16 | offset as u64
}

/// What [`extensions`] found.
///
/// # Errors
/// The reason for which a packet for a VIP is dropped.
#[inline(always)]
pub fn unpack(found: u64) -> Result<L4, DropReason> {
    if found & TRUNCATED != 0 {
        return Err(DropReason::Truncated);
    }
    if found & TOO_MANY != 0 {
        return Err(DropReason::Ipv6Extensions);
    }
    let id = (found >> 32) as u32;
    let fragment = if found & FIRST != 0 {
        Fragment::First(id)
    } else if found & LATER != 0 {
        Fragment::Later(id)
    } else {
        Fragment::Whole
    };
    Ok(L4 {
        offset: found as usize & (2 * MAX_L4_OFFSET - 1),
        protocol: (found >> 16) as u8,
        fragment,
    })
}

/// The transport header.
///
/// # Errors
/// The reason for which a packet for a VIP is dropped.
#[inline(always)]
pub fn transport(frame: &Frame, ip: &Ip, l4: &L4) -> Result<Transport, DropReason> {
    if ip.offset + ip.length as usize > frame.len() {
        return Err(DropReason::Truncated);
    }
    let room = (ip.offset + ip.length as usize).wrapping_sub(l4.offset);
    if let Fragment::Later(_) = l4.fragment {
        if room > 0xffff {
            cold_path();
            return Err(DropReason::MalformedHeader);
        }
        // A later IPv6 fragment may begin with an extension header that we cannot see through.
        return Ok(
            if l4.protocol == TCP || l4.protocol == UDP || ip.v6 && is_extension(l4.protocol) {
                Transport::NoPorts
            } else {
                Transport::Other
            },
        );
    }
    let needed = match l4.protocol {
        TCP => 20,
        UDP => 8,
        ICMP if !ip.v6 => 8,
        ICMPV6 if ip.v6 => 8,
        _ => return Ok(Transport::Other),
    };
    if room < needed || room > 0xffff {
        cold_path();
        return if room >= 8 && room < needed && matches!(l4.fragment, Fragment::First(_)) {
            hidden_tcp(frame, l4)
        } else {
            Err(DropReason::MalformedHeader)
        };
    }
    match l4.protocol {
        TCP => match frame.read::<TcpHeader>(l4.offset) {
            Some(header) => {
                let header_bytes = (header.offset_and_flags[0] >> 4) * 4;
                let whole = matches!(l4.fragment, Fragment::Whole);
                if header_bytes < 20 || whole && usize::from(header_bytes) > room {
                    cold_path();
                    return Err(DropReason::MalformedHeader);
                }
                let ports = u32::from(header.source_be) | u32::from(header.destination_be) << 16;
                Ok(Transport::Tcp {
                    ports,
                    flags: header.offset_and_flags[1],
                    header_bytes,
                })
            }
            None => Err(DropReason::Truncated),
        },
        UDP => match frame.read::<FirstEight>(l4.offset) {
            Some(header) => {
                let length = usize::from(u16::from_be(header.rest as u16));
                if length < 8 || matches!(l4.fragment, Fragment::Whole) && length > room {
                    return Err(DropReason::MalformedHeader);
                }
                Ok(Transport::Udp {
                    ports: header.ports,
                })
            }
            None => Err(DropReason::Truncated),
        },
        _ => match frame.read::<FirstEight>(l4.offset) {
            Some(header) => Ok(Transport::Icmp {
                kind: header.ports as u8,
            }),
            None => Err(DropReason::Truncated),
        },
    }
}

/// TCP of which a first fragment holds the ports, but not the flags: it counts as any packet after the SYN.
#[inline(always)]
fn hidden_tcp(frame: &Frame, l4: &L4) -> Result<Transport, DropReason> {
    match frame.read::<FirstEight>(l4.offset) {
        Some(header) => Ok(Transport::Tcp {
            ports: header.ports,
            flags: TCP_ACK,
            header_bytes: 20,
        }),
        None => Err(DropReason::Truncated),
    }
}

/// Whether an ICMP type is an error that quotes a packet (RFC 792, 1122 3.2.2; RFC 4443 2.1).
#[inline(always)]
#[must_use]
pub const fn is_icmp_error(v6: bool, kind: u8) -> bool {
    if v6 {
        kind < 128
    } else {
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    }
}

/// Whether an ICMP type asks for an echo.
#[inline(always)]
#[must_use]
pub const fn is_echo_request(v6: bool, kind: u8) -> bool {
    kind == if v6 { 128 } else { 8 }
}

/// The five-tuple of the flow whose answer an ICMP error quotes: the quoted packet went from VIP to client.
///
/// `inner` and `l4` are of the quoted packet. Eight bytes of its transport header suffice.
#[inline(always)]
#[must_use]
pub fn quoted(frame: &Frame, outer: &Ip, inner: &Ip, l4: &L4) -> Option<Tuple> {
    if inner.source[0] != outer.destination[0] || inner.source[1] != outer.destination[1] {
        return None;
    }
    if matches!(l4.fragment, Fragment::Later(_)) || l4.protocol != TCP && l4.protocol != UDP {
        return None;
    }
    if l4.offset + 8 > outer.offset + outer.length as usize {
        return None;
    }
    let ports = frame.read::<FirstEight>(l4.offset)?.ports;
    Some(Tuple {
        source: inner.destination,
        destination: inner.source,
        ports: ports.rotate_left(16),
        protocol: l4.protocol,
        v6: inner.v6,
    })
}
