//! The XDP program of `sluice decap`: takes tunnel headers off at a backend, and hands the inner packet to the host.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a program for the kernel; `sluice decap` loads it");
}

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        Global,
        bindings::{xdp_action, xdp_md},
        btf_maps::{Array, PerCpuArray},
        helpers::generated::bpf_xdp_adjust_head,
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use sluice_ebpf::{
        checksum,
        context::frame,
        decap::{Inner, MAX_ADDRESSES, Prefix, Stats, Tunnel, with_class},
        packet::{ETHERNET_BYTES, Frame, IPV6_BE, VLAN_BYTES, load},
    };

    /// The tunnels' endpoints. Written by the loader before it attaches; read by every packet that looks like a tunnel's.
    #[btf_map]
    static ADDRESSES: Array<Prefix, { MAX_ADDRESSES as usize }> = Array::new();

    /// From where tunnel packets may come. As above.
    #[btf_map]
    static SOURCES: Array<Prefix, { MAX_ADDRESSES as usize }> = Array::new();

    #[btf_map]
    static STATS: PerCpuArray<Stats, 1> = PerCpuArray::new();

    /// Entries of `ADDRESSES` in use.
    #[unsafe(no_mangle)]
    static ADDRESS_COUNT: Global<u32> = Global::new(0);
    /// Entries of `SOURCES` in use.
    #[unsafe(no_mangle)]
    static SOURCE_COUNT: Global<u32> = Global::new(0);

    enum Verdict {
        Decapsulated,
        NotOurs,
        Malformed,
    }

    #[xdp]
    #[inline(always)]
    fn decap(context: XdpContext) -> u32 {
        let verdict = strip(context.ctx);
        if let Some(stats) = STATS.get_ptr_mut(0) {
            // SAFETY: a value of a per-CPU map.
            let stats = unsafe { &mut *stats };
            match verdict {
                Verdict::Decapsulated => stats.decapsulated += 1,
                Verdict::NotOurs => stats.passed += 1,
                Verdict::Malformed => stats.malformed += 1,
            }
        }
        match verdict {
            Verdict::Malformed => xdp_action::XDP_DROP,
            _ => xdp_action::XDP_PASS,
        }
    }

    #[inline(always)]
    fn strip(context: *mut xdp_md) -> Verdict {
        let frame = frame(context);
        let Some(tunnel) = Tunnel::find(&frame) else {
            return Verdict::NotOurs;
        };
        if !is_in(&ADDRESSES, ADDRESS_COUNT.load(), tunnel.outer.destination)
            || !is_in(&SOURCES, SOURCE_COUNT.load(), tunnel.outer.source)
        {
            return Verdict::NotOurs;
        }
        let ethertype_be = match tunnel.inner(&frame) {
            Inner::Packet {
                ethertype_be,
                class,
                remarked,
            } => {
                if remarked != class && mark(&frame, &tunnel, ethertype_be, remarked).is_none() {
                    return Verdict::Malformed;
                }
                ethertype_be
            }
            Inner::NotIp => return Verdict::NotOurs,
            Inner::Malformed => return Verdict::Malformed,
        };
        let overhead = tunnel.overhead() as i32;
        let moved = match tunnel.outer.offset - ETHERNET_BYTES {
            0 => move_ethernet::<0>(context, &frame, overhead, ethertype_be),
            VLAN_BYTES => move_ethernet::<1>(context, &frame, overhead, ethertype_be),
            _ => move_ethernet::<2>(context, &frame, overhead, ethertype_be),
        };
        moved.map_or(Verdict::Malformed, |()| Verdict::Decapsulated)
    }

    /// Gives the inner packet another class.
    #[inline(always)]
    fn mark(frame: &Frame, tunnel: &Tunnel, ethertype_be: u16, class: u8) -> Option<()> {
        let v6 = ethertype_be == IPV6_BE;
        let inner_offset = tunnel.outer.offset + tunnel.overhead();
        let first = frame.pointer_at::<u16>(inner_offset)?;
        // SAFETY: checked against the frame's end.
        let old = unsafe { load(first) };
        let new = with_class(old, class, v6);
        // SAFETY: as above.
        unsafe { first.write(new) };
        if !v6 {
            let checksum = frame.pointer_at::<u16>(inner_offset + 10)?;
            // SAFETY: as above.
            let replaced = checksum::replace(unsafe { load(checksum) }, old, new);
            // SAFETY: as above.
            unsafe { checksum.write(replaced) };
        }
        Some(())
    }

    #[inline(always)]
    fn is_in(
        prefixes: &Array<Prefix, { MAX_ADDRESSES as usize }>,
        count: u32,
        address: [u64; 2],
    ) -> bool {
        for index in 0..count {
            if prefixes
                .get(index)
                .is_some_and(|prefix| prefix.holds(address))
            {
                return true;
            }
        }
        false
    }

    /// Cuts `overhead` bytes off and writes the MAC addresses and `TAGS` VLAN tags anew, with the inner EtherType.
    #[inline(always)]
    fn move_ethernet<const TAGS: usize>(
        context: *mut xdp_md,
        frame: &Frame,
        overhead: i32,
        ethertype_be: u16,
    ) -> Option<()> {
        let from = frame.pointer::<Ethernet<TAGS>>(0)?;
        // SAFETY: checked against the frame's end.
        let old = unsafe { load(from) };
        // SAFETY: the context is the program's own; pointers into the frame are taken anew below.
        if unsafe { bpf_xdp_adjust_head(context, overhead) } != 0 {
            return None;
        }
        let frame = self::frame(context);
        let to = frame.pointer::<Ethernet<TAGS>>(0)?;
        // SAFETY: checked against the frame's end.
        unsafe {
            to.write(Ethernet {
                ethertype_be,
                ..old
            });
        }
        Some(())
    }

    /// Tags stand between the addresses and the EtherType of what is carried.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Ethernet<const TAGS: usize> {
        macs: [u16; 6],
        tags: [[u16; 2]; TAGS],
        ethertype_be: u16,
    }
}
