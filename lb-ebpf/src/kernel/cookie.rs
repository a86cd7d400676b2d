//! SYNs of a VIP whose backends have the agent: answered with a cookie, which the ACK that ends the handshake shows.
//!
//! Nothing is written for a SYN beside counters. What shows the cookie is the first packet that a backend gets.

use aya_ebpf::bindings::xdp_md;

use super::{
    answer::{self, Answer, Options as Written},
    challenge::{DONT_FRAGMENT_BE, Header, Where, headers, is_in_force, stats},
    count,
    maps::{VIPS, explaining, settings},
    pipeline::Packet,
};
use crate::{
    abi::{SYN_COOKIE, Step, Vip},
    context::frame,
    cookie::{self, Agreed, Cookie, Options, Stamp, Terms, bound},
    packet::{Fragment, Ipv4Header, Ipv6Header, TCP_ACK, TCP_RST},
    reset::TcpHeader,
};

/// What a packet shows that is of no known flow, and no SYN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// A good one: the flow's client gets our packets.
    Cookie,
    /// None, where flows are to begin with one.
    NoCookie,
    /// None is asked for.
    Nothing,
}

/// Looks for a cookie, also where no more are sent: clients have those of a moment ago.
#[inline(always)]
pub fn meet_first(packet: &Packet<'_>) -> Shown {
    if packet.vip.syn & SYN_COOKIE == 0 {
        return Shown::Nothing;
    }
    if !matches!(packet.fragment, Fragment::Whole) {
        return Shown::NoCookie;
    }
    match sluice_cookie_shown(packet.context, Where::of(packet).pack(), packet.jiffies) {
        COOKIE => Shown::Cookie,
        NO_COOKIE => Shown::NoCookie,
        _ => Shown::Nothing,
    }
}

/// What `sluice_cookie_shown` returns.
const NOTHING: u32 = 0;
const COOKIE: u32 = 1;
const NO_COOKIE: u32 = 2;

/// A global function, like those below: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_cookie_shown(context: *mut xdp_md, what: u64, jiffies: u64) -> u32 {
    let at = Where::unpack(what);
    let (Some(vip), Some(stats)) = (VIPS.get(u32::from(at.vip)), stats(&at)) else {
        return NOTHING;
    };
    if is_shown(context, what, vip, jiffies).unwrap_or(false) {
        count::note(Step::CookieGood);
        if !explaining() {
            stats.taken += 1;
        }
        return COOKIE;
    }
    if !is_in_force(&at, vip.syn, jiffies) {
        return NOTHING;
    }
    count::note(Step::CookieBad);
    if !explaining() {
        stats.refused += 1;
    }
    NO_COOKIE
}

/// `None`: it acknowledges nothing, or its headers cannot be read.
#[inline(always)]
fn is_shown(context: *mut xdp_md, what: u64, vip: &Vip, jiffies: u64) -> Option<bool> {
    let segment = frame(context).read::<TcpHeader>(Where::unpack(what).l4_offset)?;
    if segment.flags & (TCP_ACK | TCP_RST) != TCP_ACK {
        return None;
    }
    let options = Options::unpack(sluice_tcp_options(context, what, true));
    let cookie = Cookie {
        isn: u32::from_be(segment.acknowledgement_be).wrapping_sub(1),
        tag: u32::from_be(options.stamp_be) as u8,
    };
    let terms = Terms {
        timestamps: options.timestamps,
        server_scale: vip.answer.window_scale,
    };
    let epoch = settings()?.clock.epoch(jiffies);
    Some(cookie::is_good(cookie, terms, epoch, |bound| {
        sluice_cookie_hash(context, what, bound | AFTER_SYN)
    }))
}

/// Answers a SYN. In steps, because what a function keeps on the stack adds up to that of who calls it.
#[inline(always)]
pub fn answer(packet: &Packet<'_>, what: u64) -> bool {
    let packed = sluice_tcp_options(packet.context, what, false);
    let numbers = sluice_cookie_numbers(packet.context, what, packed, packet.jiffies);
    sluice_cookie_write(packet.context, what, packed, numbers)
}

