//! The thread that writes to the disk, so that nobody else waits for it.

use std::{
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use super::{Change, Medium, Store, StoreError};
use crate::control::chain;

/// Gives changes to the thread, in order.
#[derive(Debug)]
pub struct Writer {
    /// `None` only while the writer is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    trouble: watch::Receiver<Option<String>>,
}

#[derive(Debug)]
struct Job {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Writer {
    /// Starts the thread. Dropping the writer waits until all that was submitted is written.
    pub fn start<M: Medium>(store: Store<M>) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let (say, trouble) = watch::channel(None);
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || write(store, &receiver, &say))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            trouble,
        })
    }

    /// Has changes written, all or none. What comes back tells when they are on the disk.
    pub fn submit(&self, changes: Vec<Change>) -> oneshot::Receiver<Result<(), StoreError>> {
        let (done, outcome) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // If the thread is gone, so is `done`, and that is what the caller sees.
            _ = jobs.send(Job { changes, done });
        }
        outcome
    }

    /// Why nothing can be written; `None` while it can.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, that was said.
            _ = thread.join();
        }
    }
}

/// How often a store that failed is tried.
const RETRY: Duration = Duration::from_secs(1);

fn write<M: Medium>(
    mut store: Store<M>,
    jobs: &Receiver<Job>,
    trouble: &watch::Sender<Option<String>>,
) {
    if !store.is_sound() {
        say(trouble, store.recover().err().map(|error| chain(&error)));
    }
    loop {
        let job = if store.is_sound() {
            jobs.recv().map_err(|_ended| RecvTimeoutError::Disconnected)
        } else {
            jobs.recv_timeout(RETRY)
        };
        let result = match job {
            Ok(job) => {
                let result = store.commit(&job.changes);
                let failed = result.as_ref().err().map(|error| chain(error));
                // Who asked may be gone.
                _ = job.done.send(result);
                failed
            }
            Err(RecvTimeoutError::Timeout) => store.recover().err().map(|error| chain(&error)),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // Said before anybody asks for a change that would be refused; and what it said may be over by now.
        say(trouble, result);
    }
}

fn say(trouble: &watch::Sender<Option<String>>, now: Option<String>) {
    trouble.send_if_modified(|before| {
        let differs = *before != now;
        match &now {
            Some(error) if differs => {
                tracing::error!("what is set at run time is refused: {error}");
            }
            None if differs => tracing::info!("what is set at run time is taken again"),
            _ => {}
        }
        *before = now;
        differs
    });
}
