//! SYN cookies: what a client offers in its SYN goes into the sequence number of the answer, and comes back with its ACK.
//!
//! The load balancer makes them and keeps nothing; any load balancer of the fleet and any backend can check them, since all
//! have the secret. The sequence number is 24 bits of a keyed hash and 8 bits of the offer; where both sides use
//! timestamps, 8 more bits of the hash are in the low ones of the answer's timestamp.

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::{ANSWER_ECN, ANSWER_SACK, ANSWER_TIMESTAMPS, SynAnswer},
    forget,
    hash::Tuple,
    packet::{Frame, TCP_ACK, TCP_CWR, TCP_ECE, TCP_SYN},
    reset::TcpHeader,
    siphash::siphash,
};

/// What a client says of itself in its SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Bytes of a segment that it takes.
    pub mss: u16,
    /// What its windows are shifted by, or [`NO_SCALE`].
    pub window_scale: u8,
    pub sack: bool,
    pub ecn: bool,
}

/// A window scale that is none.
pub const NO_SCALE: u8 = 15;
/// The largest there is (RFC 7323, 2.3).
pub const MAX_SCALE: u8 = 14;

/// Sizes of segments that a cookie can name. A client gets the largest that it takes; the first is what every host takes
/// (RFC 9293, 3.7.1; for IPv6 what the kernel takes for the least).
pub const MSS_V4: [u16; 4] = [536, 1300, 1440, 1460];
pub const MSS_V6: [u16; 4] = [1220, 1320, 1420, 1440];

impl Offer {
    /// As a cookie holds it, rounded down to what that can say.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self, v6: bool) -> u8 {
        let table = if v6 { MSS_V6 } else { MSS_V4 };
        let [_, second, third, fourth] = table;
        let index =
            (self.mss >= second) as u8 + (self.mss >= third) as u8 + (self.mss >= fourth) as u8;
        index << 6
            | (self.ecn as u8) << 5
            | (self.sack as u8) << 4
            | if self.window_scale > NO_SCALE {
                NO_SCALE
            } else {
                self.window_scale
            }
    }

    #[inline(always)]
    #[must_use]
    pub const fn unpack(packed: u8, v6: bool) -> Self {
        let [first, second, third, fourth] = if v6 { MSS_V6 } else { MSS_V4 };
        // No indexing: the kernel's build must not be able to panic, nor can it have a table on its stack.
        let mss = match packed >> 6 {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        };
        Self {
            mss,
            window_scale: packed & 15,
            sack: packed & 1 << 4 != 0,
            ecn: packed & 1 << 5 != 0,
        }
    }
}

/// What a cookie is bound to, besides the flow and the number of the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether segments have timestamps. Bound, or who shows none would be let off 8 bits of a cookie that has them.
    pub timestamps: bool,
    /// What the answer's windows are shifted by. Bound, so that a backend that believes in another never takes the cookie.
    pub server_scale: u8,
}

/// The numbers of an answer to a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    pub isn: u32,
    /// The low bits of the timestamp.
    pub tag: u8,
}

impl Cookie {
    /// From the hash of what it is bound to, and the offer, packed.
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: u64, offer: u8) -> Self {
        Self {
            isn: (hash as u32) << 8 | offer as u32,
            tag: (hash >> 32) as u8,
        }
    }

    /// The answer's timestamp, at a time of day in milliseconds.
    #[inline(always)]
    #[must_use]
    pub const fn stamp(self, ms: u64) -> u32 {
        ms as u32 & !0xff | self.tag as u32
    }
}

/// What of a cookie's terms goes into its hash.
#[inline(always)]
#[must_use]
pub const fn bound(terms: Terms, offer: u8, epoch: u32) -> u64 {
    let marks = terms.server_scale & 15 | (terms.timestamps as u8) << 4;
    epoch as u64 | (offer as u64) << 32 | (marks as u64) << 40
}

/// The hash that a cookie is made of; `bound` has 48 bits.
#[inline(always)]
#[must_use]
pub fn hash(key: &[u64; 2], tuple: &Tuple, client_isn: u32, bound: u64) -> u64 {
    let rest = u64::from(tuple.ports) | u64::from(client_isn) << 32;
    if tuple.v6 {
        let ([s0, s1], [d0, d1]) = (tuple.source, tuple.destination);
        siphash(key, [s0, s1, d0, d1, rest], bound | (5 * 8 + 6) << 56)
    } else {
        let pair = tuple.source[1] >> 32 | tuple.destination[1] & 0xffff_ffff_0000_0000;
        siphash(key, [pair, rest], bound | (2 * 8 + 6) << 56)
    }
}

