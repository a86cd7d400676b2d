//! Reads `[pop]` and `[dataplane]`: what is set once for this machine.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    addresses::{Unfit, prefix, unfit_range},
    error::quoted,
    keys,
    model::{Dataplane, Pop, XdpMode},
    outside::Outside,
    section::{Field, Section},
};

/// `[pop]`.
pub(super) fn pop(file: &Section<'_>, outside: Outside) -> Option<Pop> {
    let section = file
        .required("pop", "{ name = \"ams\", id = 1 }")?
        .table(&keys::POP)?;
    let name = section
        .required("name", "\"ams\"")
        .and_then(|field| field.name());
    let id = section
        .required("id", "1")
        .and_then(|field| field.integer(1..=u8::MAX));
    let secret_file = section.optional("secret_file", |field| {
        let path = field.absolute_path()?;
        if let Err(wrong) = outside.secret(&path) {
            field.error(|| wrong);
        }
        Some(path)
    });
    Some(Pop {
        name: name?.to_owned(),
        id: id?,
        secret_file: secret_file?,
    })
}

/// `[dataplane]`, and where each interface is named.
pub(super) fn dataplane(file: &Section<'_>) -> Option<(Dataplane, Vec<usize>)> {
    let section = file
        .required("dataplane", "{ interfaces = [\"eth0\"] }")?
        .table(&keys::DATAPLANE)?;
    let interfaces = section
        .required("interfaces", "[\"eth0\"]")
        .and_then(|field| interfaces(&field));
    let power = |key, range, default| section.or(key, default, |field| field.power_of_two(range));
    let number =
        |key, range, default| section.or(key, default, |field| field.integer::<u32>(range));
    let path = |key, default: &str| path_or(&section, key, default);

    let mode = section.or("mode", XdpMode::Auto, |field| field.word(MODES));
    let flows = power("flows", 1 << 10..=1 << 26, 1 << 20);
    let flow_idle = section.or("flow_idle", FLOW_IDLE, |field| {
        field.duration(FLOW_IDLE_MIN..=FLOW_IDLE_MAX)
    });
    let exact_limits = number("exact_limits", 1..=1 << 22, 1 << 17);
    let source_prefixes = power("source_prefixes", 1 << 10..=1 << 24, 1 << 20);
    let lookup_slots = number("lookup_slots", 0..=1 << 28, 0);
    let sketch_cells = power("sketch_cells", 1 << 10..=1 << 24, 1 << 20);
    let tunnel_source_v4 = section.or("tunnel_source_v4", SOURCE_V4, |field| source_v4(&field));
    let tunnel_source_v6 = section.or("tunnel_source_v6", SOURCE_V6, |field| source_v6(&field));
    let pin_dir = path("pin_dir", PIN_DIR);
    let state_dir = path("state_dir", STATE_DIR);

    let (interfaces, places) = interfaces?;
    let dataplane = Dataplane {
        interfaces,
        mode: mode?,
        flows: flows?,
        flow_idle: flow_idle?,
        exact_limits: exact_limits?,
        source_prefixes: source_prefixes?,
        lookup_slots: lookup_slots?,
        sketch_cells: sketch_cells?,
        tunnel_source_v4: tunnel_source_v4?,
        tunnel_source_v6: tunnel_source_v6?,
        pin_dir: pin_dir?,
        state_dir: state_dir?,
    };
    Some((dataplane, places))
}

const MODES: &[(&str, XdpMode)] = &[
    ("auto", XdpMode::Auto),
    ("native", XdpMode::Native),
    ("generic", XdpMode::Generic),
];
const FLOW_IDLE: Duration = Duration::from_secs(15 * 60);
const FLOW_IDLE_MIN: Duration = Duration::from_secs(1);
const FLOW_IDLE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const SOURCE_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 16);
const SOURCE_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64);
const PIN_DIR: &str = "/sys/fs/bpf/sluice";
const STATE_DIR: &str = "/var/lib/sluice";
/// `IFNAMSIZ`, without its closing NUL.
const INTERFACE_BYTES: usize = 15;

fn path_or(section: &Section<'_>, key: &'static str, default: &str) -> Option<PathBuf> {
    section.or(key, PathBuf::from(default), |field| field.absolute_path())
}

fn interfaces(field: &Field<'_>) -> Option<(Vec<String>, Vec<usize>)> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error(|| "`interfaces` is empty; name at least one, like [\"eth0\"]".into());
    }
    let (mut names, mut places, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for element in elements {
        let Some(name) = element.string() else {
            continue;
        };
        let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        if name.is_empty()
            || name.len() > INTERFACE_BYTES
            || !name.bytes().all(fits)
            || name == "."
            || name == ".."
        {
            element.error(|| {
                format!(
                    "{} cannot be an interface; `ip link` lists those of this machine",
                    quoted(name)
                )
            });
        } else if !seen.insert(name) {
            element.error(|| format!("interface {} is listed twice; name it once", quoted(name)));
        } else {
            names.push(name.to_owned());
            places.push(element.at);
        }
    }
    Some((names, places))
}

fn source_v4(field: &Field<'_>) -> Option<Ipv4Net> {
    match tunnel_source(field)? {
        IpNet::V4(source) => Some(source),
        IpNet::V6(_) => {
            field.error(|| {
                format!("`tunnel_source_v4` is an IPv6 prefix; write it like \"{SOURCE_V4}\"")
            });
            None
        }
    }
}

fn source_v6(field: &Field<'_>) -> Option<Ipv6Net> {
    match tunnel_source(field)? {
        IpNet::V6(source) => Some(source),
        IpNet::V4(_) => {
            field.error(|| {
                format!("`tunnel_source_v6` is an IPv4 prefix; write it like \"{SOURCE_V6}\"")
            });
            None
        }
    }
}

fn tunnel_source(field: &Field<'_>) -> Option<IpNet> {
    let source = prefix(field)?;
    if let Some(Unfit { range, what }) = unfit_range(&source) {
        field.error(|| {
            format!("`{source}` cannot be a source of packets: it holds {what} addresses ({range})")
        });
        return None;
    }
    Some(source)
}
