//! Which addresses are in a set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use crate::dataplane::Key;

/// Addresses of a set that never changes: IPv4 as ranges, IPv6 as prefixes, in order and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    v4: Vec<(u32, u32)>,
    v6: Vec<Key>,
}

impl Members {
    /// Of prefixes and ranges in any order, which may cover each other. IPv4 ranges are first and last address.
    pub fn new(mut v4: Vec<(u32, u32)>, v6: impl IntoIterator<Item = Ipv6Net>) -> Self {
        v4.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(v4.len());
        for (first, last) in v4 {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        merged.shrink_to_fit();
        let mut keys: Vec<Key> = v6
            .into_iter()
            .map(|prefix| Key::of(IpNet::V6(prefix)))
            .collect();
        keys.sort_unstable();
        keys.dedup_by(|one, before| before.covers(*one));
        Self {
            v4: merged,
            v6: keys,
        }
    }

    pub fn of(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(prefix) => {
                    v4.push((prefix.network().to_bits(), prefix.broadcast().to_bits()));
                }
                IpNet::V6(prefix) => v6.push(prefix),
            }
        }
        Self::new(v4, v6)
    }

    /// Ranges of IPv4 addresses: first and last of each.
    pub fn v4(&self) -> &[(u32, u32)] {
        &self.v4
    }

    /// IPv6 prefixes: first address and length of each.
    pub fn v6(&self) -> impl ExactSizeIterator<Item = (u128, u8)> {
        self.v6.iter().map(|key| (key.bits, key.length))
    }

    /// As a list that [`import`](super::import) reads.
    pub fn to_list(&self) -> String {
        let v4 = self.v4.iter().map(|(first, last)| {
            let [first, last] = [first, last].map(|bits| Ipv4Addr::from_bits(*bits));
            format!("{first}-{last}\n")
        });
        let v6 = self.v6();
        v4.chain(v6.map(|(bits, length)| format!("{}/{length}\n", Ipv6Addr::from_bits(bits))))
            .collect()
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let bits = address.to_bits();
                let at = self.v4.partition_point(|(first, _)| *first <= bits);
                at > 0 && self.v4[at - 1].1 >= bits
            }
            IpAddr::V6(address) => self.covers(Key::of(IpNet::from(IpAddr::V6(address)))),
        }
    }
}

/// As the data plane asks.
impl Members {
    /// Tells the ranges of IPv4 addresses from `first` to `last`.
    pub(crate) fn within(&self, first: u32, last: u32, mut tell: impl FnMut(u32, u32)) {
        let at = self.v4.partition_point(|(_, end)| *end < first);
        let ranges = self.v4[at..].iter();
        for (from, to) in ranges.take_while(|(from, _)| *from <= last) {
            tell((*from).max(first), (*to).min(last));
        }
    }

    /// Whether all of an IPv6 prefix is in the set.
    pub(crate) fn covers(&self, key: Key) -> bool {
        let at = self.v6.partition_point(|known| *known <= key);
        at > 0 && self.v6[at - 1].covers(key)
    }

    /// Whether an IPv6 prefix is one of those that the set is made of.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.v6.binary_search(&key).is_ok()
    }

    pub(crate) fn keys_v6(&self) -> &[Key] {
        &self.v6
    }

    /// The /8 that have any of these IPv4 addresses which the other does not have in the same range, by their first 8 bits.
    pub(crate) fn slash_8s_beside(&self, other: &Self) -> Vec<u8> {
        let mut differs = [false; 256];
        let first = |address: u32| usize::from(address.to_be_bytes()[0]);
        let mut others = other.v4.iter().peekable();
        for range in &self.v4 {
            while others.next_if(|other| *other < range).is_some() {}
            if others.next_if(|other| *other == range).is_none() {
                differs[first(range.0)..=first(range.1)].fill(true);
            }
        }
        (0..=u8::MAX)
            .filter(|at| differs[usize::from(*at)])
            .collect()
    }
}

/// As they stand on the disk.
impl Members {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.v4.len() * 8 + self.v6.len() * 17);
        bytes.extend((self.v4.len() as u64).to_le_bytes());
        for (first, last) in &self.v4 {
            bytes.extend(first.to_le_bytes());
            bytes.extend(last.to_le_bytes());
        }
        for key in &self.v6 {
            bytes.extend(key.bits.to_le_bytes());
            bytes.push(key.length);
        }
        bytes
    }

    /// `None` if they are not what [`Members::to_bytes`] makes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<8>()?;
        let v4_bytes = usize::try_from(u64::from_le_bytes(*count))
            .ok()?
            .checked_mul(8)?;
        let (v4, v6) = rest.split_at_checked(v4_bytes)?;
        let (ranges, []) = v4.as_chunks::<8>() else {
            return None;
        };
        let v4: Vec<(u32, u32)> = ranges
            .iter()
            .map(|[a, b, c, d, e, f, g, h]| {
                (
                    u32::from_le_bytes([*a, *b, *c, *d]),
                    u32::from_le_bytes([*e, *f, *g, *h]),
                )
            })
            .collect();
        let (prefixes, []) = v6.as_chunks::<17>() else {
            return None;
        };
        let prefixes: Option<Vec<Ipv6Net>> = prefixes
            .iter()
            .map(|bytes| {
                let (bits, [length]) = bytes.split_first_chunk::<16>()? else {
                    return None;
                };
                Ipv6Net::new(u128::from_le_bytes(*bits).into(), *length).ok()
            })
            .collect();
        if v4.iter().any(|(first, last)| first > last) {
            return None;
        }
        Some(Self::new(v4, prefixes?))
    }

    /// A number that is the same for the same members only, but for chance.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.to_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::{OnBad, import};

    #[test]
    fn members_come_back_from_the_disk_and_from_a_list() {
        let prefixes = [
            "192.0.2.0/24",
            "192.0.3.0/24",
            "10.0.0.1/32",
            "2001:db8::/32",
            "::/3",
        ];
        let members = Members::of(prefixes.map(|prefix| prefix.parse::<IpNet>().unwrap()));
        assert_eq!(members.v4().len(), 2, "neighbours are one range");
        let read = import(members.to_list().as_bytes(), OnBad::Refuse).unwrap();
        assert_eq!(read.members, members);
        let bytes = members.to_bytes();
        assert_eq!(Members::from_bytes(&bytes), Some(members));
        assert_eq!(Members::from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Members::from_bytes(&bytes[..7]), None);
        assert_eq!(
            Members::from_bytes(&Members::default().to_bytes()),
            Some(Members::default())
        );
    }
}
