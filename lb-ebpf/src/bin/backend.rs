//! The tc program of `sluice backend`: makes a connection of an ACK whose cookie a load balancer made.
//!
//! The kernel did not see the SYN. Its function `bpf_sk_assign_tcp_reqsk` (6.9) takes what the cookie holds of it, and lets
//! the listener find a handshake that is complete. Everything else passes untouched.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a program for the kernel; `sluice backend` loads it");
}

#[cfg(target_arch = "bpf")]
mod program {
    use core::{arch::asm, ffi::c_void};

    use aya_ebpf::{
        Global,
        bindings::{__sk_buff, TC_ACT_UNSPEC, bpf_sock_tuple},
        btf_maps::{Array, PerCpuArray},
        helpers::generated::{
            bpf_jiffies64, bpf_sk_lookup_tcp, bpf_sk_release, bpf_skb_pull_data,
            bpf_skc_to_tcp_sock,
        },
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use sluice_ebpf::{
        backend::{MAX_KEYS, MAX_VIPS, Request, Settings, Stats},
        cookie::{self, Cookie, NO_SCALE, Offer, Options, Stamp, Terms},
        decap::Prefix,
        hash::Tuple,
        packet::{self, Frame, IPV4_BE, IPV6_BE, Ip, TCP, TCP_ACK, TCP_RST, TCP_SYN, TcpHeader},
    };

    /// Keys and time. Written by the loader; read by every ACK.
    #[btf_map]
    static SETTINGS: Array<Settings, 1> = Array::new();

    /// Where cookies may come in. Written by the loader before it attaches.
    #[btf_map]
    static VIPS: Array<Prefix, { MAX_VIPS as usize }> = Array::new();

    #[btf_map]
    static STATS: PerCpuArray<Stats, 1> = PerCpuArray::new();

    /// Entries of `VIPS` in use.
    #[unsafe(no_mangle)]
    static VIP_COUNT: Global<u32> = Global::new(0);
    /// Keys in use.
    #[unsafe(no_mangle)]
    static KEY_COUNT: Global<u32> = Global::new(1);
    /// Whether frames begin with Ethernet: those of a tunnel's interface do not.
    #[unsafe(no_mangle)]
    static ETHERNET: Global<u8> = Global::new(1);
    /// What load balancers tell clients that our windows are shifted by.
    #[unsafe(no_mangle)]
    static WINDOW_SCALE: Global<u8> = Global::new(7);

    const LISTEN: u32 = 10;
    const CURRENT_NETNS: u64 = -1i64 as u64;
    /// Headers of a handshake's ACK: Ethernet with tags, IPv6, TCP with options.
    const HEADERS_BYTES: u32 = 14 + 8 + 40 + 60;

    #[classifier]
    fn backend(context: TcContext) -> i32 {
        let skb = context.skb.skb;
        if let Some(found) = look(skb)
            && let Some(stats) = STATS.get_ptr_mut(0)
        {
            // SAFETY: a value of a per-CPU map.
            let stats = unsafe { &mut *stats };
            match found {
                Found::Accepted => stats.accepted += 1,
                Found::Known => stats.known += 1,
                Found::NoListener => stats.no_listener += 1,
                Found::Refused(error) => {
                    stats.refused += 1;
                    stats.refused_with = u64::from(error.unsigned_abs());
                }
            }
        }
        // Whatever else is attached has its turn, then the stack.
        TC_ACT_UNSPEC
    }

    /// What became of a good cookie.
    enum Found {
        Accepted,
        Known,
        NoListener,
        Refused(i32),
    }

    /// Nothing, if it is no ACK with a cookie.
    #[inline(always)]
    fn look(skb: *mut __sk_buff) -> Option<Found> {
        let frame = frame(skb)?;
        let (ethertype, offset) = if ETHERNET.load() != 0 {
            packet::ethernet(&frame)?
        } else {
            // SAFETY: the context is the program's own.
            let protocol = unsafe { (&raw const (*skb).protocol).read_volatile() };
            (protocol as u16, 0)
        };
        // Each family's path is compiled for itself.
        match ethertype {
            IPV4_BE => answer(skb, &frame, &packet::ipv4(&frame, offset)?),
            IPV6_BE => answer(skb, &frame, &packet::ipv6(&frame, offset)?),
            _ => None,
        }
    }

    /// The frame's headers, which the kernel may have scattered.
    #[inline(always)]
    fn frame(skb: *mut __sk_buff) -> Option<Frame> {
        let frame = linear(skb);
        // SAFETY: the context is the program's own.
        let length = unsafe { (&raw const (*skb).len).read_volatile() };
        let wanted = length.min(HEADERS_BYTES);
        if frame.len() >= wanted as usize {
            return Some(frame);
        }
        // SAFETY: as above; pointers into the frame are taken anew.
        if unsafe { bpf_skb_pull_data(skb, wanted) } != 0 {
            return None;
        }
        Some(linear(skb))
    }

    #[inline(always)]
    fn linear(skb: *mut __sk_buff) -> Frame {
        // SAFETY: the context is the program's own.
        let start = unsafe { (&raw const (*skb).data).read_volatile() } as usize;
        // SAFETY: as above.
        let end = unsafe { (&raw const (*skb).data_end).read_volatile() } as usize;
        // SAFETY: the kernel says where the frame lies.
        unsafe { Frame::new(start, end) }
    }

    #[inline(always)]
    fn answer(skb: *mut __sk_buff, frame: &Frame, ip: &Ip) -> Option<Found> {
        if ip.protocol != TCP || !ip.is_whole() || ip.header_length < 20 {
            return None;
        }
        let l4 = ip.offset + ip.header_length as usize;
        let tcp: TcpHeader = frame.read(l4)?;
        let [header_length, flags] = tcp.offset_and_flags;
        if flags & (TCP_SYN | TCP_ACK | TCP_RST) != TCP_ACK {
            return None;
        }
        let header_bytes = usize::from(header_length >> 4) * 4;
        let shown = options(frame, l4, header_bytes, Stamp::Echo);
        let tuple = Tuple {
            source: ip.source,
            destination: ip.destination,
            ports: u32::from(tcp.source_be) | u32::from(tcp.destination_be) << 16,
            protocol: TCP,
            v6: ip.v6,
        };
        let echoed = u32::from_be(shown.stamp_be);
        let cookie = Cookie {
            isn: u32::from_be(tcp.acknowledgement_be).wrapping_sub(1),
            tag: echoed as u8,
        };
        let terms = Terms {
            timestamps: shown.timestamps,
            server_scale: WINDOW_SCALE.load(),
        };
        let client_isn = u32::from_be(tcp.sequence_be).wrapping_sub(1);
        if !is_good(&tuple, client_isn, cookie, terms) {
            return None;
        }
        let offer = Offer::unpack(cookie.isn as u8, ip.v6);
        if !is_for_vip(ip.destination) {
            return None;
        }
        let scaled = offer.window_scale != NO_SCALE;
        let mut request = Request {
            rcv_tsval: u32::from_be(options(frame, l4, header_bytes, Stamp::Value).stamp_be),
            rcv_tsecr: echoed,
            mss: offer.mss,
            rcv_wscale: if scaled { WINDOW_SCALE.load() } else { 0 },
            snd_wscale: if scaled { offer.window_scale } else { 0 },
            ecn_ok: u8::from(offer.ecn),
            wscale_ok: u8::from(scaled),
            sack_ok: u8::from(offer.sack),
            tstamp_ok: u8::from(shown.timestamps),
            usec_ts_ok: 0,
            reserved: [0; 3],
        };
        Some(assign(skb, &tuple, &mut request))
    }

    #[inline(always)]
    fn options(frame: &Frame, l4: usize, header_bytes: usize, stamp: Stamp) -> Options {
        Options::unpack(cookie::options(frame, l4, header_bytes, stamp))
    }

    #[inline(always)]
    fn is_good(tuple: &Tuple, client_isn: u32, cookie: Cookie, terms: Terms) -> bool {
        let Some(settings) = SETTINGS.get(0) else {
            return false;
        };
        // SAFETY: takes nothing, cannot fail.
        let epoch = settings.clock.epoch(unsafe { bpf_jiffies64() });
        let [first, second] = &settings.keys;
        let by = |key| {
            cookie::is_good(cookie, terms, epoch, |bound| {
                cookie::hash(key, tuple, client_isn, bound)
            })
        };
        by(first) || KEY_COUNT.load() >= MAX_KEYS && by(second)
    }

    /// None named means any.
    #[inline(always)]
    fn is_for_vip(address: [u64; 2]) -> bool {
        for index in 0..VIP_COUNT.load() {
            if VIPS.get(index).is_some_and(|vip| vip.holds(address)) {
                return true;
            }
        }
        VIP_COUNT.load() == 0
    }

    /// Finds the listener, and hands it the handshake.
    #[inline(always)]
    fn assign(skb: *mut __sk_buff, tuple: &Tuple, request: &mut Request) -> Found {
        // SAFETY: all zero is a tuple.
        let mut wanted: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let bytes = if tuple.v6 {
            let v6 = Ipv6Pair {
                source: tuple.source,
                destination: tuple.destination,
                ports: tuple.ports,
            };
            // SAFETY: the union's larger side, which is as long as this.
            unsafe { (&raw mut wanted).cast::<Ipv6Pair>().write_unaligned(v6) };
            36
        } else {
            let v4 = [
                (tuple.source[1] >> 32) as u32,
                (tuple.destination[1] >> 32) as u32,
                tuple.ports,
            ];
            // SAFETY: the union's smaller side.
            unsafe { (&raw mut wanted).cast::<[u32; 3]>().write(v4) };
            12
        };
        // SAFETY: the tuple is as long as said. A handshake that is under way is found as its listener.
        let socket =
            unsafe { bpf_sk_lookup_tcp(skb.cast(), &raw mut wanted, bytes, CURRENT_NETNS, 0) };
        if socket.is_null() {
            return Found::NoListener;
        }
        // SAFETY: a socket that the kernel gave.
        let state = unsafe { (&raw const (*socket).state).read_volatile() };
        let found = if state == LISTEN {
            // SAFETY: as above.
            let listener = unsafe { bpf_skc_to_tcp_sock(socket.cast()) };
            if listener.is_null() {
                Found::NoListener
            } else {
                // SAFETY: all three live on, and the listener is one.
                let error = unsafe { assign_request(skb, listener.cast(), request) };
                if error == 0 {
                    Found::Accepted
                } else {
                    Found::Refused(error)
                }
            }
        } else {
            Found::Known
        };
        // SAFETY: the reference that the lookup took.
        unsafe { bpf_sk_release(socket.cast()) };
        found
    }

    /// Calls the kernel's `bpf_sk_assign_tcp_reqsk`; the loader puts its number here: see `lb/src/backend/kfunc.rs`.
    ///
    /// By hand: of a call of a function that is nowhere defined, the linker's optimizer leaves the arguments out.
    ///
    /// # Safety
    /// `listener` must be a socket that a lookup gave.
    #[inline(always)]
    unsafe fn assign_request(
        skb: *mut __sk_buff,
        listener: *mut c_void,
        request: &mut Request,
    ) -> i32 {
        let error: u64;
        // SAFETY: the caller's promise; a call takes its arguments in these registers, and leaves nothing in them.
        unsafe {
            asm!(
                "call bpf_sk_assign_tcp_reqsk",
                inout("r1") skb => _,
                inout("r2") listener => _,
                inout("r3") core::ptr::from_mut(request) => _,
                inout("r4") size_of::<Request>() => _,
                lateout("r0") error,
                lateout("r5") _,
            );
        }
        error as i32
    }

    #[repr(C, packed(4))]
    struct Ipv6Pair {
        source: [u64; 2],
        destination: [u64; 2],
        ports: u32,
    }
}
