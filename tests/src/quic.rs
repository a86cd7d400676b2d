//! A client like QUIC's: full datagrams of one flow, which come in flights, are numbered, and are each answered.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use crate::{Client, UdpFlow};

/// A connection over datagrams: it is with whoever answered first.
#[derive(Debug)]
pub(crate) struct QuicLike {
    flow: UdpFlow,
    backend: String,
    /// Datagrams that were to be answered so far, which is the number of the next.
    asked: u32,
    /// How often one was sent again.
    lost: u32,
}

impl QuicLike {
    pub(crate) fn connect(client: &Client, vip: SocketAddr) -> io::Result<Self> {
        let mut connection = Self {
            flow: client.udp(vip)?,
            backend: String::new(),
            asked: 0,
            lost: 0,
        };
        connection.ask(1)?;
        Ok(connection)
    }

    /// Goes on by a flight of datagrams. What has no answer is sent again a few times, as QUIC does.
    pub(crate) fn fly(&mut self) -> io::Result<()> {
        self.ask(FLIGHT)
    }

    /// Datagrams that were to be answered, and how often one was sent again.
    pub(crate) fn asked_and_lost(&self) -> (u32, u32) {
        (self.asked, self.lost)
    }

    fn ask(&mut self, datagrams: u32) -> io::Result<()> {
        let mut open: BTreeSet<u32> = (self.asked..self.asked + datagrams).collect();
        self.asked += datagrams;
        for _ in 0..TRIES {
            for &number in &open {
                self.flow.socket().send(&self.datagram(number))?;
            }
            self.take_answers(&mut open)?;
            if open.is_empty() {
                return Ok(());
            }
            self.lost += u32::try_from(open.len()).expect("no more than a flight");
        }
        Err(io::Error::new(
            ErrorKind::TimedOut,
            format!("{} of {datagrams} datagrams have no answer", open.len()),
        ))
    }

    /// Takes answers until there are all, or none comes any more.
    fn take_answers(&mut self, open: &mut BTreeSet<u32>) -> io::Result<()> {
        self.flow.socket().set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 2 * DATAGRAM_BYTES];
        while !open.is_empty() {
            let bytes = match self.flow.socket().recv(&mut buffer) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let (backend, number) = self
                .answer(&buffer[..bytes])
                .ok_or_else(|| io::Error::other("an answer is not to what was asked"))?;
            if self.backend.is_empty() {
                self.backend = backend;
            } else if self.backend != backend {
                let moved = format!("{backend} answers in the place of {}", self.backend);
                return Err(io::Error::other(moved));
            }
            open.remove(&number);
        }
        Ok(())
    }

    /// Who answers, and which datagram.
    fn answer(&self, answer: &[u8]) -> Option<(String, u32)> {
        let (backend, datagram) =
            answer.split_at_checked(answer.len().checked_sub(DATAGRAM_BYTES)?)?;
        let number = u32::from_be_bytes(datagram[9..13].try_into().ok()?);
        let backend = backend.strip_suffix(b" ")?;
        (datagram == self.datagram(number))
            .then(|| (String::from_utf8_lossy(backend).into_owned(), number))
    }

    /// A header's form, the connection's id, the number, and what looks like cipher text.
    fn datagram(&self, number: u32) -> Vec<u8> {
        let form = if number == 0 {
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
        let id = u64::from(self.flow.local_address().port()).wrapping_mul(MIX);
        let mut word = id ^ u64::from(number);
        let mut datagram = vec![form];
        datagram.extend(id.to_be_bytes());
        datagram.extend(number.to_be_bytes());
        while datagram.len() < DATAGRAM_BYTES {
            word = word.wrapping_mul(MIX).rotate_left(29);
            datagram.extend(word.to_be_bytes());
        }
        datagram.truncate(DATAGRAM_BYTES);
        datagram
    }
}

/// The least that a client's first datagram has, and what many keep to.
const DATAGRAM_BYTES: usize = 1_200;
/// Fewer than QUIC sends before the first acknowledgement, and no more than a limit grants to the good.
const FLIGHT: u32 = 4;
const TRIES: u32 = 5;
/// How long the next answer may take.
const PATIENCE: Duration = Duration::from_millis(300);
const LONG_HEADER: u8 = 0xc3;
const SHORT_HEADER: u8 = 0x43;
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