/// Whether a cookie was made in this epoch, the one before, or, by a clock that is ahead, the next. `hash` gives that of what
/// [`bound`] made.
///
/// Who guesses has three chances in 2^24, or in 2^32 with timestamps.
#[inline(always)]
#[must_use]
pub fn is_good(cookie: Cookie, terms: Terms, epoch: u32, hash: impl Fn(u64) -> u64) -> bool {
    let offer = cookie.isn as u8;
    let made_in = |epoch| {
        let made = Cookie::new(hash(bound(terms, offer, epoch)), offer);
        made.isn == cookie.isn && (!terms.timestamps || made.tag == cookie.tag)
    };
    made_in(epoch) || made_in(epoch.wrapping_sub(1)) || made_in(epoch.wrapping_add(1))
}

/// Words of options in an answer.
pub const MAX_OPTION_WORDS: usize = 5;

/// The answer to a SYN, without the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub header: TcpHeader,
    /// As they stand in memory.
    pub options: [u32; MAX_OPTION_WORDS],
    pub option_words: usize,
}

/// What both sides will do, of what the client offers: as the answer says it, and as a cookie holds it.
///
/// Who offers no segment size is taken to offer nothing: then there is no room for an option in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    sized: bool,
    timestamps: bool,
    offer: Offer,
}

impl Agreed {
    /// `flags` are the SYN's.
    #[inline(always)]
    #[must_use]
    pub const fn new(offered: &Options, flags: u8, say: &SynAnswer) -> Self {
        let sized = offered.mss != 0;
        let asks_ecn = flags & (TCP_ECE | TCP_CWR) == TCP_ECE | TCP_CWR;
        Self {
            sized,
            timestamps: sized && offered.timestamps && say.options & ANSWER_TIMESTAMPS != 0,
            offer: Offer {
                mss: offered.mss,
                window_scale: if sized {
                    offered.window_scale
                } else {
                    NO_SCALE
                },
                sack: sized && offered.sack && say.options & ANSWER_SACK != 0,
                ecn: asks_ecn && say.options & ANSWER_ECN != 0,
            },
        }
    }

    #[inline(always)]
    #[must_use]
    pub const fn terms(&self, say: &SynAnswer) -> Terms {
        Terms {
            timestamps: self.timestamps,
            server_scale: say.window_scale,
        }
    }

    /// As in a cookie.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self, v6: bool) -> u8 {
        self.offer.pack(v6)
    }

    /// Words of options in the answer.
    #[inline(always)]
    #[must_use]
    pub const fn option_words(&self) -> usize {
        let Offer {
            window_scale, sack, ..
        } = self.offer;
        let numbers = if self.timestamps { 3 } else { sack as usize };
        let scale = (window_scale != NO_SCALE) as usize;
        if self.sized { 1 + numbers + scale } else { 0 }
    }

    /// The answer to the SYN, with the cookie's numbers: no longer than what it answers, since each option was offered, and
    /// has no more room than there.
    #[inline(always)]
    #[must_use]
    pub fn answer(
        &self,
        isn: u32,
        stamp: u32,
        (syn, offered): (&TcpHeader, &Options),
        say: &SynAnswer,
    ) -> Answer {
        let Offer { sack, ecn, .. } = self.offer;
        let scaled = self.offer.window_scale != NO_SCALE;
        let [high, low] = say.mss.to_be_bytes();
        let mss = u32::from_ne_bytes([MSS, 4, high, low]);
        let scale = u32::from_ne_bytes([NOP, WINDOW_SCALE, 3, say.window_scale]);
        let scale = if scaled { scale } else { 0 };
        let options = if !self.sized {
            [0; MAX_OPTION_WORDS]
        } else if self.timestamps {
            let [first, second] = if sack {
                [SACK_PERMITTED, 2]
            } else {
                [NOP, NOP]
            };
            let kind = u32::from_ne_bytes([first, second, TIMESTAMPS, 10]);
            [mss, kind, stamp.to_be(), offered.stamp_be, scale]
        } else if sack {
            let kind = u32::from_ne_bytes([NOP, NOP, SACK_PERMITTED, 2]);
            [mss, kind, scale, 0, 0]
        } else {
            [mss, scale, 0, 0, 0]
        };
        let option_words = self.option_words();
        let next = u32::from_be(syn.sequence_be).wrapping_add(1);
        Answer {
            header: TcpHeader {
                source: syn.destination,
                destination: syn.source,
                sequence_be: isn.to_be(),
                acknowledgement_be: next.to_be(),
                header_length: (5 + option_words as u8) << 4,
                flags: TCP_SYN | TCP_ACK | if ecn { TCP_ECE } else { 0 },
                window: say.window.to_be(),
                checksum: 0,
                urgent: 0,
            },
            options,
            option_words,
        }
    }
}

