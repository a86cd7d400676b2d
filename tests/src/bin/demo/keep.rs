//! Says how to play with the lab that the demo left up.

use std::{fs::File, time::Duration};

use anyhow::{Context, Result};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use sluice_tests::{DNS_V4, Lab, WEB_V4, WEB_V6, sluice_binary};

pub(crate) fn print(lab: &Lab) -> Result<()> {
    let enter = |name: &str| format!("nsenter --net=/run/netns/{name}");
    let (client, node) = (
        enter(lab.client(0).netns().name()),
        enter(lab.node().netns().name()),
    );
    let sample = lab.dir().join("sample.pcap");
    write_sample(lab, File::create(&sample)?).context("cannot write a sample of packets")?;
    println!(
        "
The lab stays up until Ctrl-C here. In another shell, as root
(`ip netns exec` would hide the pinned maps, which are in bpffs):

  lb() {{ {node} {binary} \"$@\" -c {config}; }}
  lb status
  lb backends
  lb drops
  lb limits
  lb explain --pcap {sample}

Requests, from a client; the answer is the backend's name:

  {client} curl http://{WEB_V4}/who
  {client} curl http://{WEB_V6}/who
  {client} bash -c 'exec 3<>/dev/udp/{dns}/{dns_port}; echo hello >&3; head -1 <&3'

Config and logs lie in {dir}.
`kill -9 {daemon}` kills the daemon, and `lb run` in a shell of its own starts it again.
If this process is killed, `cargo xtask demo --clean` removes what it leaves.
",
        binary = sluice_binary().display(),
        config = lab.node().config_file().display(),
        sample = sample.display(),
        dns = DNS_V4.ip(),
        dns_port = DNS_V4.port(),
        dir = lab.dir().display(),
        daemon = lab.daemon().pid(),
    );
    Ok(())
}

/// A good packet, one of an attacker, and one for nobody.
fn write_sample(lab: &Lab, file: File) -> Result<()> {
    let frames = lab.node().frames();
    let from = |source: &str| format!("{source}:40000").parse();
    let sample = [
        frames.syn(from("198.18.7.7")?, WEB_V4),
        frames.udp(from("198.51.100.7")?, DNS_V4, b"attack"),
        frames.udp(from("198.18.7.7")?, (lab.node().v4(), 53).into(), b"host"),
    ];
    let mut pcap = PcapWriter::new(file)?;
    for frame in &sample {
        let bytes = u32::try_from(frame.len())?;
        pcap.write_packet(&PcapPacket::new(Duration::ZERO, bytes, frame))?;
    }
    Ok(())
}
