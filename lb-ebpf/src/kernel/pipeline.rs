//! The life of a packet, as a list of questions. A step returns what the next one needs, or ends the packet.

use core::hint::cold_path;

use aya_ebpf::bindings::{xdp_action, xdp_md};

use super::{
    Verdict, amplification,
    challenge::{self, By},
    cookie::{self, Shown},
    count, echo, element,
    flows::{self, Known, NewFlow, Picked, Pressure},
    forward::{Outgoing, forward},
    fragments::{self, Decided},
    host, jiffies,
    limits::{Sender, admit},
    maps::{AGE_SHIFT, QUOTED, SLOTS, VIPS, explaining, settings},
    out_of_state, reset,
    rules::{self, Meets, Ruled},
    sample::{self, End},
    sanity, sources,
    vips::{self, Found},
};
use crate::{
    abi::{
        AddressEntry, Class, DropReason, HANDSHAKE_TICKS, HOST_VIP, NO_BACKEND, NO_VIP, SLOT_MOVED,
        SLOTS_PER_WORD, Settings, Step, VIP_HASH_SOURCE, VIP_MOVED, Vip,
    },
    context::frame,
    flow::State,
    forget,
    hash::{self, Tuple},
    hide,
    packet::{
        self, Fragment, ICMP, ICMPV6, IPV4_BE, IPV6_BE, Ip, L4, TCP, TCP_ACK, TCP_RST, TCP_SYN,
        Transport, UDP, is_echo_request, is_icmp_error,
    },
};

/// A packet for one of our VIPs, and what has been learned of it.
pub struct Packet<'a> {
    pub context: *mut xdp_md,
    pub settings: &'static Settings,
    pub ip: &'a Ip,
    tuple: Tuple,
    transport: Transport,
    pub fragment: Fragment,
    pub l4_offset: usize,
    pub vip_index: u16,
    pub vip: &'static Vip,
    pub jiffies: u64,
    /// Whether its protocol was known when this was compiled.
    plain: bool,
    address: &'static AddressEntry,
}

/// What the XDP program does.
#[inline(always)]
#[must_use]
pub fn run(context: *mut xdp_md) -> u32 {
    let frame = frame(context);
    let Some(settings) = settings() else {
        return xdp_action::XDP_PASS;
    };
    // Each family's path is compiled for itself: neither pays for the other's addresses.
    match packet::ethernet(&frame) {
        Some((IPV4_BE, offset)) => meet(context, settings, IPV4_BE, offset),
        Some((IPV6_BE, offset)) => meet(context, settings, IPV6_BE, offset),
        _ => not_ours(context, settings, Step::NotIp, frame.len() as u32),
    }
}

/// An IP packet that may be for one of our addresses.
#[inline(always)]
fn meet(context: *mut xdp_md, settings: &'static Settings, ethertype: u16, offset: usize) -> u32 {
    let frame = frame(context);
    // However many tags there are, the rest is followed once.
    let offset = forget(offset, frame.len()) & 31;
    let Some(ip) = packet::ip(&frame, ethertype, offset) else {
        return not_ours(context, settings, Step::NotIp, frame.len() as u32);
    };
    let Some(address) = vips::find_address(settings, ip.destination, ip.v6) else {
        return not_ours(context, settings, Step::NotVipAddress, ip.length);
    };
    count::note(Step::Address);
    balance(context, settings, &ip, &address)
}

#[inline(always)]
fn not_ours(context: *mut xdp_md, settings: &Settings, why: Step, bytes: u32) -> u32 {
    count::note(why);
    count::left(NO_VIP, xdp_action::XDP_PASS, bytes);
    let end = End::without_backend(NO_VIP, xdp_action::XDP_PASS, 0);
    sample::sample(context, settings, &end);
    xdp_action::XDP_PASS
}

