//! Writes MMDB files, for tests.
#![expect(clippy::cast_possible_truncation, reason = "files of tests are small")]

use std::collections::HashMap;

use ipnet::{IpNet, Ipv6Net};

/// A database in the making.
pub(crate) struct Writer {
    kind: String,
    record_bits: u16,
    ip_version: u16,
    nodes: Vec<[Slot; 2]>,
    records: Records,
}

/// What a record has.
pub(crate) enum Value<'a> {
    Text(&'a str),
    Short(u16),
    Number(u32),
    Long(u64),
    List(Vec<Self>),
    /// To the record there.
    Pointer(usize),
    Map(Vec<(&'a str, Self)>),
}

#[derive(Clone, Copy)]
enum Slot {
    Empty,
    Node(usize),
    Record(usize),
}

#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    /// Where each text stands; those that come again are pointers.
    texts: HashMap<String, usize>,
}

impl Writer {
    pub(crate) fn new(kind: &str, record_bits: u16, ip_version: u16) -> Self {
        Self {
            kind: kind.to_owned(),
            record_bits,
            ip_version,
            nodes: vec![[Slot::Empty; 2]],
            records: Records::default(),
        }
    }

    /// A record of the country with this code.
    pub(crate) fn country(&mut self, code: &str) -> usize {
        let country = vec![
            ("geoname_id", Value::Number(7)),
            ("iso_code", Value::Text(code)),
        ];
        let continent = Value::Map(vec![("code", Value::Text("XX"))]);
        self.record(&Value::Map(vec![
            ("continent", continent),
            ("country", Value::Map(country)),
        ]))
    }

    /// A record of the autonomous system with this number.
    pub(crate) fn asn(&mut self, number: u32) -> usize {
        self.record(&Value::Map(vec![
            ("autonomous_system_number", Value::Number(number)),
            (
                "autonomous_system_organization",
                Value::Text("an organisation with a name of some length"),
            ),
        ]))
    }

    pub(crate) fn record(&mut self, value: &Value<'_>) -> usize {
        let at = self.records.bytes.len();
        self.records.put(value);
        at
    }

    /// Has a network lead to a record. Networks come before those within them.
    pub(crate) fn put(&mut self, network: IpNet, record: usize) {
        let (bits, length) = match network {
            IpNet::V4(network) if self.ip_version == 4 => (
                u128::from(network.network().to_bits()) << 96,
                network.prefix_len(),
            ),
            IpNet::V4(network) => (
                u128::from(network.network().to_bits()),
                network.prefix_len() + 96,
            ),
            IpNet::V6(network) => (network.network().to_bits(), network.prefix_len()),
        };
        match length {
            0 => self.nodes[0] = [Slot::Record(record); 2],
            length => *self.slot(bits, length) = Slot::Record(record),
        }
    }

    /// Has a network lead to where IPv4 is.
    pub(crate) fn alias(&mut self, network: Ipv6Net) {
        // The slot below makes the one above lead to a node.
        let below = *self.slot(0, 97);
        *self.slot(0, 97) = below;
        let root = *self.slot(0, 96);
        *self.slot(network.network().to_bits(), network.prefix_len()) = root;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let number = |slot: &Slot| match slot {
            Slot::Empty => self.nodes.len(),
            Slot::Node(node) => *node,
            Slot::Record(at) => self.nodes.len() + SEPARATOR.len() + at,
        };
        let mut file = Vec::new();
        for [left, right] in &self.nodes {
            let [l, r] = [left, right].map(|slot| (number(slot) as u32).to_be_bytes());
            match self.record_bits {
                24 => file.extend([&l[1..], &r[1..]].concat()),
                28 => file.extend([&l[1..], &[l[0] << 4 | r[0]], &r[1..]].concat()),
                _ => file.extend([l, r].concat()),
            }
        }
        file.extend(SEPARATOR);
        file.extend(&self.records.bytes);
        file.extend(b"\xab\xcd\xefMaxMind.com");
        let mut metadata = Records::default();
        metadata.put(&Value::Map(vec![
            ("binary_format_major_version", Value::Short(2)),
            ("binary_format_minor_version", Value::Short(0)),
            ("build_epoch", Value::Long(1_700_000_000)),
            ("database_type", Value::Text(&self.kind)),
            (
                "description",
                Value::Map(vec![("en", Value::Text("a test"))]),
            ),
            ("ip_version", Value::Short(self.ip_version)),
            ("languages", Value::List(vec![Value::Text("en")])),
            ("node_count", Value::Number(self.nodes.len() as u32)),
            ("record_size", Value::Short(self.record_bits)),
        ]));
        file.extend(metadata.bytes);
        file
    }

    /// Where an address leads after `length` bits, from 1.
    fn slot(&mut self, bits: u128, length: u8) -> &mut Slot {
        let side = |depth: u8| usize::from(bits >> (127 - depth) & 1 == 1);
        let mut node = 0;
        for depth in 0..length - 1 {
            node = match self.nodes[node][side(depth)] {
                Slot::Node(node) => node,
                leaf => {
                    self.nodes.push([leaf; 2]);
                    let new = self.nodes.len() - 1;
                    self.nodes[node][side(depth)] = Slot::Node(new);
                    new
                }
            };
        }
        &mut self.nodes[node][side(length - 1)]
    }
}

const SEPARATOR: [u8; 16] = [0; 16];

impl Records {
    fn put(&mut self, value: &Value<'_>) {
        match value {
            Value::Text(text) => match self.texts.get(*text).copied() {
                Some(at) => self.put(&Value::Pointer(at)),
                None => {
                    self.texts.insert((*text).to_owned(), self.bytes.len());
                    self.put_head(2, text.len());
                    self.bytes.extend(text.bytes());
                }
            },
            Value::Number(number) => {
                self.put_head(6, 4);
                self.bytes.extend(number.to_be_bytes());
            }
            Value::Short(number) => {
                self.put_head(5, 2);
                self.bytes.extend(number.to_be_bytes());
            }
            // Types above 7 have a byte of their own.
            Value::Long(number) => {
                self.bytes.extend([8, 9 - 7]);
                self.bytes.extend(number.to_be_bytes());
            }
            Value::List(values) => {
                self.bytes.extend([values.len() as u8, 11 - 7]);
                values.iter().for_each(|value| self.put(value));
            }
            Value::Pointer(at) => self.put_pointer(*at),
            Value::Map(entries) => {
                self.put_head(7, entries.len());
                for (key, value) in entries {
                    self.put(&Value::Text(key));
                    self.put(value);
                }
            }
        }
    }

    fn put_head(&mut self, kind: u8, size: usize) {
        match size {
            0..29 => self.bytes.push(kind << 5 | size as u8),
            _ => self.bytes.extend([kind << 5 | 29, (size - 29) as u8]),
        }
    }

    fn put_pointer(&mut self, at: usize) {
        let bytes = (at as u32).to_be_bytes();
        match at {
            0..2_048 => self.bytes.extend([1 << 5 | bytes[2], bytes[3]]),
            _ => self.bytes.extend([&[1 << 5 | 3 << 3], &bytes[..]].concat()),
        }
    }
}
