//! Reflected floods: services that answer a small question, sent in the victim's name, with much.
//!
//! A preset is such a service: the port that its answers come from, and what an answer begins with where that is sure.
//! Ports above 1023 can be those of honest clients too, and questions come from some of them, so the beginning counts.
//! Ports and formats are those of public records: US-CERT TA14-017A, the protocols' own standards, published scans.

/// What an answer's first eight bytes must be, in the order of the wire, as far as `mask` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// A [`Preset`].
    pub preset: u32,
    pub mask: u64,
    pub value: u64,
}

impl Mark {
    /// Whether a payload begins like an answer. `first` is zero where the payload ends earlier.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(&self, first: u64) -> bool {
        first & self.mask == self.value
    }
}

macro_rules! presets {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, [$($port:literal)|+], $mask:literal, $value:literal;)*) => {
        /// A service that is abused to amplify. The number is that of the bit in a policy, the word is that of the config.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Preset { $($(#[$doc])* $variant,)* }

        impl Preset {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            #[cfg(not(target_arch = "bpf"))]
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// Where answers come from.
            #[cfg(not(target_arch = "bpf"))]
            #[must_use]
            pub const fn ports(self) -> &'static [u16] {
                match self { $(Self::$variant => &[$($port),+]),* }
            }
        }

        /// The service whose answers come from this port, if one is known.
        #[inline(always)]
        #[must_use]
        pub const fn mark(source_port: u16) -> Option<Mark> {
            match source_port {
                $($($port)|+ => Some(Mark { preset: Preset::$variant as u32, mask: $mask, value: $value }),)*
                _ => None,
            }
        }
    };
}

