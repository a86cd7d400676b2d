//! What happens in the demo, one act after the other.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::{Config, Flood, Good, Lab, Output};

use crate::{
    Stop,
    meter::{Meter, Packets},
    screen::{Screen, View, grouped},
    summary::Promise,
    traffic::Traffic,
};

/// Many networks, so that good requests come from as many as those of real users.
pub(crate) const GOOD_CLIENTS: [&str; 2] = Good::PREFIXES;
/// The backend that joins later.
pub(crate) const ADDED: &str = "b4";

const DRAINED: &str = "b1";
const ATTACKER: &str = "198.51.100.0/24";
/// 1,024 networks of /24.
const RANDOM_SOURCES: &str = "16.0.0.0/14";
const POLICY: &str = r#"[
    { class = "syn", per = "network", pps = 2, burst = 10 },
    { class = "udp", per = "network", pps = 2, burst = 10 },
]"#;
const REFRESH: Duration = Duration::from_millis(500);
/// Of attack packets, while a limit is in force.
const DROPPED_SHARE: f64 = 0.9;

pub(crate) struct Stage<'a> {
    lab: &'a Lab,
    screen: Screen,
    meter: Meter<'a>,
    traffic: Traffic,
    stop: &'a Stop,
    seconds: u32,
    config: Config,
    attack: Option<Flood>,
    /// Frames sent by floods that ended, and in all when the figures were read last.
    sent: [u64; 2],
    refreshed: Instant,
    promises: Vec<Promise>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(lab: &'a Lab, screen: Screen, stop: &'a Stop, seconds: u32) -> Result<Self> {
        Ok(Self {
            lab,
            screen,
            meter: Meter::new(lab),
            traffic: Traffic::start(lab.client(0))?,
            stop,
            seconds,
            config: lab.config(),
            attack: None,
            sent: [0; 2],
            refreshed: Instant::now(),
            promises: Vec::new(),
        })
    }

    /// Plays all acts, and says what became of each promise.
    pub(crate) fn play(mut self) -> Result<Vec<Promise>> {
        self.balance()?;
        self.flood_from_one_network()?;
        self.flood_from_random_sources()?;
        self.add_backend()?;
        self.drain_backend()?;
        self.kill_daemon()?;
        self.end()
    }

    fn balance(&mut self) -> Result<()> {
        self.screen.announce(
            "act 1: clients send HTTP and UDP over IPv4 and IPv6; XDP balances it over three backends",
        );
        self.last(8)?;
        let served = self.traffic.tally().served;
        self.promise(Promise::new(
            "every backend got flows",
            served.len() == 3,
            format!("answers: {served:?}"),
        ));
        Ok(())
    }

    fn flood_from_one_network(&mut self) -> Result<()> {
        self.screen.announce(&format!(
            "act 2: {ATTACKER} begins to attack, gently yet; nothing limits it, so the backends get it"
        ));
        let frames = self.flood_frames(ATTACKER);
        let trickle = self.lab.uplink_sender();
        let end = Instant::now() + self.share(3);
        while Instant::now() < end {
            self.sent[0] += trickle.send_many(&frames[..50])? as u64;
            self.pause(Duration::from_millis(100))?;
        }

        let limit = format!("limit set --prefix {ATTACKER} --class all --pps 100 --burst 10");
        self.order(&limit)?;
        self.screen
            .announce("       now the flood comes, as fast as this machine can send it");
        let packets = self.under(ATTACKER, |stage| stage.last(9))?;
        self.promise_dropped("a flood from one network was dropped", packets);
        Ok(())
    }

    fn flood_from_random_sources(&mut self) -> Result<()> {
        self.screen.announce(&format!(
            "act 3: random sources of {RANDOM_SOURCES}, which no single limit meets; the config gets a policy, then `sluice reload`"
        ));
        self.config = self.config.clone().policy("enforce", POLICY);
        self.reload()?;
        let packets = self.under(RANDOM_SOURCES, |stage| stage.last(10))?;
        self.promise_dropped("a flood from random sources was dropped", packets);
        Ok(())
    }

    fn add_backend(&mut self) -> Result<()> {
        self.screen.announce(&format!(
            "act 4: backend {ADDED} is added to the config, then `sluice reload`"
        ));
        self.config = self.config.clone().with(self.lab.backend(ADDED));
        self.reload()?;
        self.last(8)?;
        let flows = self.served_by(ADDED);
        self.promise(Promise::new(
            "the new backend got flows",
            flows > 0,
            format!("{ADDED} answered {flows}"),
        ));
        Ok(())
    }

    fn drain_backend(&mut self) -> Result<()> {
        self.screen.announce(&format!(
            "act 5: {DRAINED} is drained: it gets no new flows"
        ));
        let drained = self.lab.backend(DRAINED);
        for name in [
            format!("v4/{}", drained.v4()),
            format!("v6/{}", drained.v6()),
        ] {
            self.order(&format!("drain backend {name}"))?;
        }
        self.traffic.is_drained(DRAINED);
        self.last(8)
    }

    fn kill_daemon(&mut self) -> Result<()> {
        self.screen.announce(&format!(
            "act 6: {ATTACKER} floods again, and the daemon is killed (kill -9); its maps and program stay in the kernel"
        ));
        let daemon = self.lab.daemon();
        let served_before = self.traffic.tally().served();
        let packets = self.under(ATTACKER, |stage| {
            stage.last(2)?;
            daemon.kill9();
            stage.last(4)?;
            stage
                .screen
                .announce("       the daemon is started again, and adopts what it finds");
            daemon.start();
            stage.last(4)
        })?;
        let served = self.traffic.tally().served() - served_before;
        self.promise_dropped("the limit outlived the daemon", packets);
        let adopted = self.meter.last().adopted;
        self.promise(Promise::new(
            "the daemon adopted what it found",
            adopted,
            format!(
                "`sluice status` says {}; {} requests were served meanwhile",
                if adopted { "adopted" } else { "not adopted" },
                grouped(served)
            ),
        ));
        Ok(())
    }

    fn end(mut self) -> Result<Vec<Promise>> {
        self.screen
            .announce("the end: every client finishes what it does");
        let tally = self.traffic.finish();
        self.promises.extend([
            Promise::none(
                "no good request failed",
                &tally.failures,
                &format!(
                    "{} served; of these asked again: {}",
                    grouped(tally.served()),
                    grouped(tally.asked_again)
                ),
            ),
            Promise::none(
                "no established flow was broken or reset",
                &tally.broken,
                &format!(
                    "{} connections through all acts, {} answers",
                    tally.alive(),
                    grouped(tally.lasting_answers)
                ),
            ),
            Promise::none(
                "the drained backend got no new flows",
                &tally.strays,
                &format!("{DRAINED} answered only before"),
            ),
        ]);
        Ok(self.promises)
    }

    /// Floods from a prefix meanwhile, and returns what became of all packets.
    fn under(
        &mut self,
        prefix: &str,
        meanwhile: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Packets> {
        let before = self.meter.read().packets;
        let frames = self.flood_frames(prefix);
        self.attack = Some(self.lab.flood(frames));
        meanwhile(self)?;
        if let Some(attack) = self.attack.take() {
            self.sent[0] += attack.stop();
        }
        Ok(self.meter.read().packets.since(before))
    }

    fn flood_frames(&self, prefix: &str) -> Vec<Vec<u8>> {
        let prefix = prefix.parse().expect("a prefix");
        self.lab.node().frames().flood(prefix, 1 << 15)
    }

    fn promise_dropped(&mut self, text: &'static str, packets: Packets) {
        self.promise(Promise::new(
            text,
            packets.dropped_share() >= DROPPED_SHARE,
            format!(
                "{} dropped, {:.1}% of all that came, good ones included",
                grouped(packets.dropped),
                packets.dropped_share() * 100.0
            ),
        ));
    }

    fn promise(&mut self, promise: Promise) {
        self.promises.push(promise);
    }

    fn served_by(&self, backend: &str) -> u64 {
        let tally = self.traffic.tally();
        tally.served.get(backend).copied().unwrap_or_default()
    }

    /// Does what an operator would do, for all to see.
    fn order(&mut self, line: &str) -> Result<()> {
        self.screen.announce(&format!("       $ sluice {line}"));
        done(self.lab.sluice(line))
    }

    fn reload(&self) -> Result<()> {
        done(self.lab.reload(&self.config)).context("the daemon refused the config")
    }

    /// Lets so many of the demo's 60 shares of time pass.
    fn last(&mut self, shares: u32) -> Result<()> {
        self.pause(self.share(shares))
    }

    fn share(&self, shares: u32) -> Duration {
        Duration::from_secs(self.seconds.into()) * shares / 60
    }

    /// Lets time pass, and shows what happens meanwhile.
    fn pause(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if self.refreshed.elapsed() >= REFRESH {
                self.refresh();
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    fn refresh(&mut self) {
        let sent = self.sent[0] + self.attack.as_ref().map_or(0, Flood::sent);
        let elapsed = self.refreshed.elapsed().as_secs_f64();
        self.refreshed = Instant::now();
        let attack_pps = (sent - self.sent[1]) as f64 / elapsed;
        self.sent[1] = sent;
        self.screen.show(&View {
            figures: self.meter.read(),
            tally: &self.traffic.tally(),
            attack_pps,
        });
    }
}

fn done(output: Output) -> Result<()> {
    ensure!(
        output.status == 0,
        "sluice failed: {}{}",
        output.stdout,
        output.stderr
    );
    Ok(())
}