/// The time of day without a call: what is to be added to the kernel's jiffies, and what those count.
///
/// Written by the daemon and by the agent, often enough that a clock that is set is followed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Clock {
    /// Jiffies between the beginning of 1970 and jiffy 0.
    pub offset: u64,
    /// Milliseconds of a jiffy, in 1/65536.
    pub jiffy: u64,
}

impl Clock {
    /// `now_ms` is the time of day, at `jiffies` of `hz` a second.
    #[must_use]
    pub const fn new(now_ms: u64, jiffies: u64, hz: u32) -> Self {
        let jiffy = (1000 << 16) / hz as u64;
        Self {
            offset: (((now_ms as u128) << 16).div_euclid(jiffy as u128) as u64)
                .wrapping_sub(jiffies),
            jiffy,
        }
    }

    /// Milliseconds since the beginning of 1970. Its lower half is also what timestamps of answers count.
    #[inline(always)]
    #[must_use]
    pub const fn ms(&self, jiffies: u64) -> u64 {
        (jiffies.wrapping_add(self.offset)).wrapping_mul(self.jiffy) >> 16
    }

    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self, jiffies: u64) -> u32 {
        epoch(self.ms(jiffies))
    }
}

/// The epoch at a time of day: there is a new one every 65.536 seconds.
#[inline(always)]
#[must_use]
pub const fn epoch(ms: u64) -> u32 {
    (ms >> 16) as u32
}

/// The options of a TCP header that matter for a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Zero if there is none.
    pub mss: u16,
    pub window_scale: u8,
    pub sack: bool,
    pub timestamps: bool,
    /// One of the two timestamps: see [`Stamp`].
    pub stamp_be: u32,
}

/// Which timestamp to read. Both and the rest do not fit into one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stamp {
    /// The sender's own clock.
    Value = 2,
    /// What it echoes.
    Echo = 6,
}

/// Options in a header that are looked at: those that do nothing count too.
const MAX_OPTIONS: usize = 20;
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const TIMESTAMPS: u8 = 8;
/// Offsets in a header are below this.
const OFFSETS: usize = 64;

/// The options of a TCP header at `start`, which is `header_bytes` long, as one number: see [`Options::unpack`].
///
/// The verifier would follow every way through the list, and there are too many: so it has to forget where it stands. For the
/// same reason nothing here branches on what was found.
#[inline(always)]
#[must_use]
pub fn options(frame: &Frame, start: usize, header_bytes: usize, stamp: Stamp) -> u64 {
    let mut packed = u64::from(NO_SCALE) << 48;
    let mut next = 20;
    for _ in 0..MAX_OPTIONS {
        let both = forget(header_bytes << 8 | next, frame.len());
        let (offset, end) = (both & (OFFSETS - 1), both >> 8 & (OFFSETS - 1));
        // A last option of one byte says nothing.
        if offset + 2 > end {
            break;
        }
        let at = start + offset;
        let Some(head) = frame.read::<u16>(at) else {
            break;
        };
        let [kind, length] = head.to_ne_bytes();
        if kind == NOP {
            next = offset + 1;
            continue;
        }
        // What has no length ends the list, whatever it is.
        next = offset + length as usize;
        if kind == END || length < 2 || next > end {
            break;
        }
        match (kind, length) {
            (TIMESTAMPS, 10) => {
                if let Some(read) = frame.read::<u32>(at + stamp as usize) {
                    packed = packed & !0xffff_ffff | u64::from(read) | 1 << 53;
                }
            }
            (MSS, 4) => {
                if let Some(mss) = frame.read::<u16>(at + 2) {
                    packed = packed & !(0xffff << 32) | u64::from(u16::from_be(mss)) << 32;
                }
            }
            (WINDOW_SCALE, 3) => {
                // With the byte before, for the verifier wants two.
                if let Some(scale) = frame.read::<u16>(at + 1) {
                    let scale = scale.to_ne_bytes()[1].min(MAX_SCALE);
                    packed = packed & !(15 << 48) | u64::from(scale) << 48;
                }
            }
            (SACK_PERMITTED, 2) => packed |= 1 << 52,
            _ => {}
        }
    }
    packed
}

impl Options {
    #[inline(always)]
    #[must_use]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            mss: (packed >> 32) as u16,
            window_scale: (packed >> 48) as u8 & 15,
            sack: packed & 1 << 52 != 0,
            timestamps: packed & 1 << 53 != 0,
            stamp_be: packed as u32,
        }
    }
}

#[cfg(test)]
mod tests;
