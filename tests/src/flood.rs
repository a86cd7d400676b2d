//! Sending the same frames over and over, as fast as it goes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::RawSocket;

/// A thread that floods until this is dropped.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    start: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    sent: AtomicU64,
}

impl Flood {
    pub fn start(socket: RawSocket, frames: Vec<Vec<u8>>) -> Self {
        Self::with_pauses(socket, frames, Duration::ZERO)
    }

    /// Some thousand packets a second.
    pub fn trickle(socket: RawSocket, frames: Vec<Vec<u8>>) -> Self {
        Self::with_pauses(socket, frames, Duration::from_millis(20))
    }

    fn with_pauses(socket: RawSocket, frames: Vec<Vec<u8>>, pause: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let sending = shared.clone();
        let thread = thread::spawn(move || {
            for part in frames.chunks(1024).cycle() {
                if sending.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let sent = socket
                    .send_many(part)
                    .unwrap_or_else(|error| panic!("the flood ended: {error}"));
                sending.sent.fetch_add(sent as u64, Ordering::Relaxed);
                thread::sleep(pause);
            }
        });
        Self {
            shared,
            thread: Some(thread),
            start: Instant::now(),
        }
    }

    /// Frames so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    pub fn packets_per_second(&self) -> f64 {
        self.sent() as f64 / self.start.elapsed().as_secs_f64()
    }

    /// Ends it, and returns how many frames were sent.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.sent()
    }

    fn end(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, its message is on the terminal, and the scenario misses the packets.
            let _ = thread.join();
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end();
    }
}
