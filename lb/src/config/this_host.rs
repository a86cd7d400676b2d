//! What a config says of the machine that it is for: whether that machine is so.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    error::{ConfigError, ConfigErrors, Position, quoted},
    model::{Config, Forward, Vip},
};
use crate::net::{self, HostInterface};

/// Refuses a config that names interfaces which this machine does not have, or VIPs that would take what is for the machine
/// itself.
pub fn check_host(config: &Config) -> Result<(), ConfigErrors> {
    let interfaces = net::host_interfaces().map_err(ConfigErrors::Host)?;
    check_on(config, &interfaces)
}

/// As [`check_host`], for a machine with these interfaces.
pub fn check_on(
    config: &Config,
    interfaces: &BTreeMap<String, HostInterface>,
) -> Result<(), ConfigErrors> {
    let missing = placed(&config.dataplane.interfaces, &config.origin.interfaces)
        .filter(|(name, _)| !interfaces.contains_key(*name))
        .map(|(name, position)| {
            let message =
                format!("this machine has no interface `{name}`; `ip link` lists those it has");
            (position, message)
        });
    let answers = interfaces.iter().filter(|(_, interface)| interface.answers);
    let own: Vec<(IpAddr, &str)> = answers
        .flat_map(|(name, interface)| interface.addresses.iter().map(|own| (*own, name.as_str())))
        .collect();
    let taken = placed(&config.vips, &config.origin.vips).filter_map(|(vip, position)| {
        let (address, interface) = own.iter().find(|(address, _)| takes(vip, *address))?;
        let name = quoted(&vip.name);
        let message = format!(
            "VIP {name} takes `{address}`, which is this machine's own at {interface}: what is for itself, as SSH, could go to a backend; give the VIP another address, or write `forward = \"local\"`"
        );
        Some((position, message))
    });
    let found = missing.chain(taken).map(|(position, message)| ConfigError {
        file: config.origin.file.clone(),
        position,
        message,
    });
    ConfigErrors::refuse(found.collect())
}

/// A VIP by `local` leaves to the host what is the host's.
fn takes(vip: &Vip, own: IpAddr) -> bool {
    vip.forward != Forward::Local && vip.prefix.contains(&own)
}

/// Things of a config, and where they stand in its file.
fn placed<'a, T>(
    things: &'a [T],
    positions: &'a [Position],
) -> impl Iterator<Item = (&'a T, Position)> {
    let positions = positions.iter().copied();
    things
        .iter()
        .zip(positions.chain(std::iter::repeat(Position::default())))
}
