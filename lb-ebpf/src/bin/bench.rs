//! Programs that the bench and the lab need: floors to compare with, and a wrapper that repairs the frame before each run.
//!
//! A test run that repeats does not restore the frame, so that from the second time on an encapsulating program would see
//! its own output. `wrap` cuts the frame back to its length, rewrites what a program changed at the field sizes that the
//! parser loads (so that stores forward to loads), may put another source into it, and tail-calls the program under test.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("these are programs for the kernel; `cargo xtask bench` loads them");
}

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        Global,
        bindings::{xdp_action, xdp_md},
        btf_maps::{Array, PerCpuArray, ProgramArray},
        helpers::generated::{bpf_jiffies64, bpf_redirect, bpf_xdp_adjust_head},
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use sluice_ebpf::{
        checksum,
        context::frame,
        encap::{Carrier, OuterV4, outer_v4},
        packet::{
            self, ETHERNET_BYTES, Frame, IPV4_BE, IPV6_BE, Ipv4Header, Ipv6Header, TCP, TCP_ACK,
            TCP_SYN,
        },
        reset::TcpHeader,
    };

    /// The program under test, in slot 0.
    #[btf_map]
    static TESTED: ProgramArray<1> = ProgramArray::new();

    /// Frames made so far. One CPU makes them.
    #[btf_map]
    static MADE: Array<u64, 1> = Array::new();

    /// Frames that came back.
    #[btf_map]
    static SEEN: PerCpuArray<u64, 1> = PerCpuArray::new();

    /// The kernel's jiffies, for the loader.
    #[btf_map]
    static JIFFIES: Array<u64, 1> = Array::new();

    /// Length of the frame as it should be.
    #[unsafe(no_mangle)]
    static FRAME_BYTES: Global<u32> = Global::new(0);
    /// Whether the frame is IPv6.
    #[unsafe(no_mangle)]
    static V6: Global<u8> = Global::new(0);
    /// What to make of an answer again: 1 an echo request, 2 a SYN without options, with its checksum.
    #[unsafe(no_mangle)]
    static ANSWERED: Global<u8> = Global::new(0);
    /// Number of flows less one, a power of two less one; 0 leaves the source alone.
    #[unsafe(no_mangle)]
    static FLOW_MASK: Global<u32> = Global::new(0);
    /// Where live frames go.
    #[unsafe(no_mangle)]
    static OUT_IFINDEX: Global<u32> = Global::new(0);

    /// Spreads numbers over addresses, one to one. The loader does the same.
    const SPREAD: u32 = 0x9e37_79b1;
    /// Sources are 32.0.0.0/3: none is an address that nobody can have, and 2^29 numbers give as many of them.
    const FIRST_SOURCE: u32 = 32 << 24;
    const SOURCES: u32 = FIRST_SOURCE - 1;
    /// Steps through the flows in another order, one to one for every power of two.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    #[xdp]
    fn pass(_: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    #[xdp]
    fn drop(_: XdpContext) -> u32 {
        xdp_action::XDP_DROP
    }

    #[xdp]
    fn tx(_: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// Reads all headers as far as the ports, then drops.
    #[xdp]
    fn parse_and_drop(context: XdpContext) -> u32 {
        parsed(&frame(context.ctx)).map_or(xdp_action::XDP_PASS, |ports| {
            // What was read must be used, or it would not be read.
            if ports == 0 {
                xdp_action::XDP_PASS
            } else {
                xdp_action::XDP_DROP
            }
        })
    }

    /// The least that encapsulates: constant addresses, no table, no counter.
    #[xdp]
    fn ipip(context: XdpContext) -> u32 {
        encapsulate(context.ctx).map_or(xdp_action::XDP_PASS, |()| xdp_action::XDP_TX)
    }

    #[xdp]
    fn wrap(context: XdpContext) -> u32 {
        if repair(context.ctx).is_none() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: the slot holds an XDP program.
        unsafe { TESTED.tail_call(&context, 0) };
        xdp_action::XDP_ABORTED
    }

    /// The same for live frames, which go out by an interface: the kernel recycles them as they come back.
    #[xdp]
    fn send(context: XdpContext) -> u32 {
        if repair(context.ctx).is_none() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(OUT_IFINDEX.load(), 0) as u32 }
    }

    /// Counts live frames at their end.
    #[xdp]
    fn sink(_: XdpContext) -> u32 {
        if let Some(seen) = SEEN.get_ptr_mut(0) {
            // SAFETY: a value of a per-CPU map.
            unsafe { *seen += 1 };
        }
        xdp_action::XDP_DROP
    }

    #[xdp]
    fn clock(_: XdpContext) -> u32 {
        if let Some(jiffies) = JIFFIES.get_ptr_mut(0) {
            // SAFETY: takes nothing; a value of an array.
            unsafe { *jiffies = bpf_jiffies64() };
        }
        xdp_action::XDP_PASS
    }

    #[inline(always)]
    fn parsed(frame: &Frame) -> Option<u32> {
        let (ethertype, offset) = packet::ethernet(frame)?;
        let ip = packet::ip(frame, ethertype, offset)?;
        let l4 = packet::skip_options(&ip).ok()?;
        match packet::transport(frame, &ip, &l4).ok()? {
            packet::Transport::Tcp { ports, .. } | packet::Transport::Udp { ports } => Some(ports),
            _ => None,
        }
    }

    #[inline(always)]
    fn encapsulate(context: *mut xdp_md) -> Option<()> {
        let frame = frame(context);
        let (ethertype, offset) = packet::ethernet(&frame)?;
        if ethertype != IPV4_BE || offset != ETHERNET_BYTES {
            return None;
        }
        let inner = packet::ipv4(&frame, offset)?;
        // SAFETY: the context is the program's own; pointers into the frame are taken anew below.
        if unsafe { bpf_xdp_adjust_head(context, -(size_of::<OuterV4>() as i32)) } != 0 {
            return None;
        }
        let frame = self::frame(context);
        let outer = frame.pointer::<OuterV4>(ETHERNET_BYTES)?;
        let (source, destination) = (0x0100_10acu32, 0x0b00_000au32);
        // SAFETY: checked against the frame's end.
        unsafe { outer.write(outer_v4(&inner, Carrier::Ip, source, destination)) };
        let ethernet = frame.pointer::<[u16; 7]>(0)?;
        // SAFETY: as above.
        unsafe { ethernet.write([2, 0, 0x0b00, 2, 0, 0x0200, IPV4_BE]) };
        Some(())
    }

    /// Makes the frame what it was, but for its source. The head is always adjusted, also by nothing: so that a floor pays what a program does.
    #[inline(always)]
    fn repair(context: *mut xdp_md) -> Option<()> {
        let excess = frame(context).len() as i32 - FRAME_BYTES.load() as i32;
        // SAFETY: the context is the program's own; pointers into the frame are taken anew below.
        if unsafe { bpf_xdp_adjust_head(context, excess) } != 0 {
            return None;
        }
        let frame = frame(context);
        let v6 = V6.load() != 0;
        let ethertype = frame.pointer::<u16>(12)?;
        // SAFETY: checked against the frame's end.
        unsafe { ethertype.write(if v6 { IPV6_BE } else { IPV4_BE }) };
        let source = if v6 {
            let header = frame.pointer::<Ipv6Header>(ETHERNET_BYTES)?;
            // SAFETY: as above.
            unsafe { &raw mut (*header).source[3] }
        } else {
            let header = frame.pointer::<Ipv4Header>(ETHERNET_BYTES)?;
            match ANSWERED.load() {
                0 => {}
                1 => unanswer(&frame, header)?,
                _ => exchange_if_challenged(&frame, header)?,
            }
            // SAFETY: as above.
            unsafe { &raw mut (*header).source }
        };
        let mask = FLOW_MASK.load();
        if mask != 0 {
            let made = MADE.get_ptr_mut(0)?;
            // SAFETY: a value of an array that only this CPU writes.
            let number = unsafe { *made };
            // SAFETY: as above.
            unsafe { *made = number + 1 };
            let flow = number.wrapping_mul(STEP) as u32 & mask;
            // SAFETY: checked against the frame's end.
            unsafe { source.write((flow.wrapping_mul(SPREAD) & SOURCES | FIRST_SOURCE).to_be()) };
        }
        if ANSWERED.load() == 2 {
            write_syn(&frame)?;
        }
        Some(())
    }

    const TCP_OFFSET: usize = ETHERNET_BYTES + size_of::<Ipv4Header>();

    #[inline(always)]
    fn exchange_if_challenged(frame: &Frame, header: *mut Ipv4Header) -> Option<()> {
        let tcp = frame.pointer::<TcpHeader>(TCP_OFFSET)?;
        // SAFETY: checked against the frame's end. The VIP is the source of an answer.
        unsafe {
            if (*tcp).flags & TCP_ACK != 0 {
                let source = (*header).source;
                (*header).source = (*header).destination;
                (*header).destination = source;
                let port = (*tcp).source;
                (*tcp).source = (*tcp).destination;
                (*tcp).destination = port;
            }
        }
        Some(())
    }

    /// A SYN with the ports that are there.
    #[inline(always)]
    fn write_syn(frame: &Frame) -> Option<()> {
        let header: Ipv4Header = frame.read(ETHERNET_BYTES)?;
        let tcp = frame.pointer::<TcpHeader>(TCP_OFFSET)?;
        // SAFETY: checked against the frame's end.
        let old = unsafe { *tcp };
        let syn = TcpHeader {
            sequence_be: 1u32.to_be(),
            acknowledgement_be: 0,
            header_length: 5 << 4,
            flags: TCP_SYN,
            window: 64_240u16.to_be(),
            checksum: 0,
            urgent: 0,
            ..old
        };
        let pseudo = u64::from(header.source)
            + u64::from(header.destination)
            + u64::from((size_of::<TcpHeader>() as u16).to_be())
            + u64::from(u16::from(TCP).to_be());
        let checksum = checksum::finish(pseudo + syn.sum());
        // SAFETY: as above.
        unsafe { tcp.write(TcpHeader { checksum, ..syn }) };
        Some(())
    }

    #[inline(always)]
    fn unanswer(frame: &Frame, header: *mut Ipv4Header) -> Option<()> {
        let icmp = frame.pointer::<u16>(ETHERNET_BYTES + size_of::<Ipv4Header>())?;
        // SAFETY: checked against the frame's end. The daemon's VIP is the source of an answer.
        unsafe {
            if *icmp == 0 {
                *icmp = 8;
                let source = (*header).source;
                (*header).source = (*header).destination;
                (*header).destination = source;
            }
        }
        Some(())
    }
}
