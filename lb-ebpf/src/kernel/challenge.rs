//! SYNs of a VIP under attack: answered with a challenge, until their source has shown that it gets our packets.
//!
//! A SYN that is challenged is not forwarded, and writes one entry of four bytes beside counters. What a forged source can
//! bring about is an answer to somebody else, no longer than the SYN, and that a SYN is forgotten which might have come again.

use core::hint::cold_path;

use aya_ebpf::bindings::xdp_md;

use super::{
    Verdict,
    answer::{self, Answer, Options},
    compare_exchange, cookie, count,
    maps::{
        AGE_SHIFT, CHALLENGE_GATE, CHALLENGE_STATS, CHALLENGED, CHALLENGES, EPOCH_SHIFT, PROOFS,
        VIPS, explaining, settings,
    },
    pipeline::Packet,
};
use crate::{
    abi::{
        CHALLENGED_SYNS, Challenge, ChallengeStats, DropReason, Limiter, PROOF_BUCKETS,
        RULES_CHALLENGE, SYN_ALWAYS, SYN_AUTO, SYN_COOKIE, SYN_MONITOR, Settings, Step,
    },
    challenge::{self, Proof, SEEN_SHIFT, Seen},
    checksum::{fold, sum64},
    context::frame,
    flow::WAYS,
    gcra,
    hash::{self, Tuple},
    hide,
    packet::{self, Fragment, Frame, Ipv4Header, Ipv6Header, TCP},
    reset::TcpHeader,
};

/// Asks a SYN's source to prove itself, or answers for the backend with a cookie, if its VIP or a rule wants that, and the
/// source has not proved itself lately.
#[inline(always)]
pub fn meet_syn(packet: &Packet<'_>, flow: u64, by: By) -> Result<(), Verdict> {
    let mode = match by {
        By::Policy => packet.vip.syn,
        By::Rule => SYN_ALWAYS | packet.vip.syn & SYN_COOKIE,
    };
    if mode & (SYN_AUTO | SYN_ALWAYS) == 0 {
        return Ok(());
    }
    cold_path();
    let what = Where::of(packet).pack() | u64::from(mode) << MODE_SHIFT;
    let answered = match sluice_challenge_syn(packet.context, what, flow, packet.jiffies) {
        LET_IN => return Ok(()),
        WANTS_COOKIE => cookie::answer(packet, what),
        ended => ended == ANSWERED,
    };
    Err(if answered {
        Verdict::Reply
    } else {
        Verdict::Drop(DropReason::SynChecksum)
    })
}

/// Who wants a SYN challenged.
#[derive(Clone, Copy)]
pub enum By {
    Policy,
    Rule,
}

/// Takes a reset that answers a challenge: its source is proven from here on.
#[inline(always)]
pub fn meet_reset(packet: &Packet<'_>) -> Result<(), Verdict> {
    if !is_on(packet) || !matches!(packet.fragment, Fragment::Whole) {
        return Ok(());
    }
    cold_path();
    if sluice_challenge_answer(packet.context, Where::of(packet).pack(), packet.jiffies) {
        return Err(Verdict::Drop(DropReason::ChallengeAnswer));
    }
    Ok(())
}

/// Whether the first packet after its SYN is of a flow that a proven source was to begin: then so is the flow.
#[inline(always)]
pub fn is_flow_of_proof(packet: &Packet<'_>) -> bool {
    let [high, low] = packet.ip.source;
    let proven =
        is_on(packet) && sluice_flow_of_proof(high, low, u32::from(packet.ip.v6), packet.jiffies);
    if proven {
        count::note(Step::FlowOfProof);
    }
    proven
}

/// Whether SYNs like this packet's may have been challenged.
#[inline(always)]
fn is_on(packet: &Packet<'_>) -> bool {
    let syn = packet.vip.syn;
    syn & SYN_COOKIE == 0 && (syn != 0 || packet.settings.rules & RULES_CHALLENGE != 0)
}

/// What `sluice_challenge_syn` returns.
const LET_IN: u32 = 0;
const BAD_CHECKSUM: u32 = 1;
const ANSWERED: u32 = 2;
const WANTS_COOKIE: u32 = 3;

