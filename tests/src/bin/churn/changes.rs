//! What is changed: the config, drains, limits, a backend that fails, and the daemon itself.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sluice_tests::{ApiConn, Config, Lab};

use crate::traffic::Traffic;

/// The backend that comes and goes; no lasting flow is there.
pub(crate) const FAILING: &str = "b4";

pub(crate) struct Changes<'a> {
    lab: &'a Lab,
    traffic: &'a Traffic,
    api: ApiConn,
    made: u64,
    /// Whether the failing backend is up, and since when it is what it is.
    failing: (bool, Instant),
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    reloads: u64,
    drains: u64,
    limits: u64,
    failures: u64,
    scrapes: u64,
    restarts: u64,
}

/// Long enough to be noticed, and to take flows again.
const BETWEEN_FAILURES: Duration = Duration::from_secs(9);

pub(crate) fn quick_checks(config: Config) -> Config {
    config.health(
        r#"{ kind = "http", port = 80, path = "/health", status = 200, interval = "500ms", timeout = "500ms", rise = 1, fall = 4 }"#,
    )
}

/// The config with the backend that the lab began without.
pub(crate) fn all_backends(lab: &Lab) -> Config {
    lab.config().with(lab.backend(FAILING))
}

impl<'a> Changes<'a> {
    pub(crate) fn new(lab: &'a Lab, traffic: &'a Traffic) -> Self {
        Self {
            lab,
            traffic,
            api: connect(lab),
            made: 0,
            failing: (true, Instant::now()),
            counts: Counts::default(),
        }
    }

    /// The next change; all kinds take turns.
    pub(crate) fn make_one(&mut self) -> Result<()> {
        self.made += 1;
        match self.made % 8 {
            0 => self.reload(),
            1 | 5 => self.drain("PUT"),
            3 | 7 => self.drain("DELETE"),
            2 => self.scrape()?,
            4 => self.set_limits()?,
            _ => self.fail_or_return(),
        }
        Ok(())
    }

    /// By a crash and by a request in turn.
    pub(crate) fn restart_daemon(&mut self) {
        if self.counts.restarts.is_multiple_of(2) {
            self.lab.daemon().kill9();
        } else {
            self.lab.daemon().stop();
        }
        self.lab.daemon().start();
        self.api = connect(self.lab);
        self.counts.restarts += 1;
    }

    /// Weights, a policy and a VIP come and go.
    fn reload(&mut self) {
        self.counts.reloads += 1;
        let mut config = quick_checks(all_backends(self.lab));
        if self.counts.reloads.is_multiple_of(2) {
            config.pools[0].backends[0].extra = "weight = 3\n".to_owned();
        }
        if self.counts.reloads.is_multiple_of(3) {
            config = config.policy(
                "enforce",
                r#"[{ class = "syn", per = "host", pps = 100000, burst = 100000 }]"#,
            );
        }
        if self.counts.reloads.is_multiple_of(5) {
            let mut more = config.vips[0].clone();
            (more.name, more.port) = ("more".to_owned(), Some(8443));
            config.vips.push(more);
        }
        self.lab.reload(&config).succeeds();
    }

    /// One of the backends with lasting flows, which stay there.
    fn drain(&mut self, method: &str) {
        let turn = self.counts.drains / 2;
        let name = ["b1", "b2", "b3"][usize::try_from(turn % 3).unwrap_or(0)];
        let backend = self.lab.backend(name);
        for (pool, address) in [("v4", backend.v4()), ("v6", backend.v6())] {
            let path = format!("/v1/drains/backend/{pool}/{address}");
            let answer = self.api.send(method, &path, "");
            let status = answer.expect("the daemon answers").status;
            assert!((200..300).contains(&status), "{method} {path}: {status}");
        }
        self.counts.drains += 1;
    }

    /// Some that end by themselves, one that is removed.
    fn set_limits(&mut self) -> Result<()> {
        let number = self.counts.limits % 250;
        let body = |last: u64| {
            format!(
                r#"{{"prefix": "203.0.{number}.{last}/32", "class": "udp", "pps": 5, "ttl_seconds": 2}}"#
            )
        };
        let many: Vec<String> = (0..100).map(body).collect();
        let set = self
            .api
            .send("POST", "/v1/limits", &format!("[{}]", many.join(",")))?;
        ensure!(set.status == 200, "limits: {}", set.json());
        let one = self.api.send("POST", "/v1/limits", &body(200))?;
        ensure!((200..300).contains(&one.status), "a limit: {}", one.json());
        let path = format!("/v1/limits/{}", one.json()["id"]);
        let gone = self.api.send("DELETE", &path, "")?.status;
        ensure!(gone == 204, "DELETE {path}: {gone}");
        self.counts.limits += 101;
        Ok(())
    }

    fn scrape(&mut self) -> Result<()> {
        let answer = self.api.send("GET", "/metrics", "").context("no metrics")?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(
            text.contains("sluice_packets_total{"),
            "metrics without packets"
        );
        self.counts.scrapes += 1;
        Ok(())
    }

    /// The failing backend fails, or comes back.
    fn fail_or_return(&mut self) {
        let (is_up, since) = self.failing;
        if since.elapsed() < BETWEEN_FAILURES {
            return;
        }
        self.traffic.excuse();
        if is_up {
            self.lab.backend(FAILING).stop();
            self.counts.failures += 1;
        } else {
            self.lab.backend(FAILING).start();
        }
        self.traffic.excuse();
        self.failing = (!is_up, Instant::now());
    }
}

fn connect(lab: &Lab) -> ApiConn {
    ApiConn::open(&lab.node().socket()).expect("the daemon listens")
}

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        write!(
            f,
            "{} reloads, {} drains and ends of drains, {} limits, {} failures of a backend, {} scrapes, {} restarts",
            counts.reloads,
            counts.drains,
            counts.limits,
            counts.failures,
            counts.scrapes,
            counts.restarts
        )
    }
}
