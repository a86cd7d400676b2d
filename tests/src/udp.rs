//! Answering datagrams from the address that they were sent to.

use std::{io, net::UdpSocket, os::fd::AsRawFd};

use nix::{
    cmsg_space,
    libc::{in_addr, in_pktinfo, in6_pktinfo},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
        setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
    },
};
use std::io::{IoSlice, IoSliceMut};

/// Makes the kernel say where each datagram was sent to.
pub(crate) fn want_destinations(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        setsockopt(socket, Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(socket, Ipv6RecvPacketInfo, &true)?;
    }
    Ok(())
}

/// Takes one datagram, and sends `answer` to it from the VIP: a socket bound to any address would answer from the host's own.
pub(crate) fn reply_from(
    socket: &UdpSocket,
    buffer: &mut [u8],
    answer: impl Fn(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    let mut control = cmsg_space!(in_pktinfo, in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let client = received.address;
    let destination = received.cmsgs()?.next();
    let bytes = received.bytes;
    let answer = answer(&buffer[..bytes]);
    let send = |from: &[ControlMessage<'_>]| {
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&answer)],
            from,
            MsgFlags::empty(),
            client.as_ref(),
        )
    };
    match destination {
        Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
            let from = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: info.ipi_addr,
                ipi_addr: in_addr { s_addr: 0 },
            };
            send(&[ControlMessage::Ipv4PacketInfo(&from)])?;
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
            let from = in6_pktinfo {
                ipi6_ifindex: 0,
                ..info
            };
            send(&[ControlMessage::Ipv6PacketInfo(&from)])?;
        }
        _ => return Err(io::Error::other("no destination came with the datagram")),
    }
    Ok(())
}
