//! The terminal: what happens is told line by line, and below it stand the figures, drawn anew; without a terminal a line every two seconds.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write, stdout},
    time::{Duration, Instant},
};

use crate::{meter::Figures, traffic::Tally};

const BETWEEN_LINES: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    start: Instant,
    seconds: u32,
    /// Of the figures that stand there now.
    height: usize,
    last_line: Instant,
}

/// What is shown.
pub(crate) struct View<'a> {
    pub(crate) figures: &'a Figures,
    pub(crate) tally: &'a Tally,
    /// Attack packets sent a second.
    pub(crate) attack_pps: f64,
}

impl Screen {
    pub(crate) fn new(seconds: u32) -> Self {
        let now = Instant::now();
        Self {
            terminal: stdout().is_terminal(),
            start: now,
            seconds,
            height: 0,
            last_line: now,
        }
    }

    /// One line that stays.
    pub(crate) fn announce(&mut self, line: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let erase = self.erase();
        put(&format!("{erase}[{seconds:5.1} s] {line}\n"));
    }

    pub(crate) fn show(&mut self, view: &View<'_>) {
        if self.terminal {
            let lines = view.lines(self.start.elapsed(), self.seconds);
            let erase = self.erase();
            self.height = lines.len();
            // A line that wraps would count as two.
            put(&format!("{erase}\x1b[?7l{}\x1b[?7h\n", lines.join("\n")));
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            put(&format!(
                "[{:5.1} s] {}\n",
                self.start.elapsed().as_secs_f64(),
                view.line()
            ));
        }
    }

    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.height) {
            0 => String::new(),
            height => format!("\x1b[{height}A\x1b[J"),
        }
    }
}

impl View<'_> {
    fn lines(&self, elapsed: Duration, seconds: u32) -> Vec<String> {
        let Self { figures, tally, .. } = self;
        let mut lines = vec![
            String::new(),
            format!(
                "  {} s of about {seconds}   Ctrl-C ends it and cleans up",
                elapsed.as_secs()
            ),
            String::new(),
            format!(
                "  {:<10}{:<12}{:>8}{:>12}",
                "backend", "state", "flows", "answers"
            ),
        ];
        for (name, backend) in &figures.backends {
            let answers = tally.served.get(name).copied().unwrap_or_default();
            lines.push(format!(
                "  {name:<10}{:<12}{:>8}{:>12}",
                backend.state,
                grouped(backend.flows),
                grouped(answers)
            ));
        }
        let daemon = figures
            .pid
            .map_or_else(|| "killed".to_owned(), |pid| format!("process {pid}"));
        lines.extend([
            String::new(),
            format!(
                "  good requests    {:>12} served {:>8} failed",
                grouped(tally.served()),
                tally.failures.len()
            ),
            format!(
                "  lasting flows    {:>12} alive  {:>8} broken",
                tally.alive(),
                tally.broken.len()
            ),
            format!(
                "  attack packets   {:>12} sent/s {:>8} dropped/s",
                rate(self.attack_pps),
                rate(figures.dropped_pps)
            ),
            format!("  dropped so far   {}", self.drops()),
            format!(
                "  XDP program      {} (more when packets are few: caches are cold)",
                self.cost()
            ),
            format!("  daemon           {daemon}"),
        ]);
        lines
    }

    fn line(&self) -> String {
        let Self { figures, tally, .. } = self;
        let mut flows = String::new();
        for (name, backend) in &figures.backends {
            let _ = write!(flows, " {name}={}", backend.flows);
        }
        format!(
            "flows{flows} | good {} served, {} failed | lasting {} alive, {} broken | attack {}/s sent, {}/s dropped: {} | {}",
            tally.served(),
            tally.failures.len(),
            tally.alive(),
            tally.broken.len(),
            rate(self.attack_pps),
            rate(figures.dropped_pps),
            self.drops(),
            self.cost()
        )
    }

    fn drops(&self) -> String {
        let reasons = self
            .figures
            .drops
            .iter()
            .filter(|&(_, &packets)| packets > 0);
        let drops: Vec<String> = reasons
            .map(|(reason, &packets)| format!("{reason} {}", grouped(packets)))
            .collect();
        if drops.is_empty() {
            "none".to_owned()
        } else {
            drops.join(", ")
        }
    }

    fn cost(&self) -> String {
        self.figures
            .ns_per_packet
            .map_or_else(|| "n/a".to_owned(), |ns| format!("{ns:.0} ns/packet"))
    }
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn rate(per_second: f64) -> String {
    if per_second < 10_000.0 {
        format!("{per_second:.0}")
    } else {
        format!("{:.0}k", per_second / 1000.0)
    }
}

/// Whoever closes the pipe does not want to see more, which is no reason to leave a lab behind.
fn put(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
