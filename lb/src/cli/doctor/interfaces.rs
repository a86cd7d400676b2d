//! The interfaces that VIPs come in by.

use std::{fs, thread};

use super::Report;
use crate::{
    config::{Config, XdpMode},
    control::chain,
    net::{self, Interface, XdpFeatures},
    sys,
};

pub(super) async fn check(config: &Config, report: &mut Report) {
    let interfaces = match net::interfaces().await {
        Ok(interfaces) => interfaces,
        Err(error) => {
            report.fail(
                "interfaces",
                None,
                chain(&error),
                "is netlink forbidden here?",
            );
            return;
        }
    };
    let tunnels = super::backends::uses_tunnels(config);
    for name in &config.dataplane.interfaces {
        let Some(interface) = interfaces.iter().find(|interface| interface.name == *name) else {
            report.fail(
                "interfaces",
                Some(name),
                "there is no such interface",
                "correct `interfaces` in [dataplane], or make it first",
            );
            continue;
        };
        check_link(interface, report);
        check_native(interface, config.dataplane.mode, report);
        check_queues(interface, report);
        check_reverse_path(name, tunnels, report);
    }
}

fn check_link(interface: &Interface, report: &mut Report) {
    let name = interface.name.as_str();
    let driver = sys::driver(name).unwrap_or_else(|_error| "unknown".into());
    if !interface.up {
        report.fail(
            "interfaces",
            Some(name),
            "down, or without a carrier",
            format!("ip link set {name} up; check the cable"),
        );
    } else if interface.mac.is_none() {
        report.fail(
            "interfaces",
            Some(name),
            "no Ethernet device",
            "name an Ethernet interface",
        );
    } else if interface.vlan.is_some() {
        report.warn(
            "interfaces",
            Some(name),
            "a VLAN device",
            "name the interface under it: the program reads tags itself",
        );
    } else {
        let mtu = interface.mtu_bytes;
        report.ok(
            "interfaces",
            Some(name),
            format!("up, driver {driver}, MTU {mtu}"),
        );
    }
}

/// Asks the driver what it can; attaching something for trial would stop many cards for a moment.
fn check_native(interface: &Interface, mode: XdpMode, report: &mut Report) {
    let name = Some(interface.name.as_str());
    if mode == XdpMode::Generic {
        report.warn(
            "native xdp",
            name,
            "the config asks for generic mode, which is several times slower",
            "`mode = \"auto\"` takes native mode where the driver can",
        );
        return;
    }
    match net::xdp_features(interface.index) {
        Ok(features) if features.contains(XdpFeatures::NATIVE) => {
            report.ok("native xdp", name, "the driver has it");
        }
        Ok(_) => {
            let advice = "use a card whose driver has it; also LRO (`ethtool -K IF lro off`), a large MTU or too few queues can be why";
            let found = "the driver does not offer it: generic mode is several times slower";
            if mode == XdpMode::Native {
                report.fail("native xdp", name, found, advice);
            } else {
                report.warn("native xdp", name, found, advice);
            }
        }
        Err(error) => report.warn(
            "native xdp",
            name,
            format!("cannot be asked for ({error})"),
            "Linux 6.3 or newer tells; `sluice status` does once the daemon runs",
        ),
    }
}

fn check_queues(interface: &Interface, report: &mut Report) {
    let name = interface.name.as_str();
    let Ok(channels) = sys::channels(name) else {
        // Many virtual devices have no say in it.
        return;
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let (queues, most) = (
        channels.receiving as usize,
        channels.most_receiving as usize,
    );
    if queues < cpus && queues < most {
        let wanted = cpus.min(most);
        report.warn(
            "queues",
            Some(name),
            format!("{queues} receive queues for {cpus} CPUs: the other CPUs get no packets"),
            format!("ethtool -L {name} {} {wanted}", channels.word),
        );
    } else {
        report.ok(
            "queues",
            Some(name),
            format!("{queues} receive queues for {cpus} CPUs"),
        );
    }
}

fn check_reverse_path(name: &str, tunnels: bool, report: &mut Report) {
    let setting = |of: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter")).ok()?;
        text.trim().parse::<u8>().ok()
    };
    // The larger of the two counts; 1 is strict, 2 loose.
    let strict = setting("all").max(setting(name)) == Some(1);
    if strict && tunnels {
        report.warn(
            "rp_filter",
            Some(name),
            "strict: answers to checks through the tunnel come from VIPs, and are dropped where the route to the VIP leads elsewhere",
            format!(
                "sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{}.rp_filter=2",
                name.replace('.', "/")
            ),
        );
    } else if strict {
        report.ok(
            "rp_filter",
            Some(name),
            "strict; forwarded packets do not meet it",
        );
    } else {
        report.ok("rp_filter", Some(name), "loose or off");
    }
}
