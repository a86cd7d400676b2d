//! What the daemon takes of the machine while nothing happens but checks and scrapes.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use sluice_tests::{Lab, within};

const BACKENDS: u32 = 1000;
const SCRAPES: u32 = if cfg!(debug_assertions) { 2 } else { 4 };
const BETWEEN_SCRAPES: Duration = Duration::from_secs(5);
/// Of a core. A debug build takes 3.6% beside other work.
const MOST: f64 = if cfg!(debug_assertions) { 0.08 } else { 0.03 };

#[test]
fn a_thousand_checked_backends_and_a_scrape_every_five_seconds_take_three_percent_of_a_core() {
    let lab = Lab::new().quiet().backends(["b1"]).build();
    lab.many_backends("b1", "10.77.0.0/20");
    let node = lab.node();
    let mut config = lab.config().forward("ipip").health(
        r#"{ kind = "tcp", port = 80, interval = "1s", timeout = "900ms", rise = 1, fall = 3 }"#,
    );
    let pool = &mut config.pools[0];
    let one = pool.backends[0].clone();
    pool.backends = (0..BACKENDS)
        .map(|n| {
            let mut backend = one.clone();
            backend.address = Ipv4Addr::from_bits(0x0a4d_0001 + n).to_string();
            backend
        })
        .collect();
    lab.write_config(&config);
    node.daemon().start();
    within(Duration::from_secs(30), "all backends are up", || {
        let rows = node.items("backends");
        let up = rows
            .iter()
            .filter(|row| row["state"] == "up" && row["resolved"] == true);
        up.count() > BACKENDS as usize
    });
    // What starting needs is not what it takes from then on.
    thread::sleep(Duration::from_secs(3));
    let (cpu, start) = (node.daemon().cpu(), Instant::now());
    for _ in 0..SCRAPES {
        thread::sleep(BETWEEN_SCRAPES);
        assert!(node.metrics().contains("sluice_backend_up{"));
    }
    let took = (node.daemon().cpu() - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    println!(
        "figure: {BACKENDS} backends checked each second, a scrape each {BETWEEN_SCRAPES:?}: {:.2}% of a core",
        took * 100.0
    );
    assert!(took < MOST, "{:.2}% of a core", took * 100.0);
}