/// Every so many SYNs of a CPU are charged at once to the rate that all share: its line would go from CPU to CPU for each.
const CHARGED_AT_ONCE: u64 = 16;
/// Segments of more bytes are no SYNs that anybody sends.
const LONGEST_SYN_BYTES: usize = 1600;
const HEADER_BYTES: usize = size_of::<TcpHeader>();
/// The option of the answer, as far as it is asked for: the segment size of Ethernet.
const MSS_V4: u32 = u32::from_le_bytes([2, 4, 0x05, 0xb4]);
const MSS_V6: u32 = u32::from_le_bytes([2, 4, 0x05, 0xa0]);
pub(super) const DONT_FRAGMENT_BE: u16 = 0x4000u16.to_be();

/// Where a segment is, packed for the functions below.
pub(super) struct Where {
    pub(super) ip_offset: usize,
    pub(super) l4_offset: usize,
    pub(super) vip: u16,
    segment_bytes: u32,
    pub(super) v6: bool,
}

impl Where {
    #[inline(always)]
    pub(super) fn of(packet: &Packet<'_>) -> Self {
        let (ip_offset, l4_offset) = (packet.ip.offset, packet.l4_offset);
        let before = (l4_offset as u32).wrapping_sub(ip_offset as u32);
        Self {
            ip_offset,
            l4_offset,
            vip: packet.vip_index,
            segment_bytes: packet.ip.length.wrapping_sub(before),
            v6: packet.ip.v6,
        }
    }

    /// Bytes of the packet, from the IP header on.
    #[inline(always)]
    pub(super) fn length(&self) -> u32 {
        self.segment_bytes + (self.l4_offset as u32).wrapping_sub(self.ip_offset as u32)
    }

    #[inline(always)]
    pub(super) fn pack(&self) -> u64 {
        self.l4_offset as u64 & 0xffff
            | u64::from(self.vip) << 16
            | u64::from(self.segment_bytes & 0xffff) << 32
            | u64::from(self.v6) << 48
            | (self.ip_offset as u64 & 31) << 49
    }

    #[inline(always)]
    pub(super) fn unpack(what: u64) -> Self {
        Self {
            ip_offset: hide((what >> 49) as usize) & 31,
            l4_offset: what as usize & 0xffff,
            vip: (what >> 16) as u16,
            segment_bytes: (what >> 32) as u32 & 0xffff,
            v6: what >> 48 & 1 != 0,
        }
    }
}

/// Beside a packed [`Where`]: what the VIP does with SYNs.
const MODE_SHIFT: u32 = 56;
const COOKIE: u64 = (SYN_COOKIE as u64) << MODE_SHIFT;

/// Challenges a SYN; or tells that its source is proven, that it came again, that its checksum is wrong, or that a cookie is
/// to be its answer.
///
/// A global function, like those below: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_challenge_syn(
    context: *mut xdp_md,
    what: u64,
    flow: u64,
    jiffies: u64,
) -> u32 {
    let at = Where::unpack(what);
    if !is_due(context, &at, (what >> MODE_SHIFT) as u32, jiffies) {
        return LET_IN;
    }
    let sum = segment_sum(context, &at);
    let right = if at.v6 {
        is_right::<Ipv6Header>(context, &at, sum)
    } else {
        is_right::<Ipv4Header>(context, &at, sum)
    };
    if !right {
        return BAD_CHECKSUM;
    }
    if what & COOKIE != 0 {
        return WANTS_COOKIE;
    }
    let base = if at.v6 {
        base::<Ipv6Header>(context, &at, flow, jiffies)
    } else {
        base::<Ipv4Header>(context, &at, flow, jiffies)
    };
    let base = match base {
        Some(LET_IN_BASE) => return LET_IN,
        Some(base) => base,
        None => return BAD_CHECKSUM,
    };
    // Taken apart anew, as frames are read anew: what is kept meanwhile takes room on the stack.
    let at = Where::unpack(hide(what as usize) as u64);
    let sent = if at.v6 {
        send::<Ipv6Header>(context, &at, base)
    } else {
        send::<Ipv4Header>(context, &at, base)
    };
    if sent.is_some() {
        ANSWERED
    } else {
        BAD_CHECKSUM
    }
}

