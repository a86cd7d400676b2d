//! A packet described on the command line.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};
use etherparse::{PacketBuilder, TcpHeader};

use super::Failed;

#[derive(Debug, Args)]
pub(super) struct FlowArgs {
    /// Instead of a file: where the packet comes from, ADDRESS:PORT, or ADDRESS for icmp
    #[arg(long, value_name = "FROM", value_parser = endpoint, requires = "to")]
    pub(super) from: Option<SocketAddr>,
    /// Where it goes
    #[arg(long, value_name = "TO", value_parser = endpoint, requires = "from")]
    pub(super) to: Option<SocketAddr>,
    /// What it is
    #[arg(long, value_enum, default_value_t = ProtocolArg::Tcp)]
    pub(super) protocol: ProtocolArg,
    /// TCP flags, with commas between them
    #[arg(long, value_enum, value_delimiter = ',', default_value = "syn")]
    pub(super) flags: Vec<FlagArg>,
    /// Bytes of payload
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(super) length: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ProtocolArg {
    Tcp,
    Udp,
    /// An echo request
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FlagArg {
    Syn,
    Ack,
    Fin,
    Rst,
    Psh,
    Urg,
    /// No flag at all
    None,
}

/// An address with a port; without one it is 0.
fn endpoint(text: &str) -> Result<SocketAddr, String> {
    if let Ok(endpoint) = text.parse() {
        return Ok(endpoint);
    }
    let address: Result<IpAddr, _> = text.trim_matches(['[', ']']).parse();
    match address {
        Ok(address) => Ok(SocketAddr::new(address, 0)),
        Err(_) => Err("write 198.51.100.7:4711, or [2001:db8::7]:4711".into()),
    }
}

impl FlowArgs {
    /// The packet as an Ethernet frame, if one is described.
    pub(super) fn frame(&self) -> Result<Option<Vec<u8>>, Failed> {
        let (Some(from), Some(to)) = (self.from, self.to) else {
            return Ok(None);
        };
        let ports = self.protocol != ProtocolArg::Icmp;
        if ports && (from.port() == 0 || to.port() == 0) {
            return Err("TCP and UDP need a port in both --from and --to".into());
        }
        const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
        const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
        const HOPS: u8 = 64;
        let ethernet = PacketBuilder::ethernet2(FROM, TO);
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), HOPS),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), HOPS),
            _ => return Err("--from and --to are of different families".into()),
        };
        let payload = vec![0; usize::from(self.length)];
        let mut frame = Vec::new();
        match self.protocol {
            ProtocolArg::Tcp => {
                let header = self.tcp(from.port(), to.port());
                ip.tcp_header(header).write(&mut frame, &payload)?;
            }
            ProtocolArg::Udp => ip.udp(from.port(), to.port()).write(&mut frame, &payload)?,
            ProtocolArg::Icmp if from.is_ipv4() => {
                ip.icmpv4_echo_request(1, 1).write(&mut frame, &payload)?;
            }
            ProtocolArg::Icmp => ip.icmpv6_echo_request(1, 1).write(&mut frame, &payload)?,
        }
        Ok(Some(frame))
    }

    fn tcp(&self, from: u16, to: u16) -> TcpHeader {
        let has = |flag| self.flags.contains(&flag);
        let mut header = TcpHeader::new(from, to, 1, 65535);
        header.syn = has(FlagArg::Syn);
        header.ack = has(FlagArg::Ack);
        header.fin = has(FlagArg::Fin);
        header.rst = has(FlagArg::Rst);
        header.psh = has(FlagArg::Psh);
        header.urg = has(FlagArg::Urg);
        header
    }
}