/// A packet for one of our addresses: to a backend, or to another end.
///
/// TCP and UDP without options or fragments is compiled for itself, as each family is: what is known of a packet need
/// not be asked again.
#[inline(always)]
fn balance(context: *mut xdp_md, settings: &'static Settings, ip: &Ip, address: &Found) -> u32 {
    if ip.is_whole() && ip.header_length == header_bytes(ip) {
        match ip.protocol {
            TCP => return serve(context, settings, ip, Some(TCP), address),
            UDP => return serve(context, settings, ip, Some(UDP), address),
            _ => {}
        }
    }
    serve(context, settings, ip, None, address)
}

/// Length of an IP header without options.
#[inline(always)]
const fn header_bytes(ip: &Ip) -> u32 {
    if ip.v6 { 40 } else { 20 }
}

/// Serves a packet, and counts its end if that is not a backend. `plain` is a protocol that follows the header at once.
#[inline(always)]
fn serve(
    context: *mut xdp_md,
    settings: &'static Settings,
    ip: &Ip,
    plain: Option<u8>,
    address: &Found,
) -> u32 {
    let mut vip_index = address.entry.icmp_vip;
    let verdict = match try_to_serve(context, settings, ip, plain, address, &mut vip_index) {
        Ok(action) => return action,
        Err(verdict) => verdict,
    };
    let nth = count::ended(vip_index, verdict, ip.length);
    let (action, reason) = match verdict {
        Verdict::Pass => (xdp_action::XDP_PASS, 0),
        Verdict::Reply => (xdp_action::XDP_TX, 0),
        Verdict::Drop(reason) => (xdp_action::XDP_DROP, reason as u32 + 1),
    };
    let end = End::without_backend(vip_index, action, reason);
    sample::sample(context, settings, &end);
    if vip_index != NO_VIP {
        sample::watch(context, settings, &end, nth);
    }
    action
}

/// From the transport header to a backend. `vip_index` tells whose counters the packet goes to, also when it ends here.
#[inline(always)]
fn try_to_serve(
    context: *mut xdp_md,
    settings: &'static Settings,
    ip: &Ip,
    plain: Option<u8>,
    address: &Found,
    vip_index: &mut u16,
) -> Result<u32, Verdict> {
    let l4 = match plain {
        Some(protocol) => L4 {
            offset: ip.offset + header_bytes(ip) as usize,
            protocol,
            fragment: Fragment::Whole,
        },
        None => skip_options(context, ip).map_err(malformed)?,
    };
    let l4 = &l4;
    if !is_ours(ip, l4) {
        *vip_index = NO_VIP;
        count::note(Step::NotVipService);
        return Err(Verdict::Pass);
    }
    let frame = frame(context);
    let transport = packet::transport(&frame, ip, l4).map_err(malformed)?;
    let transport = match plain {
        Some(_) => transport,
        None => transport.defined(),
    };
    let wrong = sanity::look(context, ip, l4, &transport);
    let (tuple, found) = match transport {
        Transport::Tcp { ports, .. } | Transport::Udp { ports } => {
            let tuple = tuple(ip, ports, l4.protocol);
            (
                tuple,
                vips::find_service(address, l4.protocol, u16::from_be((ports >> 16) as u16)),
            )
        }
        Transport::NoPorts => {
            let vip = fragment_vip(address.entry, l4.protocol);
            (tuple(ip, 0, l4.protocol), (vip != NO_VIP).then_some(vip))
        }
        Transport::Icmp { kind } => {
            let quoted = steer_icmp(
                context,
                ip,
                l4,
                (kind, wrong),
                address.entry,
                settings,
                vip_index,
            )?;
            (
                quoted,
                vips::find_service(
                    address,
                    quoted.protocol,
                    u16::from_be((quoted.ports >> 16) as u16),
                ),
            )
        }
        Transport::Other => return Err(Verdict::Drop(DropReason::FragmentProtocol)),
    };
    // An ICMP error that quotes a port of ours that is no VIP is about a flow of the host itself.
    let Some(index) = found else {
        *vip_index = NO_VIP;
        count::note(Step::NotVipService);
        return Err(Verdict::Pass);
    };
    if index == HOST_VIP {
        cold_path();
        *vip_index = NO_VIP;
        count::note(Step::Protected);
        return Err(Verdict::Pass);
    }
    *vip_index = index;
    count::note(Step::Vip);
    count::note_vip(index);
    let Some(vip) = VIPS.get(u32::from(index)) else {
        return Err(Verdict::Pass);
    };
    if host::takes(ip, vip) {
        *vip_index = NO_VIP;
        count::note(Step::Protected);
        return Err(Verdict::Pass);
    }
    sanity::check(wrong, ip, vip, index)?;
    fragments::check(l4.fragment, ip, vip, index)?;
    sources::check(settings, ip, vip, index, plain.is_some())?;
    let jiffies = jiffies();
    let packet = Packet {
        context,
        settings,
        ip,
        tuple,
        transport,
        fragment: l4.fragment,
        l4_offset: l4.offset,
        vip_index: index,
        vip,
        jiffies,
        plain: plain.is_some(),
        address: address.entry,
    };
    let flow = hash::flow(&settings.flow_key, &packet.tuple);
    let backend = pick(&packet, flow)?;
    send(&packet, flow, backend)
}