/// Whether a SYN is to be answered.
#[inline(always)]
fn is_due(context: *mut xdp_md, at: &Where, mode: u32, jiffies: u64) -> bool {
    let (Some(settings), Some(stats), Some(challenge)) = (
        settings(),
        stats(at),
        CHALLENGES.get_ptr_mut(u32::from(at.vip)),
    ) else {
        return false;
    };
    if !explaining() {
        stats.syns += 1;
    }
    if mode & SYN_ALWAYS == 0 && !is_over_rate(challenge, stats.syns, jiffies) {
        return false;
    }
    if mode & SYN_MONITOR != 0 {
        count::note(Step::ChallengeMonitored);
        if !explaining() {
            // SAFETY: a field of a per-CPU map value.
            unsafe { count::add(&raw mut stats.monitored, at.length()) };
        }
        return false;
    }
    if mode & SYN_COOKIE != 0 {
        // In nobody's name nothing is answered: the SYN ends like any other.
        return VIPS
            .get(u32::from(at.vip))
            .is_some_and(|vip| vip.table >> 32 != 0);
    }
    let frame = frame(context);
    let source = if at.v6 {
        source::<Ipv6Header>(&frame, at)
    } else {
        source::<Ipv4Header>(&frame, at)
    };
    let proven = source.is_some_and(|source| let_in(settings, source, at.v6, jiffies));
    if proven {
        count::note(Step::SourceProven);
        if !explaining() {
            stats.let_in += 1;
        }
    }
    !proven
}

/// What both families' headers tell.
pub(super) trait Header: Copy {
    const V6: bool;
    const MSS: u32;
    fn addresses(&self) -> [[u64; 2]; 2];
    fn sum(&self) -> u64;
    fn ttl(&self) -> u8;
    fn write(frame: &Frame, ip_offset: usize, answer: &Answer) -> Option<()>;
}

impl Header for Ipv4Header {
    const V6: bool = false;
    const MSS: u32 = MSS_V4;

    #[inline(always)]
    fn addresses(&self) -> [[u64; 2]; 2] {
        [
            packet::mapped(self.source),
            packet::mapped(self.destination),
        ]
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        u64::from(self.source) + u64::from(self.destination)
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn write(frame: &Frame, ip_offset: usize, answer: &Answer) -> Option<()> {
        answer::v4(frame, ip_offset, answer)
    }
}

impl Header for Ipv6Header {
    const V6: bool = true;
    const MSS: u32 = MSS_V6;

