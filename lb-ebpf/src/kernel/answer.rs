//! TCP answers in place: written over the packet that they answer, and never longer.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_adjust_tail};

use super::echo::swap_macs;
use crate::{
    checksum::{self, sum64},
    context::frame,
    packet::{Frame, Ipv4Header, Ipv6Header, TCP},
    reset::TcpHeader,
};

const TTL: u8 = 64;
const TCP_BYTES: usize = size_of::<TcpHeader>();
/// Ethernet's shortest frame, which is not made shorter.
const LEAST_FRAME_BYTES: usize = 60;

/// What is sent, without checksums and header length.
pub struct Answer {
    pub header: TcpHeader,
    pub options: Options,
    /// IPv4's flags.
    pub fragment_be: u16,
}

impl Answer {
    #[inline(always)]
    fn bytes(&self) -> usize {
        TCP_BYTES + self.options.words * 4
    }
}

/// Options that stand in the frame already: the stack has no room to keep them until the rest is written.
pub struct Options {
    words: usize,
    sum: u64,
}

impl Options {
    pub const NONE: Self = Self { words: 0, sum: 0 };

    /// Writes the first `words` of these, as they stand in memory, behind the header of an answer whose IP header ends
    /// there. The others are zero. What the answer is made from may be overwritten.
    #[inline(always)]
    pub fn write<const MOST: usize>(
        frame: &Frame,
        ip_end: usize,
        options: [u32; MOST],
        words: usize,
    ) -> Option<Self> {
        let mut sum = 0;
        for (at, word) in options.into_iter().enumerate() {
            if at < words {
                let option = frame.pointer_at::<u32>(ip_end + TCP_BYTES + at * 4)?;
                // SAFETY: the pointer was checked against the frame's end.
                unsafe { option.write(word) };
            }
            sum += u64::from(word);
        }
        Some(Self { words, sum })
    }
}

/// Writes the answer over an IPv4 packet.
#[inline(always)]
pub fn v4(frame: &Frame, ip_offset: usize, answer: &Answer) -> Option<()> {
    let ip = frame.pointer_at::<Ipv4Header>(ip_offset)?;
    // Volatile: or LLVM would keep on the stack what was read before.
    // SAFETY: the pointer was checked against the frame's end.
    let source = unsafe { (&raw const (*ip).source).read_volatile() };
    // SAFETY: as above.
    let destination = unsafe { (&raw const (*ip).destination).read_volatile() };
    let length_be = ((size_of::<Ipv4Header>() + answer.bytes()) as u16).to_be();
    let addresses = u64::from(source) + u64::from(destination);
    let ttl_and_protocol = u16::from_le_bytes([TTL, TCP]);
    let sum = u64::from(0x45u16)
        + u64::from(length_be)
        + u64::from(answer.fragment_be)
        + u64::from(ttl_and_protocol)
        + addresses;
    let header = Ipv4Header {
        version_and_length: 0x45,
        tos: 0,
        total_length_be: length_be,
        id: 0,
        fragment_be: answer.fragment_be,
        ttl: TTL,
        protocol: TCP,
        checksum: checksum::finish(sum),
        source: destination,
        destination: source,
    };
    // SAFETY: as above.
    unsafe { ip.write(header) };
    write(
        frame,
        ip_offset + size_of::<Ipv4Header>(),
        answer,
        addresses,
    )
}

/// The same for IPv6. Extension headers are not sent back.
#[inline(always)]
pub fn v6(frame: &Frame, ip_offset: usize, answer: &Answer) -> Option<()> {
    let ip = frame.pointer_at::<[u64; 5]>(ip_offset)?.cast::<u64>();
    let length_be = (answer.bytes() as u16).to_be();
    let first = u64::from((6u32 << 28).to_be())
        | u64::from(length_be) << 32
        | u64::from(u16::from_le_bytes([TCP, TTL])) << 48;
    // SAFETY: the pointer was checked against the frame's end for five words. Volatile as in IPv4.
    let read = |at: usize| unsafe { ip.add(at).read_volatile() };
    let (s0, s1, d0, d1) = (read(1), read(2), read(3), read(4));
    for (at, word) in [(0, first), (1, d0), (2, d1), (3, s0), (4, s1)] {
        // SAFETY: as above.
        unsafe { ip.add(at).write(word) };
    }
    let addresses = sum64(s0) + sum64(s1) + sum64(d0) + sum64(d1);
    write(
        frame,
        ip_offset + size_of::<Ipv6Header>(),
        answer,
        addresses,
    )
}

/// Cuts the frame to what the answer needs.
#[inline(always)]
pub fn cut(context: *mut xdp_md, needed: usize) -> Option<()> {
    let needed = needed.max(LEAST_FRAME_BYTES);
    let length = frame(context).len() as usize;
    if length > needed {
        // SAFETY: the context is the program's own; pointers into the frame are taken anew after this.
        let cut = unsafe { bpf_xdp_adjust_tail(context, needed as i32 - length as i32) };
        if cut != 0 {
            return None;
        }
    }
    Some(())
}

/// Writes the segment. `addresses` is the sum of both.
#[inline(always)]
fn write(frame: &Frame, offset: usize, answer: &Answer, addresses: u64) -> Option<()> {
    let pseudo = addresses
        + u64::from((answer.bytes() as u16).to_be())
        + u64::from(u16::from(TCP).to_be())
        + answer.options.sum;
    let segment = TcpHeader {
        header_length: (answer.bytes() << 2) as u8,
        ..answer.header
    };
    let tcp = TcpHeader {
        checksum: checksum::finish(pseudo + segment.sum()),
        ..segment
    };
    let at = frame.pointer_at::<TcpHeader>(offset)?;
    // SAFETY: as above.
    unsafe { at.write(tcp) };
    swap_macs(frame)
}