presets! {
    Echo = "echo", [7], 0, 0;
    Daytime = "daytime", [13], 0, 0;
    Qotd = "qotd", [17], 0, 0;
    Chargen = "chargen", [19], 0, 0;
    /// Answers only (QR): there are resolvers that ask from port 53.
    Dns = "dns", [53], 0x0000_8000_0000_0000, 0x0000_8000_0000_0000;
    /// A block of data.
    Tftp = "tftp", [69], 0xffff_0000_0000_0000, 0x0003_0000_0000_0000;
    /// A reply.
    Portmap = "portmap", [111], 0x0000_0000_ffff_ffff, 1;
    /// Modes 4 to 7: answers, broadcasts, control and private ones. Clients may ask from port 123.
    Ntp = "ntp", [123], 0x0400_0000_0000_0000, 0x0400_0000_0000_0000;
    Netbios = "netbios", [137], 0x0000_8000_0000_0000, 0x0000_8000_0000_0000;
    Snmp = "snmp", [161], 0xff00_0000_0000_0000, 0x3000_0000_0000_0000;
    Xdmcp = "xdmcp", [177], 0, 0;
    Cldap = "cldap", [389], 0xff00_0000_0000_0000, 0x3000_0000_0000_0000;
    Slp = "slp", [427], 0xff00_0000_0000_0000, 0x0200_0000_0000_0000;
    /// A response of version 1.
    Rip = "rip", [520], 0xffff_0000_0000_0000, 0x0201_0000_0000_0000;
    /// RMCP.
    Ipmi = "ipmi", [623], 0xff00_0000_0000_0000, 0x0600_0000_0000_0000;
    /// The server's hard reset.
    Openvpn = "openvpn", [1194], 0xff00_0000_0000_0000, 0x4000_0000_0000_0000;
    /// `SVR_RESP`.
    Mssql = "mssql", [1434], 0xff00_0000_0000_0000, 0x0500_0000_0000_0000;
    /// A control message of version 2.
    L2tp = "l2tp", [1701], 0xffff_0000_0000_0000, 0xc802_0000_0000_0000;
    /// `HTTP`.
    Ssdp = "ssdp", [1900], 0xffff_ffff_0000_0000, 0x4854_5450_0000_0000;
    Arms = "arms", [3283], 0, 0;
    Rdp = "rdp", [3389], 0, 0;
    /// A success or error response to Binding.
    Stun = "stun", [3478], 0xffef_0000_0000_0000, 0x0101_0000_0000_0000;
    /// XML.
    WsDiscovery = "ws_discovery", [3702], 0xff00_0000_0000_0000, 0x3c00_0000_0000_0000;
    /// `SIP/`.
    Sip = "sip", [5060], 0xffff_ffff_0000_0000, 0x5349_502f_0000_0000;
    /// A response.
    NatPmp = "nat_pmp", [5351], 0x0080_0000_0000_0000, 0x0080_0000_0000_0000;
    Mdns = "mdns", [5353], 0x0000_8000_0000_0000, 0x0000_8000_0000_0000;
    /// Version 1, and a code of success.
    Coap = "coap", [5683], 0xc0e0_0000_0000_0000, 0x4040_0000_0000_0000;
    /// A dictionary.
    Bittorrent = "bittorrent", [6881], 0xff00_0000_0000_0000, 0x6400_0000_0000_0000;
    /// `TS3INIT1`.
    Teamspeak = "teamspeak", [9987], 0xffff_ffff_ffff_ffff, 0x5453_3349_4e49_5431;
    Ubiquiti = "ubiquiti", [10001], 0xfc00_0000_0000_0000, 0;
    /// Reserved half word of the frame header.
    Memcached = "memcached", [11211], 0x0000_0000_0000_ffff, 0;
    /// Unconnected pong.
    Minecraft = "minecraft", [19132], 0xff00_0000_0000_0000, 0x1c00_0000_0000_0000;
    /// Whole, or a part of what is longer than a packet.
    Steam = "steam", [27015], 0xfeff_ffff_0000_0000, 0xfeff_ffff_0000_0000;
    Quake = "quake", [27960], 0xffff_ffff_0000_0000, 0xffff_ffff_0000_0000;
    Fivem = "fivem", [30120], 0xffff_ffff_0000_0000, 0xffff_ffff_0000_0000;
    Lantronix = "lantronix", [30718], 0xffff_ffff_0000_0000, 0x0000_00f7_0000_0000;
    /// `HTTP`.
    Plex = "plex", [32410 | 32412 | 32413 | 32414], 0xffff_ffff_0000_0000, 0x4854_5450_0000_0000;
    /// XML.
    Jenkins = "jenkins", [33848], 0xff00_0000_0000_0000, 0x3c00_0000_0000_0000;
    /// `DHIP`.
    Dvr = "dvr", [37810], 0x0000_0000_ffff_ffff, 0x4448_4950;
    /// BACnet/IP.
    Bacnet = "bacnet", [47808], 0xff00_0000_0000_0000, 0x8100_0000_0000_0000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_preset_is_found_by_its_ports() {
        assert!(Preset::ALL.len() <= 64, "each has its bit");
        for preset in Preset::ALL {
            for port in preset.ports() {
                let mark = mark(*port).expect("a preset");
                assert_eq!(mark.preset, *preset as u32);
                assert_eq!(mark.value & !mark.mask, 0, "{preset:?} can match");
                assert!(mark.is_of(mark.value));
            }
        }
        assert_eq!(mark(443), None);
        assert_eq!(mark(0), None);
    }

    #[test]
    fn questions_are_no_answers() {
        let first = |bytes: &[u8]| {
            let mut all = [0; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(all)
        };
        let is =
            |preset: Preset, bytes: &[u8]| mark(preset.ports()[0]).unwrap().is_of(first(bytes));
        // A question and an answer of DNS; a client and a server of NTP, and a list of monitors.
        assert!(!is(Preset::Dns, &[0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0]));
        assert!(is(Preset::Dns, &[0x12, 0x34, 0x81, 0x80, 0, 1, 0, 9]));
        assert!(!is(Preset::Ntp, &[0x23, 2, 10, 0xe9]));
        assert!(is(Preset::Ntp, &[0x24, 2, 10, 0xe9]));
        assert!(is(Preset::Ntp, &[0xd7, 0, 3, 0x2a]));
        assert!(!is(Preset::Ssdp, b"M-SEARCH"));
        assert!(is(Preset::Ssdp, b"HTTP/1.1"));
        assert!(!is(Preset::Stun, &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]));
        assert!(is(Preset::Stun, &[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]));
        // QUIC from a port above 1023, with a long and a short header.
        for preset in [
            Preset::Ssdp,
            Preset::Stun,
            Preset::Steam,
            Preset::WsDiscovery,
        ] {
            assert!(!is(preset, &[0xc3, 0, 0, 0, 1, 8, 7, 7]));
            assert!(!is(preset, &[0x5c, 9, 8, 7, 6, 5, 4, 3]));
        }
    }
}