    #[inline(always)]
    fn addresses(&self) -> [[u64; 2]; 2] {
        [packet::words(self.source), packet::words(self.destination)]
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        let [source, destination] = self.addresses();
        sum64(source[0]) + sum64(source[1]) + sum64(destination[0]) + sum64(destination[1])
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn write(frame: &Frame, ip_offset: usize, answer: &Answer) -> Option<()> {
        answer::v6(frame, ip_offset, answer)
    }
}

#[inline(always)]
fn source<H: Header>(frame: &Frame, at: &Where) -> Option<[u64; 2]> {
    let [source, _] = frame.read::<H>(at.ip_offset)?.addresses();
    Some(source)
}

#[inline(always)]
pub(super) fn stats(at: &Where) -> Option<&'static mut ChallengeStats> {
    let stats = CHALLENGE_STATS.get_ptr_mut(u32::from(at.vip))?;
    // SAFETY: a value of a per-CPU map, which nothing else writes meanwhile.
    Some(unsafe { &mut *stats })
}

/// The header and the segment's own.
#[inline(always)]
pub(super) fn headers<H: Header>(frame: &Frame, at: &Where) -> Option<(H, TcpHeader, Tuple)> {
    let header = frame.read::<H>(at.ip_offset)?;
    let segment = frame.read::<TcpHeader>(at.l4_offset)?;
    let [source, destination] = header.addresses();
    let tuple = Tuple {
        source,
        destination,
        ports: u32::from(segment.source) | u32::from(segment.destination) << 16,
        protocol: TCP,
        v6: H::V6,
    };
    Some((header, segment, tuple))
}

/// `None`: its headers cannot be read.
#[inline(always)]
fn base<H: Header>(context: *mut xdp_md, at: &Where, flow: u64, jiffies: u64) -> Option<u64> {
    let settings = settings()?;
    let sequence_be = frame(context).read::<TcpHeader>(at.l4_offset)?.sequence_be;
    if came_again(settings, at, sequence_be, flow, jiffies) {
        count::note(Step::SynAgain);
        if !explaining() {
            stats(at)?.again += 1;
        }
        return Some(LET_IN_BASE);
    }
    // Read anew: what is kept meanwhile takes room on the stack.
    let frame = frame(context);
    let (_, _, tuple) = headers::<H>(&frame, at)?;
    let epoch = challenge::epoch(jiffies, EPOCH_SHIFT.load());
    Some(challenge::base(&settings.challenge_key, &tuple, epoch))
}

const LET_IN_BASE: u64 = 0;

#[inline(always)]
fn send<H: Header>(context: *mut xdp_md, at: &Where, base: u64) -> Option<()> {
    // An option that the SYN has no room for would make the answer the longer one.
    let option_words = usize::from(at.segment_bytes >= 24);
    // Before anything is read, for the same reason.
    let answer_bytes = size_of::<H>() + size_of::<TcpHeader>() + option_words * 4;
    answer::cut(
        context,
        (at.ip_offset + answer_bytes).max(at.l4_offset + size_of::<TcpHeader>()),
    )?;
    let frame = frame(context);
    let ttl = frame.read::<H>(at.ip_offset)?.ttl();
    let segment = frame.read::<TcpHeader>(at.l4_offset)?;
    let header = challenge::answer(base, &segment, ttl);
    let mss = if option_words == 0 { 0 } else { H::MSS };
    let ip_end = at.ip_offset + size_of::<H>();
    let answer = Answer {
        header,
        options: Options::write(&frame, ip_end, [mss], option_words)?,
        fragment_be: DONT_FRAGMENT_BE,
    };
    H::write(&frame, at.ip_offset, &answer)?;
    count::note(Step::Challenged);
    if !explaining() {
        let stats = stats(at)?;
        // SAFETY: a field of a per-CPU map value.
        unsafe { count::add(&raw mut stats.sent, at.length()) };
    }
    Some(())
}

/// Whether more SYNs come than are forwarded as they come, or did a short while ago.
#[inline(always)]
fn is_over_rate(challenge: *mut Challenge, syns: u64, jiffies: u64) -> bool {
    // SAFETY: fields of a map value: constants, and words that packets write.
    let (rate, hold, tat, until) = unsafe {
        (
            (*challenge).rate,
            (*challenge).hold,
            &raw mut (*challenge).rate_tat,
            &raw mut (*challenge).until,
        )
    };
    if rate.cost == 0 {
        return false;
    }
    if syns & (CHARGED_AT_ONCE - 1) == 0 && !explaining() {
        let now = gcra::time(jiffies);
        // SAFETY: a word of the map value. What another CPU adds meanwhile is lost: some SYNs of many.
        match gcra::admit(unsafe { tat.read_volatile() }, now, &rate, CHARGED_AT_ONCE) {
            // SAFETY: as above.
            Some(after) => unsafe { tat.write_volatile(after) },
            // SAFETY: as above.
            None => unsafe { until.write_volatile(jiffies.wrapping_add(hold)) },
        }
    }
    is_held(challenge, jiffies)
}

/// Whether more SYNs came a short while ago than are forwarded as they come.
#[inline(always)]
fn is_held(challenge: *const Challenge, jiffies: u64) -> bool {
    // SAFETY: callers give a map value.
    let hold = unsafe { (*challenge).hold };
    // SAFETY: as above; a word that packets write.
    let until = unsafe { (&raw const (*challenge).until).read_volatile() };
    challenge::is_before(until, hold, jiffies)
}

/// Whether SYNs of a VIP are answered just now.
#[inline(always)]
pub(super) fn is_in_force(at: &Where, mode: u32, jiffies: u64) -> bool {
    mode & SYN_ALWAYS != 0
        || mode & SYN_AUTO != 0
            && CHALLENGES
                .get_ptr(u32::from(at.vip))
                .is_some_and(|challenge| is_held(challenge, jiffies))
}

/// Whether a proof lets this SYN in. If so, its flow is proven when it comes.
#[inline(always)]
fn let_in(settings: &Settings, source: [u64; 2], v6: bool, jiffies: u64) -> bool {
    change_proof(settings, source, v6, |proof| proof.let_in(ticks(jiffies)))
}

/// Changes the proof of a source as a function says. Returns whether there is one, and it says so.
#[inline(always)]
fn change_proof(
    settings: &Settings,
    source: [u64; 2],
    v6: bool,
    change: impl FnOnce(Proof) -> Option<Proof>,
) -> bool {
    let hash = challenge::proof_hash(&settings.local_key, source, v6);
    let Some(words) = PROOFS.get_ptr_mut(hash as u32 & (PROOF_BUCKETS - 1)) else {
        return false;
    };
    let words = words.cast::<u64>();
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let read = |way| unsafe { words.add(way).read_volatile() };
    let Some(way) = challenge::find_proof(read, hash) else {
        return false;
    };
    // SAFETY: the mask keeps the index in the bucket for the verifier.
    let entry = unsafe { words.add(hide(way) & (WAYS - 1)) };
    // SAFETY: a word of the bucket.
    let Some(after) = change(Proof(unsafe { entry.read_volatile() })) else {
        return false;
    };
    if !explaining() {
        // SAFETY: as above. Another CPU's change may be lost: a SYN or a flow more or less.
        unsafe { entry.write_volatile(after.0) };
    }
    true
}

/// Whether this SYN was challenged a while ago, as one whose client did not get the answer, or could not say so. If not, it is
/// noted, so that the next one is known.
#[inline(always)]
fn came_again(settings: &Settings, at: &Where, sequence: u32, flow: u64, jiffies: u64) -> bool {
    let hash = hash::again(&settings.local_key, flow, u64::from(sequence));
    let Some(place) = CHALLENGED.get_ptr_mut(hash as u32 & (CHALLENGED_SYNS / 2 - 1)) else {
        return false;
    };
    let now = (jiffies >> (AGE_SHIFT.load().wrapping_sub(SEEN_SHIFT as u8) & 63)) as u32;
    // SAFETY: a word of a map value.
    match challenge::seen(unsafe { place.read_volatile() }, hash, now) {
        Seen::Again => {
            let Some(challenge) = CHALLENGES.get_ptr_mut(u32::from(at.vip)) else {
                return false;
            };
            // SAFETY: fields of a map value.
            let (limiter, tat) = unsafe { ((*challenge).again, &raw mut (*challenge).again_tat) };
            charge(tat, &limiter, jiffies)
        }
        Seen::Lately => false,
        Seen::New(word) => {
            if !explaining() {
                // SAFETY: as above. What another CPU wrote meanwhile is forgotten.
                unsafe { place.write_volatile(word) };
            }
            false
        }
    }
}

/// Charges one packet to a rate that all CPUs share; `false` if it is over.
#[inline(always)]
fn charge(tat: *mut u64, limiter: &Limiter, jiffies: u64) -> bool {
    // SAFETY: callers give a word of a map value.
    let old = unsafe { tat.read_volatile() };
    let Some(after) = gcra::admit(old, gcra::time(jiffies), limiter, 1) else {
        return false;
    };
    // SAFETY: as above. Who loses the race counts for nothing, once.
    explaining() || unsafe { compare_exchange(tat, old, after) } != u64::MAX
}

/// Whether the checksum of a segment with this sum is right.
#[inline(always)]
fn is_right<H: Header>(context: *mut xdp_md, at: &Where, sum: u64) -> bool {
    let Some(header) = frame(context).read::<H>(at.ip_offset) else {
        return false;
    };
    let pseudo = header.sum()
        + u64::from((at.segment_bytes as u16).to_be())
        + u64::from(u16::from(TCP).to_be());
    fold(fold_once(pseudo) + fold_once(sum)) == 0xffff
}

#[inline(always)]
const fn fold_once(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// The sum of a segment's words; zero if it is too long to be a SYN, which is never right.
#[inline(always)]
fn segment_sum(context: *mut xdp_md, at: &Where) -> u64 {
    let frame = frame(context);
    let (offset, bytes) = (at.l4_offset, at.segment_bytes as usize);
    let Some(header) = frame.read::<[u32; HEADER_BYTES / 4]>(offset) else {
        return 0;
    };
    let mut sum = header.into_iter().map(u64::from).sum();
    let mut at = HEADER_BYTES;
    for _ in 0..(LONGEST_SYN_BYTES - HEADER_BYTES) / 8 {
        if at + 8 > bytes {
            break;
        }
        let Some(word) = frame.read::<u64>(offset + at) else {
            return 0;
        };
        sum += sum64(word);
        at += 8;
    }
    let rest = bytes.wrapping_sub(at);
    if rest != 0 {
        // The last eight bytes, without those that were summed up.
        let Some(word) = frame.read::<u64>((offset + bytes).wrapping_sub(8)) else {
            return 0;
        };
        sum += sum64(word >> (8usize.wrapping_sub(rest) * 8 & 63));
    }
    sum
}

/// Whether a reset contradicts the challenge that was sent to its source; then that is proven.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_challenge_answer(context: *mut xdp_md, what: u64, jiffies: u64) -> bool {
    let at = Where::unpack(what);
    let (Some(settings), Some(stats), Some(gate)) = (
        settings(),
        stats(&at),
        CHALLENGE_GATE.get_ptr_mut(u32::from(at.vip)),
    ) else {
        return false;
    };
    if !explaining() {
        // Each CPU has its share.
        // SAFETY: a value of a per-CPU map.
        let tat = unsafe { *gate };
        let limiter = &settings.challenge_answers;
        let cpus = u64::from(settings.cpus);
        let Some(after) = gcra::admit(tat, gcra::time(jiffies), limiter, cpus) else {
            stats.capped += 1;
            return false;
        };
        // SAFETY: as above.
        unsafe { *gate = after };
    }
    let proved = if at.v6 {
        proves::<Ipv6Header>(context, &at, settings, jiffies)
    } else {
        proves::<Ipv4Header>(context, &at, settings, jiffies)
    };
    if explaining() {
        if proved {
            count::note(Step::ChallengeAnswer);
        }
    } else if proved {
        stats.proved += 1;
    } else {
        stats.failed += 1;
    }
    proved
}

#[inline(always)]
fn proves<H: Header>(context: *mut xdp_md, at: &Where, settings: &Settings, jiffies: u64) -> bool {
    let frame = frame(context);
    let Some((header, segment, tuple)) = headers::<H>(&frame, at) else {
        return false;
    };
    let shift = EPOCH_SHIFT.load();
    let epoch = challenge::epoch(jiffies, shift);
    let young = challenge::is_young(jiffies, shift);
    let mut proved = false;
    for before in 0..1 + u64::from(young) {
        let base = challenge::base(&settings.challenge_key, &tuple, epoch.wrapping_sub(before));
        let sequence = u32::from_be(segment.sequence_be);
        if challenge::contradicts(base, sequence, header.ttl()) {
            proved = true;
            break;
        }
    }
    if proved && !explaining() {
        remember(settings, &tuple, jiffies);
    }
    proved
}

/// Writes a proof down.
#[inline(always)]
fn remember(settings: &Settings, tuple: &Tuple, jiffies: u64) {
    let hash = challenge::proof_hash(&settings.local_key, tuple.source, tuple.v6);
    let bucket = hash as u32 & (PROOF_BUCKETS - 1);
    let Some(words) = PROOFS.get_ptr_mut(bucket) else {
        return;
    };
    let words = words.cast::<u64>();
    let now = ticks(jiffies);
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let way = challenge::place_proof(|way| unsafe { words.add(way).read_volatile() }, hash, now);
    // SAFETY: the mask keeps the index in the bucket for the verifier.
    let entry = unsafe { words.add(hide(way) & (WAYS - 1)) };
    // SAFETY: a word of the bucket.
    unsafe { entry.write_volatile(Proof::new(hash, now).0) };
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_flow_of_proof(high: u64, low: u64, v6: u32, jiffies: u64) -> bool {
    let Some(settings) = settings() else {
        return false;
    };
    change_proof(settings, [high, low], v6 != 0, |proof| {
        proof.flow_came(ticks(jiffies))
    })
}

/// Now, in ticks of a proof.
#[inline(always)]
fn ticks(jiffies: u64) -> u16 {
    (jiffies >> (AGE_SHIFT.load() & 63)) as u16
}