/// The numbers of the answer to a SYN with these options: its sequence number, and above that the timestamp.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_cookie_numbers(
    context: *mut xdp_md,
    what: u64,
    packed: u64,
    jiffies: u64,
) -> u64 {
    let at = Where::unpack(what);
    let (Some(settings), Some(vip), Some(syn)) = (
        settings(),
        VIPS.get(u32::from(at.vip)),
        frame(context).read::<TcpHeader>(at.l4_offset),
    ) else {
        return 0;
    };
    let agreed = Agreed::new(&Options::unpack(packed), syn.flags, &vip.answer);
    let offer = agreed.pack(at.v6);
    let ms = settings.clock.ms(jiffies);
    let bound = bound(agreed.terms(&vip.answer), offer, cookie::epoch(ms));
    let cookie = Cookie::new(sluice_cookie_hash(context, what, bound), offer);
    u64::from(cookie.isn) | u64::from(cookie.stamp(ms)) << 32
}

/// Beside what is bound: the segment's number is the one after the SYN's.
const AFTER_SYN: u64 = 1 << 63;

/// The hash of a segment's cookie.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_cookie_hash(context: *mut xdp_md, what: u64, bound: u64) -> u64 {
    let at = Where::unpack(what);
    let hash = if at.v6 {
        hash::<Ipv6Header>(context, &at, bound)
    } else {
        hash::<Ipv4Header>(context, &at, bound)
    };
    hash.unwrap_or(0)
}

#[inline(always)]
fn hash<H: Header>(context: *mut xdp_md, at: &Where, bound: u64) -> Option<u64> {
    let settings = settings()?;
    let (_, segment, tuple) = headers::<H>(&frame(context), at)?;
    let after = u32::from(bound & AFTER_SYN != 0);
    let isn = u32::from_be(segment.sequence_be).wrapping_sub(after);
    let bound = bound & !AFTER_SYN;
    Some(cookie::hash(&settings.cookie_key, &tuple, isn, bound))
}

/// Writes the answer over a SYN with these options.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_cookie_write(
    context: *mut xdp_md,
    what: u64,
    packed: u64,
    numbers: u64,
) -> bool {
    let at = Where::unpack(what);
    let written = if at.v6 {
        write::<Ipv6Header>(context, &at, packed, numbers)
    } else {
        write::<Ipv4Header>(context, &at, packed, numbers)
    };
    written.is_some()
}

#[inline(always)]
fn write<H: Header>(context: *mut xdp_md, at: &Where, packed: u64, numbers: u64) -> Option<()> {
    let say = &VIPS.get(u32::from(at.vip))?.answer;
    let offered = Options::unpack(packed);
    let flags = frame(context).read::<TcpHeader>(at.l4_offset)?.flags;
    let agreed = Agreed::new(&offered, flags, say);
    let ip_end = at.ip_offset + size_of::<H>();
    let answer_end = ip_end + size_of::<TcpHeader>() + agreed.option_words() * 4;
    answer::cut(
        context,
        answer_end.max(at.l4_offset + size_of::<TcpHeader>()),
    )?;
    let frame = frame(context);
    let syn = frame.read::<TcpHeader>(at.l4_offset)?;
    let (isn, stamp) = (numbers as u32, (numbers >> 32) as u32);
    let said = agreed.answer(isn, stamp, (&syn, &offered), say);
    let answer = Answer {
        header: said.header,
        options: Written::write(&frame, ip_end, said.options, said.option_words)?,
        fragment_be: DONT_FRAGMENT_BE,
    };
    H::write(&frame, at.ip_offset, &answer)?;
    count::note(Step::CookieSent);
    if !explaining() {
        let stats = stats(at)?;
        // SAFETY: a field of a per-CPU map value.
        unsafe { count::add(&raw mut stats.cookies, at.length()) };
    }
    Some(())
}

/// What [`cookie::options`] finds in a segment's header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_tcp_options(context: *mut xdp_md, what: u64, echo: bool) -> u64 {
    let start = Where::unpack(what).l4_offset;
    let frame = frame(context);
    let Some(segment) = frame.read::<TcpHeader>(start) else {
        return 0;
    };
    let stamp = if echo { Stamp::Echo } else { Stamp::Value };
    let header_bytes = usize::from(segment.header_length >> 4) * 4;
    cookie::options(&frame, start, header_bytes, stamp)
}
