//! One exact limit, as the daemon means it and as it stands in `LIMITS`.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_ebpf::abi::{ANY_VIP, CLASSES, LIMIT_MONITOR, Limit, Limiter};

use super::{ExactError, tree::Key};
use crate::{config::Mode, limits::ClassWord};

/// What the data plane needs to know of one limit. [`crate::limits::LimitSpec::exact`] makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactLimit {
    /// Sources that share this limit.
    pub prefix: IpNet,
    /// Number of the VIP that it is for, or `ANY_VIP`.
    pub vip: u16,
    pub class: ClassWord,
    pub mode: Mode,
    pub packets: Limiter,
    pub bytes: Limiter,
    /// It acts on no packet any more, and is still to be taken out.
    pub ceased: bool,
}

impl ExactLimit {
    /// The place in the tree, unless the data plane cannot hold this prefix.
    pub(super) fn key(&self) -> Result<Key, ExactError> {
        if let IpNet::V6(prefix) = self.prefix {
            let is_mapped = prefix.prefix_len() >= 96 && prefix.addr().to_ipv4_mapped().is_some();
            let is_unspecified = prefix.prefix_len() == 128 && prefix.addr().is_unspecified();
            if is_mapped || is_unspecified {
                return Err(ExactError::Unfit {
                    prefix: self.prefix,
                });
            }
        }
        Ok(Key::of(self.prefix))
    }

    /// Which of a prefix's limits a packet tries first. Never equal for two that may stand together.
    pub(super) fn order(&self) -> (bool, bool, u16, u8) {
        let classes = self.class.bits();
        (
            self.vip == ANY_VIP,
            classes.count_ones() > 1,
            self.vip,
            classes,
        )
    }

    /// Whether both are about the same packets; then they cannot stand together.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.prefix.trunc() == other.prefix.trunc() && self.order() == other.order()
    }

    /// `next`, VIP, classes, length and mode: the word that brings a limit to life.
    pub(super) fn link_word(&self, next: u32) -> u64 {
        let mode = if self.mode == Mode::Monitor {
            LIMIT_MONITOR
        } else {
            0
        };
        // An IPv6 /0 becomes ::/128, which sends nothing.
        let length = Key::of(self.prefix).length.wrapping_sub(1) & !LIMIT_MONITOR;
        let limit = Limit {
            next,
            vip: self.vip,
            classes: class_bits(self.class, self.ceased),
            length_and_mode: length | mode,
            ..Limit::default()
        };
        bytemuck::cast::<Limit, [u64; LIMIT_WORDS]>(limit)[LINK]
    }

    /// The limit that these words hold, and its `next`; `None` if no daemon wrote them.
    pub(super) fn from_words(words: [u64; LIMIT_WORDS]) -> Option<(Self, u32)> {
        let limit: Limit = bytemuck::cast(words);
        let address = Ipv6Addr::from_bits(Key::bits_of(limit.prefix));
        let length = (limit.length_and_mode & !LIMIT_MONITOR) + 1;
        let prefix = match address.to_ipv4_mapped() {
            Some(address) if length >= 96 => IpNet::V4(Ipv4Net::new(address, length - 96).ok()?),
            _ if length == 128 && address.is_unspecified() => {
                IpNet::V6(Ipv6Net::new(address, 0).ok()?)
            }
            _ => IpNet::V6(Ipv6Net::new(address, length).ok()?),
        };
        let mode = if limit.length_and_mode & LIMIT_MONITOR == 0 {
            Mode::Enforce
        } else {
            Mode::Monitor
        };
        let ceased = limit.classes >> CLASSES != 0;
        let class = ClassWord::ALL
            .into_iter()
            .find(|class| class_bits(*class, ceased) == limit.classes)?;
        let this = Self {
            prefix,
            vip: limit.vip,
            class,
            mode,
            packets: limit.packets,
            bytes: limit.bytes,
            ceased,
        };
        (prefix == prefix.trunc()).then_some((this, limit.next))
    }
}

/// `Limit::classes`. No packet is of the bits of a limit that has ceased, and yet they tell its class.
fn class_bits(class: ClassWord, ceased: bool) -> u8 {
    if ceased {
        (class as u8 + 1) << CLASSES
    } else {
        class.bits()
    }
}

/// What a link word leads to.
pub(super) fn next_of(link_word: u64) -> u32 {
    let halves: [u32; 2] = bytemuck::cast(link_word);
    halves[0]
}

/// Words of a `Limit`.
pub(super) const LIMIT_WORDS: usize = size_of::<Limit>() / 8;
/// The word that holds `next`, `vip`, `classes`, `length_and_mode`. Zero in a free limit.
pub(super) const LINK: usize = std::mem::offset_of!(Limit, next) / 8;
pub(super) const PACKETS: usize = std::mem::offset_of!(Limit, packets) / 8;
pub(super) const BYTES: usize = std::mem::offset_of!(Limit, bytes) / 8;
