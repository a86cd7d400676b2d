//! `sluice decap`: takes tunnel headers off at a backend that has no tunnel devices, for as long as it runs.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapError, PerCpuArray},
    programs::{ProgramError, Xdp, XdpMode as Attachment},
};
use ipnet::{IpNet, Ipv6Net};
use sluice_ebpf::decap::{MAX_ADDRESSES, Prefix, Stats};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use crate::{config::XdpMode, net, objects::DECAP};

/// Which packets to take apart, and where.
#[derive(Clone, Debug)]
pub struct Options {
    pub interface: String,
    /// Outer destinations. None: every address that the interface has when this starts.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of outer sources. None: any.
    pub from: Vec<IpNet>,
    pub mode: XdpMode,
}

/// Attaches, has that announced with the addresses, and stays until SIGINT or SIGTERM; then detaches. Packets that are no tunnel's for us pass untouched.
///
/// # Errors
/// If there is no such interface, or it cannot attach. Nothing stays attached then.
pub async fn run(
    options: Options,
    announce: impl FnOnce(&Options, &[IpAddr]),
) -> Result<(), DecapError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DecapError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DecapError::Signals)?;
    let addresses = addresses(&options)?;
    if options.from.is_empty() {
        warn!(
            "without --from anybody who can reach this host can send it packets in a tunnel, from any inner source: name the load balancers' tunnel sources"
        );
    }
    let mut decap = Decap::load(&addresses, &options.from)?;
    decap.attach(&options.interface, options.mode)?;
    announce(&options, &addresses);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// The loaded program. It detaches when this is dropped, also when the process dies.
#[derive(Debug)]
pub struct Decap(Ebpf);

impl Decap {
    /// Loads the program for outer destinations `addresses` and outer sources `from` (none: any).
    ///
    /// # Errors
    /// If there are more than 64 of either, or the kernel refuses.
    pub fn load(addresses: &[IpAddr], from: &[IpNet]) -> Result<Self, DecapError> {
        let any = [IpNet::from(Ipv6Net::default())];
        let from = if from.is_empty() { &any[..] } else { from };
        let destinations: Vec<Prefix> = addresses
            .iter()
            .map(|&address| prefix(address.into()))
            .collect();
        let sources: Vec<Prefix> = from.iter().copied().map(prefix).collect();
        let address_count = count("addresses", &destinations)?;
        let source_count = count("source prefixes", &sources)?;

        let mut ebpf = EbpfLoader::new()
            .override_global("ADDRESS_COUNT", &address_count, true)
            .override_global("SOURCE_COUNT", &source_count, true)
            .load(DECAP)
            .map_err(DecapError::Load)?;
        write(&mut ebpf, "ADDRESSES", &destinations)?;
        write(&mut ebpf, "SOURCES", &sources)?;
        let mut decap = Self(ebpf);
        decap.program().load().map_err(DecapError::Program)?;
        Ok(decap)
    }

    /// Attaches to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// If there is no such interface, or it has an XDP program already.
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<(), DecapError> {
        let failed = |source| DecapError::Attach {
            interface: interface.to_owned(),
            source,
        };
        let program = self.program();
        match mode {
            XdpMode::Native => program.attach(interface, Attachment::Driver),
            XdpMode::Generic => program.attach(interface, Attachment::Skb),
            XdpMode::Auto => match program.attach(interface, Attachment::Driver) {
                Err(error @ ProgramError::UnknownInterface { .. }) => Err(error),
                Err(error) => {
                    warn!(
                        "{interface} takes no native XDP program ({}); attaching in generic mode, which is slower",
                        chain(&error)
                    );
                    program.attach(interface, Attachment::Skb)
                }
                attached => attached,
            },
        }
        .map_err(failed)?;
        Ok(())
    }

    /// What became of the packets so far, over all CPUs.
    ///
    /// # Errors
    /// If the kernel does not let us read the map.
    pub fn stats(&self) -> Result<Stats, DecapError> {
        let map = self.0.map("STATS").expect("the object has this map");
        let stats = PerCpuArray::<_, [u64; 3]>::try_from(map)
            .and_then(|stats| stats.get(&0, 0))
            .map_err(DecapError::Map)?;
        let mut sum = Stats::default();
        for &words in stats.iter() {
            let cpu: Stats = bytemuck::cast(words);
            sum.decapsulated += cpu.decapsulated;
            sum.passed += cpu.passed;
            sum.malformed += cpu.malformed;
        }
        Ok(sum)
    }

    /// The program itself, to try frames on it.
    pub fn program(&mut self) -> &mut Xdp {
        self.0
            .program_mut("decap")
            .expect("the object has this program")
            .try_into()
            .expect("it is an XDP program")
    }
}

