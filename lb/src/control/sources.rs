//! Keeps the health checks and the resolver running.

use std::{convert::Infallible, sync::Arc};

use tokio::sync::{mpsc, watch};

use super::supervise::{Heart, Supervisor};
use crate::{
    health::{Checker, Snapshot, State, Target, Transition},
    net::{Resolutions, Resolver, Wanted},
};

/// What the control loop watches, and how it says what is to be watched.
#[derive(Clone, Debug)]
pub struct Sources {
    pub health: watch::Receiver<Snapshot>,
    pub targets: watch::Sender<Arc<Vec<Target>>>,
    pub resolutions: watch::Receiver<Resolutions>,
    pub wanted: watch::Sender<Wanted>,
}

impl Sources {
    /// Starts both. They live as long as the runtime.
    pub fn start(supervisor: &Supervisor) -> Self {
        let (targets, targets_receiver) = watch::channel(Arc::default());
        let (health_sender, health) = watch::channel(Snapshot::default());
        supervisor.run("health checks", move |heart| {
            check_health(heart, targets_receiver.clone(), health_sender.clone())
        });
        let (wanted, wanted_receiver) = watch::channel(Wanted::default());
        let (resolutions_sender, resolutions) = watch::channel(Resolutions::default());
        supervisor.run("resolver", move |heart| {
            resolve(heart, wanted_receiver.clone(), resolutions_sender.clone())
        });
        Self {
            health,
            targets,
            resolutions,
            wanted,
        }
    }
}

const TRANSITIONS: usize = 1024;

async fn check_health(
    heart: Heart,
    targets: watch::Receiver<Arc<Vec<Target>>>,
    publish: watch::Sender<Snapshot>,
) -> Result<Infallible, String> {
    let (sender, mut transitions) = mpsc::channel(TRANSITIONS);
    let known = publish.borrow().clone();
    let checker =
        Checker::start(targets, sender, known).map_err(|error| format!("no thread: {error}"))?;
    let mut snapshot = checker.snapshot();
    let (mut beat, mut turns) = (heart.interval(), 0);
    loop {
        tokio::select! {
            // The thread's beat is what counts.
            _ = beat.tick() => if checker.load().turns() != turns {
                turns = checker.load().turns();
                heart.beat();
            },
            changed = snapshot.changed() => {
                changed.map_err(|_closed| "the checks ended")?;
                publish.send_replace(snapshot.borrow_and_update().clone());
            }
            transition = transitions.recv() => log(transition.ok_or("the checks ended")?),
        }
    }
}

async fn resolve(
    heart: Heart,
    wanted: watch::Receiver<Wanted>,
    publish: watch::Sender<Resolutions>,
) -> Result<Infallible, String> {
    let resolver = Resolver::start(wanted).map_err(|error| error.to_string())?;
    let mut resolutions = resolver.resolutions();
    let (mut beat, mut turns) = (heart.interval(), 0);
    loop {
        tokio::select! {
            _ = beat.tick() => if resolver.turns() != turns {
                turns = resolver.turns();
                heart.beat();
            },
            changed = resolutions.changed() => {
                changed.map_err(|_closed| "the resolver ended")?;
                publish.send_replace(resolutions.borrow_and_update().clone());
            }
        }
    }
}

fn log(transition: Transition) {
    let Transition {
        pool,
        address,
        state,
        error,
        ..
    } = transition;
    match state {
        State::Down => {
            let error = error.unwrap_or_default();
            tracing::warn!(%pool, backend = %address, %error, "backend is down: its flows go elsewhere");
        }
        State::Up => tracing::info!(%pool, backend = %address, "backend is up"),
        State::Unknown => {}
    }
}
