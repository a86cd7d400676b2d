//! The client's side of HTTP: one connection, kept open.

use std::{
    io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// An HTTP connection.
#[derive(Debug)]
pub struct Conn {
    stream: BufReader<TcpStream>,
    backend: String,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Conn {
    /// Takes a fresh connection, and asks who is at its other end.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut conn = Self {
            stream: BufReader::new(stream),
            backend: String::new(),
        };
        conn.backend = conn.try_who()?;
        Ok(conn)
    }

    /// Who answered first.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Asks again on this connection.
    ///
    /// # Panics
    /// If the connection is broken.
    pub fn ask_who(&mut self) -> String {
        self.try_who()
            .unwrap_or_else(|error| panic!("the connection to {} broke: {error}", self.backend))
    }

    pub fn try_who(&mut self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.get("/who")?.body).into_owned())
    }

    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        let length = self.request(path)?;
        let mut body = vec![0; length.1];
        self.stream.read_exact(&mut body)?;
        Ok(Response {
            status: length.0,
            body,
        })
    }

    /// Sends so many bytes; the answer says how many came.
    pub fn post(&mut self, bytes: usize) -> io::Result<Response> {
        let head = format!("POST /upload HTTP/1.1\r\nHost: lab\r\nContent-Length: {bytes}\r\n\r\n");
        self.stream.get_mut().write_all(head.as_bytes())?;
        self.stream.get_mut().write_all(&pattern(0, bytes))?;
        let (status, length) = self.head()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Response { status, body })
    }

    /// Gets a `/bytes/..` or `/slow/..`, and compares every byte. Returns their number.
    pub fn download(&mut self, path: &str) -> io::Result<usize> {
        let (_, length) = self.request(path)?;
        let mut read = 0;
        while read < length {
            let chunk = self.stream.fill_buf()?;
            if chunk.is_empty() {
                return Err(Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("ended after {read} of {length} bytes"),
                ));
            }
            let bytes = chunk.len().min(length - read);
            if chunk[..bytes] != pattern(read, bytes) {
                return Err(Error::new(
                    ErrorKind::InvalidData,
                    format!("wrong bytes after {read}"),
                ));
            }
            read += bytes;
            self.stream.consume(bytes);
        }
        Ok(read)
    }

    pub fn local_address(&self) -> SocketAddr {
        self.stream
            .get_ref()
            .local_addr()
            .expect("a connected socket has an address")
    }

    /// The socket, for its options.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    fn request(&mut self, path: &str) -> io::Result<(u16, usize)> {
        self.stream
            .get_mut()
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
        self.head()
    }

    /// Reads up to the body, and returns the status and the body's length.
    fn head(&mut self) -> io::Result<(u16, usize)> {
        let bad = || Error::new(ErrorKind::InvalidData, "not an HTTP answer");
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(bad)?;
        let mut length = 0;
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? <= 2 {
                return Ok((status, length));
            }
            if let Some(value) = line.strip_prefix("Content-Length:") {
                length = value.trim().parse().ok().ok_or_else(bad)?;
            }
        }
    }
}

/// Bytes of which the place can be told from the value.
pub(crate) fn pattern(start: usize, bytes: usize) -> Vec<u8> {
    (start..start + bytes)
        .map(|place| u8::try_from(place % 251).expect("below 251"))
        .collect()
}
