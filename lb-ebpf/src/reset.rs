//! What a host says of a TCP segment that nobody takes (RFC 9293, 3.10.7.1).

use crate::packet::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// A TCP header without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    pub source: u16,
    pub destination: u16,
    pub sequence_be: u32,
    pub acknowledgement_be: u32,
    /// In its upper half, in words of 4 bytes.
    pub header_length: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

/// The reset that answers a segment of so many bytes, its header included; without its checksum. None to a reset.
#[inline(always)]
#[must_use]
pub const fn reset(segment: &TcpHeader, segment_bytes: u32) -> Option<TcpHeader> {
    if segment.flags & TCP_RST != 0 {
        return None;
    }
    let (sequence_be, acknowledgement_be, flags) = if segment.flags & TCP_ACK != 0 {
        (segment.acknowledgement_be, 0, TCP_RST)
    } else {
        let header_bytes = (segment.header_length >> 4) as u32 * 4;
        // SYN and FIN take a number each.
        let signs = (segment.flags & TCP_SYN != 0) as u32 + (segment.flags & TCP_FIN != 0) as u32;
        let next = u32::from_be(segment.sequence_be)
            .wrapping_add(segment_bytes.wrapping_sub(header_bytes))
            .wrapping_add(signs);
        (0, next.to_be(), TCP_RST | TCP_ACK)
    };
    Some(TcpHeader {
        source: segment.destination,
        destination: segment.source,
        sequence_be,
        acknowledgement_be,
        header_length: 5 << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    })
}

impl TcpHeader {
    /// The sum of its words.
    #[inline(always)]
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.source as u64
            + self.destination as u64
            + self.sequence_be as u64
            + self.acknowledgement_be as u64
            + u16::from_le_bytes([self.header_length, self.flags]) as u64
            + self.window as u64
            + self.checksum as u64
            + self.urgent as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(flags: u8) -> TcpHeader {
        TcpHeader {
            source: 1,
            destination: 2,
            sequence_be: 1000_u32.to_be(),
            acknowledgement_be: 7000_u32.to_be(),
            header_length: 8 << 4,
            flags,
            window: 9,
            checksum: 9,
            urgent: 9,
        }
    }

    /// Sequence, acknowledgement and flags of the answer to a segment with this many bytes of data.
    fn answer(flags: u8, data: u32) -> Option<(u32, u32, u8)> {
        let reset = reset(&segment(flags), 32 + data)?;
        assert_eq!((reset.source, reset.destination), (2, 1));
        Some((
            u32::from_be(reset.sequence_be),
            u32::from_be(reset.acknowledgement_be),
            reset.flags,
        ))
    }

    #[test]
    fn a_segment_that_acknowledges_is_answered_where_it_expects() {
        assert_eq!(answer(TCP_ACK, 100), Some((7000, 0, TCP_RST)));
        assert_eq!(answer(TCP_ACK | TCP_FIN, 0), Some((7000, 0, TCP_RST)));
    }

    #[test]
    fn one_that_does_not_is_acknowledged_as_a_whole() {
        assert_eq!(answer(TCP_SYN, 0), Some((0, 1001, TCP_RST | TCP_ACK)));
        assert_eq!(answer(TCP_SYN, 10), Some((0, 1011, TCP_RST | TCP_ACK)));
        assert_eq!(answer(TCP_FIN, 0), Some((0, 1001, TCP_RST | TCP_ACK)));
        let mut late = segment(0);
        late.sequence_be = u32::MAX.to_be();
        let reset = reset(&late, 32 + 2).unwrap();
        assert_eq!(u32::from_be(reset.acknowledgement_be), 1);
    }

    #[test]
    fn a_reset_is_not_answered() {
        assert_eq!(answer(TCP_RST, 0), None);
        assert_eq!(answer(TCP_RST | TCP_ACK, 0), None);
    }
}
