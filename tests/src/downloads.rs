//! Many slow downloads at once, and whether each of them arrives whole.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{Client, Conn};

/// Downloads under way.
#[derive(Debug)]
pub struct Downloads {
    threads: Vec<JoinHandle<Result<(), String>>>,
    backends: Vec<String>,
    last_piece: Arc<AtomicBool>,
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
        let path = format!("/slow/200000/{}", lasting.as_millis());
        Self::by(client, vips, count, path, Arc::new(AtomicBool::new(true)))
    }

    /// The same, but each lasts until all are to [finish](Self::finish): it comes in pieces of a second, without a pause.
    pub fn endless(client: &Client, vips: &[SocketAddr], count: usize) -> Self {
        let path = "/slow/4000/1000".to_owned();
        Self::by(client, vips, count, path, Arc::default())
    }

    fn by(
        client: &Client,
        vips: &[SocketAddr],
        count: usize,
        path: String,
        last_piece: Arc<AtomicBool>,
    ) -> Self {
        let connect = |vip: &SocketAddr| {
            client
                .connect(*vip)
                .unwrap_or_else(|error| panic!("no way to {vip}: {error}"))
        };
        let conns: Vec<Conn> = vips.iter().cycle().take(count).map(connect).collect();
        let backends = conns.iter().map(|conn| conn.backend().to_owned()).collect();
        let start = |mut conn: Conn| {
            let (path, last_piece) = (path.clone(), last_piece.clone());
            thread::spawn(move || {
                let backend = conn.backend().to_owned();
                loop {
                    let is_last = last_piece.load(Ordering::Relaxed);
                    conn.download(&path)
                        .map_err(|error| format!("from {backend}: {error}"))?;
                    if is_last {
                        return Ok(());
                    }
                }
            })
        };
        Self {
            threads: conns.into_iter().map(start).collect(),
            backends,
            last_piece,
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
        self.last_piece.store(true, Ordering::Relaxed);
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
