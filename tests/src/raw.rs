//! Whole Ethernet frames, sent and received on an interface.

use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    libc::ETH_P_ALL,
    sys::socket::{LinkAddr, MsgFlags, MultiHeaders, bind, sendmmsg},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Mac, Netns};

/// Frames for one system call.
const BATCH: usize = 64;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct RawSocket {
    socket: Socket,
    /// Of the interface.
    mac: Mac,
}

impl RawSocket {
    /// Sees every frame that enters or leaves by this interface.
    pub fn open(netns: &Netns, interface: &str) -> Self {
        Self::new(netns, interface, ETH_P_ALL)
    }

    /// Sees none, which makes it faster.
    pub fn sender(netns: &Netns, interface: &str) -> Self {
        Self::new(netns, interface, 0)
    }

    fn new(netns: &Netns, interface: &str, protocol: i32) -> Self {
        let protocol = u16::try_from(protocol).expect("an ethertype").to_be();
        let (socket, address) = netns.run(|| {
            let socket = Socket::new(
                Domain::PACKET,
                Type::RAW,
                Some(Protocol::from(i32::from(protocol))),
            );
            let address = link_address(interface)
                .unwrap_or_else(|| panic!("no {interface} in {}", netns.name()));
            (socket.expect("packet sockets are for root"), address)
        });
        bind(socket.as_raw_fd(), &address).expect("the interface is there");
        let this = Self {
            socket,
            mac: address.addr().expect("an Ethernet interface"),
        };
        // Before it was bound, it saw the other interfaces too.
        while this.receive(Duration::from_millis(1)).is_some() {}
        this
    }

    pub fn mac(&self) -> Mac {
        self.mac
    }

    pub fn send(&self, frame: &[u8]) {
        self.socket
            .send(frame)
            .unwrap_or_else(|error| panic!("cannot send a frame: {error}"));
    }

    /// Sends frames as fast as this thread can, and returns how many the kernel took.
    pub fn send_many<'a>(
        &self,
        frames: impl IntoIterator<Item = &'a Vec<u8>>,
    ) -> io::Result<usize> {
        let frames: Vec<[IoSlice<'_>; 1]> = frames
            .into_iter()
            .map(|frame| [IoSlice::new(frame)])
            .collect();
        let mut sent = 0;
        for batch in frames.chunks(BATCH) {
            let mut headers = MultiHeaders::<()>::preallocate(batch.len(), None);
            let to = vec![None::<()>; batch.len()];
            sent += match sendmmsg(
                self.socket.as_raw_fd(),
                &mut headers,
                batch,
                to,
                [],
                MsgFlags::empty(),
            ) {
                Ok(results) => results.count(),
                // The interface's queue is full, as it should be in a flood.
                Err(Errno::ENOBUFS | Errno::EAGAIN) => 0,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(sent)
    }

    /// The next frame, if one comes in time.
    pub fn receive(&self, limit: Duration) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65536];
        self.socket
            .set_read_timeout(Some(limit))
            .expect("a time that is not zero");
        let bytes = io::Read::read(&mut &self.socket, &mut buffer).ok()?;
        buffer.truncate(bytes);
        Some(buffer)
    }

    /// The first frame in which `find` finds something, within two seconds.
    pub fn find<T>(&self, mut find: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + Duration::from_secs(2);
        while let Some(left) = end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            if let Some(found) = self.receive(left).and_then(|frame| find(&frame)) {
                return Some(found);
            }
        }
        None
    }
}

fn link_address(interface: &str) -> Option<LinkAddr> {
    let addresses = getifaddrs().expect("interfaces can be listed");
    addresses
        .filter(|address| address.interface_name == interface)
        .find_map(|address| address.address?.as_link_addr().copied())
}