/// The VIP of this address and protocol that packets without ports count as, or `NO_VIP`.
#[inline(always)]
fn fragment_vip(address: &AddressEntry, protocol: u8) -> u16 {
    if protocol == TCP {
        address.tcp_fragment_vip
    } else {
        address.udp_fragment_vip
    }
}

#[inline(always)]
fn malformed(reason: DropReason) -> Verdict {
    cold_path();
    count::note(Step::Malformed);
    Verdict::Drop(reason)
}

/// Whether the protocol is one that we balance or answer. Any other goes to the host untouched.
///
/// A later IPv6 fragment may begin with another extension header: what follows it stands in the first one only.
#[inline(always)]
fn is_ours(ip: &Ip, l4: &L4) -> bool {
    let hidden =
        ip.v6 && matches!(l4.fragment, Fragment::Later(_)) && packet::is_extension(l4.protocol);
    l4.protocol == TCP
        || l4.protocol == UDP
        || l4.protocol == if ip.v6 { ICMPV6 } else { ICMP }
        || hidden
}

#[inline(always)]
fn tuple(ip: &Ip, ports: u32, protocol: u8) -> Tuple {
    Tuple {
        source: ip.source,
        destination: ip.destination,
        ports,
        protocol,
        v6: ip.v6,
    }
}

/// ICMP: errors go on with the flow that they quote; echo is answered; the rest is the host's.
#[inline(always)]
fn steer_icmp(
    context: *mut xdp_md,
    ip: &Ip,
    l4: &L4,
    (kind, wrong): (u8, u32),
    address: &AddressEntry,
    settings: &'static Settings,
    vip_index: &mut u16,
) -> Result<Tuple, Verdict> {
    let echo = is_echo_request(ip.v6, kind);
    if !echo && !is_icmp_error(ip.v6, kind) {
        count::note(Step::OtherIcmp);
        *vip_index = NO_VIP;
        return Err(Verdict::Pass);
    }
    if !matches!(l4.fragment, Fragment::Whole) {
        return Err(Verdict::Drop(DropReason::FragmentProtocol));
    }
    if echo {
        count::note(Step::Echo);
        let Some(vip) = VIPS.get(u32::from(address.icmp_vip)) else {
            return Err(Verdict::Pass);
        };
        if host::takes(ip, vip) {
            *vip_index = NO_VIP;
            count::note(Step::Protected);
            return Err(Verdict::Pass);
        }
        sanity::check(wrong, ip, vip, address.icmp_vip)?;
        sources::check(settings, ip, vip, address.icmp_vip, false)?;
        let stats = count::class(address.icmp_vip, Class::Icmp, ip.length);
        sanity::check_source(settings, ip, vip, address.icmp_vip)?;
        let jiffies = jiffies();
        let ruled = rules::check(&Meets {
            context,
            settings,
            ip,
            transport: &Transport::Icmp { kind },
            protocol: l4.protocol,
            fragment: l4.fragment,
            l4_offset: l4.offset,
            vip_index: address.icmp_vip,
            vip,
            class: Class::Icmp,
            jiffies,
        })?;
        let sender = Sender {
            source: ip.source,
            v6: ip.v6,
            class: Class::Icmp,
            vip: address.icmp_vip,
            length: ip.length,
            jiffies,
            stats,
            plain: false,
        };
        if ruled != Ruled::Pass {
            admit(settings, &sender, vip).map_err(Verdict::Drop)?;
        }
        return Err(echo::reply(context, ip, l4));
    }
    count::note(Step::IcmpError);
    let offsets = (ip.offset as u32) << 16 | l4.offset as u32 + 8;
    let (true, Some(quoted)) = (
        sluice_quoted(context, offsets, ip.length, ip.v6),
        QUOTED.get(0),
    ) else {
        return Err(Verdict::Drop(DropReason::IcmpQuote));
    };
    Ok(Tuple {
        v6: ip.v6,
        ..*quoted
    })
}

