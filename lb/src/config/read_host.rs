//! Reads `[host]`: ports and sources of the host itself.

use sluice_ebpf::abi::MAX_PROTECTED;

use super::{
    addresses, keys,
    model::{Host, Protocol},
    section::{Field, Section},
};

/// SSH, BGP and BFD, unless the table says otherwise.
const DEFAULTS: [(Protocol, u16); 4] = [
    (Protocol::Tcp, 22),
    (Protocol::Tcp, 179),
    (Protocol::Udp, 3784),
    (Protocol::Udp, 4784),
];

/// `[host]`.
pub(super) fn host(file: &Section<'_>) -> Option<Host> {
    let defaults = Host {
        ports: DEFAULTS.into(),
        sources: Vec::new(),
    };
    let Some(field) = file.get("host") else {
        return Some(defaults);
    };
    let table = field.table(&keys::HOST)?;
    table.or("protect", defaults, |field| protect(&field))
}

fn protect(field: &Field<'_>) -> Option<Host> {
    let mut host = Host {
        ports: Vec::new(),
        sources: Vec::new(),
    };
    let mut good = true;
    for item in field.array()? {
        let text = item.string()?;
        match text.split_once('/') {
            Some((protocol @ ("tcp" | "udp"), port)) => {
                let protocol = match protocol {
                    "tcp" => Protocol::Tcp,
                    _ => Protocol::Udp,
                };
                match port.parse() {
                    Ok(port @ 1..) => host.ports.push((protocol, port)),
                    _ => {
                        item.error(|| {
                            format!("`{text}` names no port; write it like `tcp/22`, with a port from 1 to 65535")
                        });
                        good = false;
                    }
                }
            }
            _ => match addresses::prefix(&item) {
                Some(prefix) => host.sources.push(prefix),
                None => good = false,
            },
        }
    }
    let most = usize::try_from(MAX_PROTECTED).unwrap_or(usize::MAX);
    if host.sources.len() > most {
        let count = host.sources.len();
        field.error(|| {
            format!("{count} prefixes of sources are too many; {most} is the most: write shorter prefixes")
        });
        return None;
    }
    good.then_some(host)
}