/// Why `sluice decap` did not start.
#[derive(Debug, thiserror::Error)]
pub enum DecapError {
    #[error("cannot load the decapsulation program (are you root?)")]
    Load(#[source] EbpfError),
    #[error("the kernel refuses the decapsulation program (are you root?)")]
    Program(#[source] ProgramError),
    #[error(
        "cannot attach to {interface}; if another XDP program is there, `ip link show {interface}` names it"
    )]
    Attach {
        interface: String,
        source: ProgramError,
    },
    #[error("cannot use a map of the decapsulation program")]
    Map(#[source] MapError),
    #[error("{number} {what}; at most {MAX_ADDRESSES} are possible")]
    TooMany { what: &'static str, number: usize },
    #[error("there is no interface {interface}; `ip link` lists those there are")]
    NoInterface { interface: String },
    #[error("{interface} has no address; name the tunnels' destinations with --address")]
    NoAddress { interface: String },
    #[error("cannot list the interfaces of this machine")]
    Interfaces(#[source] io::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

fn count(what: &'static str, prefixes: &[Prefix]) -> Result<u32, DecapError> {
    u32::try_from(prefixes.len())
        .ok()
        .filter(|&count| count <= MAX_ADDRESSES)
        .ok_or(DecapError::TooMany {
            what,
            number: prefixes.len(),
        })
}

fn write(ebpf: &mut Ebpf, map: &str, prefixes: &[Prefix]) -> Result<(), DecapError> {
    let map = ebpf.map_mut(map).expect("the object has this map");
    let mut map = Array::<_, [u64; 4]>::try_from(map).map_err(DecapError::Map)?;
    for (index, prefix) in (0..).zip(prefixes) {
        map.set(index, bytemuck::cast::<_, [u64; 4]>(*prefix), 0)
            .map_err(DecapError::Map)?;
    }
    Ok(())
}

/// IPv4 mapped, as the programs compare it.
pub(crate) fn prefix(of: IpNet) -> Prefix {
    let (network, mapped_bits) = match of.network() {
        IpAddr::V4(network) => (network.to_ipv6_mapped(), 96),
        IpAddr::V6(network) => (network, 0),
    };
    let length = u32::from(of.prefix_len()) + mapped_bits;
    let mask = Ipv6Addr::from(u128::MAX.checked_shl(128 - length).unwrap_or(0));
    Prefix {
        bits: bytemuck::cast(network.octets()),
        mask: bytemuck::cast(mask.octets()),
    }
}

/// Those that were asked for, or all that the interface has.
fn addresses(options: &Options) -> Result<Vec<IpAddr>, DecapError> {
    let name = || options.interface.clone();
    let mut interfaces = net::host_interfaces().map_err(DecapError::Interfaces)?;
    let Some(interface) = interfaces.remove(&options.interface) else {
        return Err(DecapError::NoInterface { interface: name() });
    };
    let addresses = match &options.addresses[..] {
        [] => interface.addresses,
        asked => asked.to_vec(),
    };
    if addresses.is_empty() {
        return Err(DecapError::NoAddress { interface: name() });
    }
    Ok(addresses)
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_its_addresses_and_no_others() {
        let holds = |of: &str, address: &str| {
            let address = match address.parse().unwrap() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            prefix(of.parse().unwrap()).holds(bytemuck::cast(address.octets()))
        };
        for (of, address, expected) in [
            ("10.1.0.0/16", "10.1.255.255", true),
            ("10.1.0.0/16", "10.2.0.0", false),
            ("0.0.0.0/0", "255.1.2.3", true),
            ("0.0.0.0/0", "::1", false),
            ("192.0.2.1/32", "192.0.2.1", true),
            ("192.0.2.1/32", "192.0.2.0", false),
            ("2001:db8::/63", "2001:db8:0:1:ffff::", true),
            ("2001:db8::/63", "2001:db8:0:2::", false),
            ("fd00::1/128", "fd00::1", true),
            ("fd00::1/128", "fd00::", false),
            ("::/0", "10.0.0.1", true),
            ("::/0", "ff02::1", true),
        ] {
            assert_eq!(holds(of, address), expected, "{address} in {of}");
        }
    }

    #[tokio::test]
    async fn an_interface_that_is_not_there_is_told() {
        let options = Options {
            interface: "nope".to_owned(),
            addresses: Vec::new(),
            from: Vec::new(),
            mode: XdpMode::Auto,
        };
        let error = run(options, |_, _| panic!("attached")).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("there is no interface nope"), "{text}");
    }

    #[test]
    fn a_65th_address_is_refused() {
        let error = Decap::load(&[IpAddr::V6(Ipv6Addr::LOCALHOST); 65], &[]).unwrap_err();
        assert_eq!(error.to_string(), "65 addresses; at most 64 are possible");
    }
}