/// Reads the packet that an ICMP error quotes, and leaves the tuple of its flow in `QUOTED`.
///
/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_quoted(context: *mut xdp_md, offsets: u32, length: u32, v6: bool) -> bool {
    let frame = frame(context);
    let (outer, inner) = ((offsets >> 16) as usize & 31, offsets as usize & 0xffff);
    let both = if v6 {
        packet::ipv6(&frame, outer).zip(packet::ipv6(&frame, inner))
    } else {
        packet::ipv4(&frame, outer).zip(packet::ipv4(&frame, inner))
    };
    let Some((outer, inner)) = both else {
        return false;
    };
    let Ok(l4) = skip_options(context, &inner) else {
        return false;
    };
    let outer = Ip { length, ..outer };
    let (Some(tuple), Some(quoted)) = (
        packet::quoted(&frame, &outer, &inner, &l4),
        QUOTED.get_ptr_mut(0),
    ) else {
        return false;
    };
    // SAFETY: a value of a per-CPU map.
    unsafe { quoted.write(tuple) };
    true
}

/// Where the transport header is.
#[inline(always)]
pub fn skip_options(context: *mut xdp_md, ip: &Ip) -> Result<L4, DropReason> {
    if !ip.v6 {
        return packet::skip_options(ip);
    }
    packet::unpack(if packet::is_extension(ip.protocol) {
        sluice_extensions(context, ip.offset as u32 + 40, ip.protocol)
    } else {
        // One number, for a whole packet's fragment has no id, and the verifier refuses to copy what LLVM leaves undefined.
        hide(packet::no_extensions(ip) as usize) as u64
    })
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_extensions(context: *mut xdp_md, offset: u32, protocol: u8) -> u64 {
    packet::extensions(&frame(context), offset as usize, protocol)
}

/// The backend for a packet: where its flow is, or else a new choice, if its source is within its limits.
///
/// What is dropped for its source never costs a read of the flow table, which is the dearest step, unless its class
/// depends on it.
#[inline(always)]
fn pick(packet: &Packet<'_>, flow: u64) -> Result<Picked, Verdict> {
    let whole = matches!(packet.fragment, Fragment::Whole);
    let known = match packet.transport {
        Transport::Tcp { flags, .. } if is_syn(flags) => {
            filter(packet, Class::Syn, flow)?;
            out_of_state::note_syn(packet.vip, flow, packet.jiffies);
            let slot = slot(&packet.vip.table, slot_hash(packet, flow));
            if whole && !may_be_elsewhere(packet.vip, slot) {
                return chosen(packet, slot);
            }
            flows::find(flow, true, packet.jiffies)
        }
        Transport::Tcp { flags, .. } => {
            let known = flows::find(flow, true, packet.jiffies);
            if known.is_proven() {
                filter(packet, Class::Established, flow)?;
            } else {
                filter(packet, Class::Other, flow)?;
            }
            // One that acknowledges answers no challenge (RFC 9293, 3.10.7.3).
            if flags & (TCP_RST | TCP_ACK) == TCP_RST {
                challenge::meet_reset(packet)?;
            }
            known.seen(true, packet.vip, packet.jiffies);
            known
        }
        Transport::Udp { .. } => {
            filter(packet, Class::Udp, flow)?;
            let known = flows::find(flow, false, packet.jiffies);
            known.seen(false, packet.vip, packet.jiffies);
            known
        }
        Transport::Icmp { .. } => {
            filter(packet, Class::Icmp, flow)?;
            flows::find(flow, packet.tuple.protocol == TCP, packet.jiffies)
        }
        _ => {
            filter(packet, Class::Other, flow)?;
            Known::NOTHING
        }
    };
    if !whole {
        return pick_for_fragment(packet, flow, known);
    }
    match known.picked() {
        Some(picked) => Ok(picked),
        None => choose(packet, flow),
    }
}

/// What a packet of a class has to pass before it may have a backend: the filter's stages, then its source's limits.
#[inline(always)]
fn filter(packet: &Packet<'_>, class: Class, flow: u64) -> Result<(), Verdict> {
    let stats = count::class(packet.vip_index, class, packet.ip.length);
    if !matches!(class, Class::Established) {
        sanity::check_source(packet.settings, packet.ip, packet.vip, packet.vip_index)?;
    }
    if let Transport::Udp { ports } = packet.transport
        && amplification::is_on(packet.vip)
        && !sources::is_allowed(packet.settings, packet.ip, packet.vip, packet.vip_index)
    {
        cold_path();
        check_amplification(packet, u16::from_be(ports as u16))?;
    }
    let ruled = rules::check(&Meets {
        context: packet.context,
        settings: packet.settings,
        ip: packet.ip,
        transport: &packet.transport,
        protocol: packet.tuple.protocol,
        fragment: packet.fragment,
        l4_offset: packet.l4_offset,
        vip_index: packet.vip_index,
        vip: packet.vip,
        class,
        jiffies: packet.jiffies,
    })?;
    if ruled == Ruled::Pass {
        return Ok(());
    }
    if matches!(class, Class::Syn) {
        let by = if ruled == Ruled::Challenge {
            By::Rule
        } else {
            By::Policy
        };
        challenge::meet_syn(packet, flow, by)?;
    }
    let sender = Sender {
        source: packet.ip.source,
        v6: packet.ip.v6,
        class,
        vip: packet.vip_index,
        length: packet.ip.length,
        jiffies: packet.jiffies,
        stats,
        plain: packet.plain,
    };
    admit(packet.settings, &sender, packet.vip).map_err(Verdict::Drop)
}

/// Drops an answer that nobody asked for, and lets the other fragments of its datagram follow it.
#[inline(always)]
fn check_amplification(packet: &Packet<'_>, source_port: u16) -> Result<(), Verdict> {
    let vip = (packet.vip, packet.vip_index);
    let Some(dropped) = amplification::check(packet.context, packet.ip, vip, source_port) else {
        return Ok(());
    };
    if let (Fragment::First(id), Some(tuple)) = (packet.fragment, QUOTED.get_ptr_mut(0))
        && !explaining()
    {
        // SAFETY: a value of a per-CPU map.
        unsafe { tuple.write(packet.tuple) };
        sluice_remember_dropped(id, dropped.0, packet.jiffies);
    }
    Err(Verdict::Drop(DropReason::Amplification))
}

/// Remembers the datagram whose tuple is in `QUOTED` as one that was dropped.
///
/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_remember_dropped(id: u32, dropped: u16, jiffies: u64) -> u32 {
    if let (Some(settings), Some(tuple)) = (settings(), QUOTED.get(0)) {
        let datagram = fragments::hash(&settings.local_key, tuple, id);
        fragments::remember(datagram, dropped, jiffies, Decided::First);
    }
    0
}

/// Whether a flow with the five-tuple of a SYN may be at another backend than its slot's: then the flow table is asked.
///
/// The slot tells where flows of it are, unless it moved; the daemon marks the ones that did, until their flows are gone.
#[inline(always)]
fn may_be_elsewhere(vip: &Vip, slot: u16) -> bool {
    slot & SLOT_MOVED != 0 || vip.flags & (VIP_HASH_SOURCE | VIP_MOVED) != 0
}

/// All fragments of a datagram go where the one that was seen first went.
#[inline(always)]
fn pick_for_fragment(packet: &Packet<'_>, flow: u64, known: Known) -> Result<Picked, Verdict> {
    let (id, by) = match packet.fragment {
        Fragment::First(id) => (id, Decided::First),
        Fragment::Later(id) => (id, Decided::Later),
        Fragment::Whole => (0, Decided::First),
    };
    count::note(if by == Decided::First {
        Step::FirstFragment
    } else {
        Step::LaterFragment
    });
    let datagram = fragments::hash(&packet.settings.local_key, &packet.tuple, id);
    // A forged fragment never leads a TCP flow astray, and none leads a packet to another VIP's backend.
    let bound = known.picked().is_some() && packet.tuple.protocol == TCP
        || by == Decided::First
            && fragment_vip(packet.address, packet.tuple.protocol) != packet.vip_index;
    if !bound {
        let found = fragments::find(datagram, packet.jiffies, by);
        if amplification::Dropped::is(found) {
            return Err(amplification::drop_fragment(found, packet.ip.length));
        }
        if let Some(picked) = flows::backend_that_forwards(found) {
            count::note(Step::FragmentKnown);
            return Ok(picked);
        }
    }
    let picked = match known.picked() {
        Some(picked) => picked,
        None => choose(packet, flow)?,
    };
    fragments::remember(datagram, picked.index, packet.jiffies, by);
    Ok(picked)
}

#[inline(always)]
const fn is_syn(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Chooses a backend for a packet without a flow, and remembers the flow if the packet is no SYN.
#[inline(always)]
fn choose(packet: &Packet<'_>, flow: u64) -> Result<Picked, Verdict> {
    count::note(Step::FlowUnknown);
    let hash = slot_hash(packet, flow);
    let mut backend = slot(&packet.vip.table, hash);
    let mut remember = match packet.transport {
        Transport::Icmp { .. } | Transport::NoPorts => None,
        _ => Some(State::Unproven),
    };
    let mut pressure = Pressure::Full;
    let mut unmarked = NO_BACKEND;
    let shown = match packet.transport {
        Transport::Tcp { flags, .. } if !is_syn(flags) => {
            count::out_of_state(packet.vip_index);
            Some(cookie::meet_first(packet))
        }
        // A later fragment, of a datagram that nothing is known of.
        Transport::NoPorts if packet.tuple.protocol == TCP => Some(Shown::Nothing),
        _ => None,
    };
    match shown {
        Some(Shown::Cookie) => remember = Some(State::Proven),
        Some(shown)
            if !sources::is_allowed(packet.settings, packet.ip, packet.vip, packet.vip_index) =>
        {
            out_of_state::check(packet, flow, shown)?;
        }
        _ => {}
    }
    if let Transport::Tcp { flags, .. } = packet.transport {
        let syn = is_syn(flags);
        if syn {
            remember = None;
        }
        // While handshakes from before a switch are under way, a SYN whose slot moved leaves a mark, and what has
        // none follows the old table: its ACK will, so a SYN whose mark finds no room does too. One whose old backend
        // is down leaves its mark for the time when that is back.
        if handshakes_under_way(packet) {
            let previous = slot(&packet.vip.previous_table, hash) & !SLOT_MOVED;
            if previous != backend & !SLOT_MOVED {
                if syn {
                    remember = Some(State::Unproven);
                    pressure = Pressure::Gentle;
                    unmarked = previous;
                } else if flows::backend_that_forwards(previous).is_some() {
                    count::note(Step::ChosenPrevious);
                    backend = previous;
                }
            }
        }
    }
    let picked = chosen(packet, backend)?;
    if let Some(state) = remember {
        let new = NewFlow {
            backend: picked.index,
            vip: packet.vip_index,
            state: enters_as(packet, state),
            pressure,
        };
        if flows::remember(flow, &new, packet.jiffies) {
            count::note(Step::Remembered);
        } else if let Some(previous) = flows::backend_that_forwards(unmarked) {
            count::note(Step::ChosenPrevious);
            return Ok(previous);
        }
    }
    Ok(picked)
}

/// What a flow is when it enters the table: proven also if its source was, and this is the first packet after its SYN.
#[inline(always)]
fn enters_as(packet: &Packet<'_>, state: State) -> State {
    let after_syn = matches!(packet.transport, Transport::Tcp { flags, .. } if !is_syn(flags));
    if after_syn && challenge::is_flow_of_proof(packet) {
        State::Proven
    } else {
        state
    }
}

/// The backend that a slot names.
#[inline(always)]
fn chosen(packet: &Packet<'_>, slot: u16) -> Result<Picked, Verdict> {
    let Some(picked) = flows::backend_that_forwards(slot & !SLOT_MOVED) else {
        cold_path();
        return Err(no_backend(packet));
    };
    count::note(Step::Chosen);
    Ok(picked)
}

/// The hash that a packet's slot comes from.
#[inline(always)]
fn slot_hash(packet: &Packet<'_>, flow: u64) -> u64 {
    if packet.vip.flags & VIP_HASH_SOURCE != 0 {
        hash::source(&packet.settings.flow_key, &packet.tuple)
    } else {
        flow
    }
}

/// A packet that nobody takes: TCP may be told.
#[inline(always)]
fn no_backend(packet: &Packet<'_>) -> Verdict {
    if let (Transport::Tcp { .. }, Fragment::Whole) = (&packet.transport, &packet.fragment)
        && let Ok(l4) = skip_options(packet.context, packet.ip)
    {
        return reset::reply(packet.context, packet.vip, packet.ip, &l4);
    }
    Verdict::Drop(DropReason::NoBackend)
}

/// Whether the VIP's table was switched so recently that a handshake can have begun before.
#[inline(always)]
fn handshakes_under_way(packet: &Packet<'_>) -> bool {
    // The clock of another CPU may be a jiffy ahead, which is no time at all.
    let since = packet.jiffies.wrapping_sub(packet.vip.switched) as i64;
    packet.vip.previous_table != 0 && since < i64::from(HANDSHAKE_TICKS) << (AGE_SHIFT.load() & 63)
}

/// What stands in a table's slot for this hash.
#[inline(always)]
fn slot(table: &u64, hash: u64) -> u16 {
    // One load: the daemon switches tables by one store.
    // SAFETY: a reference is valid.
    let table = unsafe { core::ptr::from_ref(table).read_volatile() };
    let slots = (table >> 32) as u32;
    if slots == 0 {
        return NO_BACKEND;
    }
    let index = table as u32 + hash::slot(hash, slots);
    match SLOTS.get(index / SLOTS_PER_WORD as u32) {
        Some(word) => element(word, index),
        None => NO_BACKEND,
    }
}

/// Sends a packet to its backend, and counts it.
#[inline(always)]
fn send(packet: &Packet<'_>, hash: u64, picked: Picked) -> Result<u32, Verdict> {
    let Picked { index, backend } = picked;
    count::note_backend(index);
    let Packet {
        context,
        settings,
        ip,
        vip,
        vip_index,
        ..
    } = *packet;
    let is_icmp = matches!(packet.transport, Transport::Icmp { .. });
    let later = matches!(packet.fragment, Fragment::Later(_));
    let action = forward(&Outgoing {
        context,
        ip,
        settings,
        vip,
        backend,
        hash,
        answerable: !is_icmp && !later,
    })?;
    let nth = count::left(vip_index, action, ip.length);
    count::sent(index, ip.length);
    let end = End {
        vip: vip_index,
        backend: index,
        action,
        reason: 0,
    };
    sample::sample(context, settings, &end);
    sample::watch(context, settings, &end, nth);
    Ok(action)
}
