//! Many slow downloads at once, and whether each of them arrives whole.

use std::{
    net::SocketAddr,
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{Client, Conn};

/// Downloads under way.
#[derive(Debug)]
pub struct Downloads {
    threads: Vec<JoinHandle<Result<(), String>>>,
    backends: Vec<String>,
}

/// How they ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub whole: usize,
    /// What each of the others died of.
    pub broken: Vec<String>,
}

impl Downloads {
    /// Opens `count` connections one by one, then lets each download last as long as asked.
    pub fn start(client: &Client, vips: &[SocketAddr], count: usize, lasting: Duration) -> Self {
        let path = format!("/slow/{}/{}", 200_000, lasting.as_millis());
        let connect = |vip: &SocketAddr| {
            client
                .connect(*vip)
                .unwrap_or_else(|error| panic!("no way to {vip}: {error}"))
        };
        let conns: Vec<Conn> = vips.iter().cycle().take(count).map(connect).collect();
        let backends = conns.iter().map(|conn| conn.backend().to_owned()).collect();
        let start = |mut conn: Conn| {
            let path = path.clone();
            thread::spawn(move || {
                let backend = conn.backend().to_owned();
                conn.download(&path)
                    .map(drop)
                    .map_err(|error| format!("from {backend}: {error}"))
            })
        };
        Self {
            threads: conns.into_iter().map(start).collect(),
            backends,
        }
    }

    /// Where they come from.
    pub fn backends(&self) -> &[String] {
        &self.backends
    }

    pub fn unfinished(&self) -> usize {
        self.threads
            .iter()
            .filter(|thread| !thread.is_finished())
            .count()
    }

    /// Waits for all.
    pub fn finish(self) -> Outcome {
        let mut outcome = Outcome::default();
        for thread in self.threads {
            match thread.join() {
                Ok(Ok(())) => outcome.whole += 1,
                Ok(Err(error)) => outcome.broken.push(error),
                Err(_) => outcome.broken.push("its thread panicked".to_owned()),
            }
        }
        outcome
    }
}
