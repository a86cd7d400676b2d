//! Bugs that tests put into tasks.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::time::interval;

use super::{Heart, Pace, Supervisor};

/// What a task is to do instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Fault {
    Panic,
    Hang,
}

/// Faults that are to come, by task.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<BTreeMap<&'static str, Fault>>>);

/// How soon a fault strikes.
const SOON: Duration = Duration::from_millis(20);

impl Faults {
    /// The task, until its fault is there.
    pub(super) fn put_into<F: Future>(
        &self,
        name: &'static str,
        heart: Heart,
        task: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let faults = self.clone();
        async move {
            let mut task = pin!(task);
            let mut looks = interval(SOON);
            poll_fn(|context| {
                // Also where nothing happens.
                while looks.poll_tick(context).is_ready() {}
                let fault = faults.0.lock().unwrap().remove(name);
                if let Some(fault) = fault {
                    assert!(fault == Fault::Hang, "a bug");
                    heart.is_stopped.store(true, Ordering::Relaxed);
                }
                if heart.is_stopped.load(Ordering::Relaxed) {
                    return Poll::Pending;
                }
                task.as_mut().poll(context)
            })
            .await
        }
    }
}

impl Supervisor {
    /// One that sees everything soon.
    pub(in crate::control) fn hasty() -> Self {
        let ms = Duration::from_millis;
        Self {
            pace: Pace {
                beat: ms(200),
                first: ms(100),
                longest: ms(400),
            },
            ..Self::default()
        }
    }

    /// Has a task fail soon.
    pub(in crate::control) fn spoil(&self, name: &'static str, fault: Fault) {
        self.faults.0.lock().unwrap().insert(name, fault);
    }
}
