//! The daemon as a service of its host: what it tells the service manager, and which rights it keeps.

pub mod capabilities;
mod manager;

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use manager::{Manager, Reloading};

use crate::{
    api::is_up,
    control::{Handle, Heart, Refused, View},
};

/// Tells the service manager when the data plane holds what the config asks for, how it is from then on, and that the
/// control loop still answers. Never ends while there is one.
pub async fn attend(manager: Manager, control: Handle, heart: Heart) {
    if manager.is_there() {
        let pings = async {
            if let Some(limit) = manager.watchdog() {
                ping(&manager, limit, || control.answers()).await;
            }
        };
        tokio::join!(tell_status(&manager, &control, &heart), pings);
    }
}

/// The heart beats here: without pings the watchdog ends the daemon.
async fn tell_status(manager: &Manager, control: &Handle, heart: &Heart) {
    let (mut ready, mut told) = (false, String::new());
    loop {
        heart.beat();
        let view = control.view();
        let now = status(&view);
        let becomes_ready = view.ready && !ready;
        ready |= becomes_ready;
        if now != told {
            let begin = if becomes_ready { "READY=1\n" } else { "" };
            manager.tell(&format!("{begin}STATUS={now}"));
            told = now;
        }
        sleep(if ready { STATUS } else { SOON }).await;
    }
}

/// Tells the watchdog that all is well, as long as the control loop answers in time.
async fn ping<F>(manager: &Manager, limit: Duration, answers: impl Fn() -> F)
where
    F: Future<Output = Result<(), Refused>>,
{
    let every = limit / 4;
    let mut next = Instant::now();
    loop {
        match timeout(every, answers()).await {
            Ok(Ok(())) => manager.tell("WATCHDOG=1"),
            Ok(Err(_)) | Err(_) => tracing::error!(
                "the control loop does not answer; the service manager restarts the daemon if that goes on (packets are forwarded meanwhile)"
            ),
        }
        next = (next + every).max(Instant::now());
        sleep_until(next).await;
    }
}

const STATUS: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(20);

/// One line for `systemctl status`.
fn status(view: &View) -> String {
    let pools = &view.config.pools;
    let backends = pools.iter().flat_map(|pool| {
        let addresses = pool.backends.iter().map(|backend| backend.address);
        addresses.map(|address| (pool.name.as_str(), address))
    });
    let up = backends
        .clone()
        .filter(|&(pool, address)| is_up(view, pool, address));
    let state = match view.ready {
        true => "forwards",
        false if view.adopted => "waits for health and next hops; forwards as before",
        false => "waits for health and next hops",
    };
    let (vips, up, backends) = (view.config.vips.len(), up.count(), backends.count());
    let warnings = match view.warnings.len() {
        0 => String::new(),
        count => format!("; {count} warnings, see `sluice status`"),
    };
    format!("{state}: {vips} VIPs, {up} of {backends} backends up{warnings}")
}

#[cfg(test)]
mod tests {
    use std::{future::pending, os::unix::net::UnixDatagram};

    use super::*;

    #[tokio::test]
    async fn the_watchdog_hears_of_us_only_while_the_control_loop_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let pings = || {
            let mut buffer = [0; 100];
            std::iter::from_fn(|| listener.recv(&mut buffer).ok()).count()
        };
        let limit = Duration::from_millis(800);
        let manager = Manager::at(&path);
        let lasting = Duration::from_millis(900);

        let answers = || async { Ok(()) };
        assert!(
            timeout(lasting, ping(&manager, limit, answers))
                .await
                .is_err()
        );
        let heard = pings();
        assert!(
            (2..=5).contains(&heard),
            "at once, and each 200 ms: {heard}"
        );

        let hangs = || pending::<Result<(), Refused>>();
        assert!(
            timeout(lasting, ping(&manager, limit, hangs))
                .await
                .is_err()
        );
        assert_eq!(pings(), 0);

        let ended = || async { Err(Refused::Ended) };
        assert!(
            timeout(lasting, ping(&manager, limit, ended))
                .await
                .is_err()
        );
        assert_eq!(pings(), 0);
    }
}
