//! `sluice doctor`: looks at everything that the data plane stands on, and says what to do where something is amiss.
//!
//! It asks the kernel and the backends themselves, and needs no daemon. Nothing that is loaded or set is changed.

mod backends;
mod host;
mod interfaces;
mod pins;

use std::{fmt::Display, path::Path, process::ExitCode};

use serde::Serialize;

use super::{
    Failed,
    client::{Client, path_in},
    output::{Ink, Output},
};
use crate::{
    api::model::Status,
    config::{self, Config, ConfigErrors},
    control::chain,
    dataplane,
};

/// Looks at everything. Exit code 1 if anything is found that keeps the data plane from its work.
pub(super) async fn doctor(
    config_file: &Path,
    client: &Client,
    output: Output,
) -> Result<ExitCode, Failed> {
    let status = client.get::<Status>("/v1/status").await.ok();
    let mut report = Report::default();
    let config = check_config(config_file, &mut report);
    let pin_dir = match &config {
        Some(config) => config.dataplane.pin_dir.clone(),
        None => path_in(config_file, "dataplane", "pin_dir")
            .unwrap_or_else(|| dataplane::DEFAULT_PINS.into()),
    };
    host::check(&pin_dir, &mut report);
    pins::check(
        &pin_dir,
        config.as_ref().map(|config| &config.dataplane),
        status.as_ref(),
        &mut report,
    );
    if let Some(config) = &config {
        interfaces::check(config, &mut report).await;
        backends::check(config, client, status.as_ref(), &mut report).await;
    }
    check_daemon(status.as_ref(), &mut report);
    let failed = report.count(State::Fail);
    report.ok = failed == 0;
    output.show(&report, |report| report.text(output.ink))?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It works, but slower or for fewer than it could.
    Warn,
    /// Something does not work.
    Fail,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    /// Which interface, backend and so on.
    subject: Option<String>,
    state: State,
    found: String,
    /// What to do.
    advice: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    ok: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn ok(&mut self, check: &'static str, subject: Option<&str>, found: impl Display) {
        self.add(check, subject, State::Ok, found, None);
    }

    fn warn(
        &mut self,
        check: &'static str,
        subject: Option<&str>,
        found: impl Display,
        advice: impl Display,
    ) {
        self.add(check, subject, State::Warn, found, Some(advice.to_string()));
    }

    fn fail(
        &mut self,
        check: &'static str,
        subject: Option<&str>,
        found: impl Display,
        advice: impl Display,
    ) {
        self.add(check, subject, State::Fail, found, Some(advice.to_string()));
    }

    /// For errors that say what to do themselves, behind a semicolon.
    fn fail_for(&mut self, check: &'static str, subject: Option<&str>, error: &str) {
        let (found, advice) = match error.split_once("; ") {
            Some((found, advice)) => (found, Some(advice.to_owned())),
            None => (error, None),
        };
        self.add(check, subject, State::Fail, found, advice);
    }

    fn add(
        &mut self,
        check: &'static str,
        subject: Option<&str>,
        state: State,
        found: impl Display,
        advice: Option<String>,
    ) {
        self.findings.push(Finding {
            check,
            subject: subject.map(str::to_owned),
            state,
            found: found.to_string(),
            advice,
        });
    }

    fn count(&self, state: State) -> usize {
        let of_state = self
            .findings
            .iter()
            .filter(|finding| finding.state == state);
        of_state.count()
    }

    /// A line for each finding; those that differ in their subject only share one.
    fn text(&self, ink: Ink) -> String {
        let mut lines = Vec::new();
        let mut rest = &self.findings[..];
        while let Some(first) = rest.first() {
            let alike = |finding: &&Finding| {
                let subject = first.subject.clone();
                Finding {
                    subject,
                    ..(**finding).clone()
                } == *first
            };
            let same = rest.iter().take_while(alike).count();
            let (group, after) = rest.split_at(same);
            rest = after;
            let word = match first.state {
                State::Ok => ink.good("ok  "),
                State::Warn => ink.doubtful("warn"),
                State::Fail => ink.bad("FAIL"),
            };
            let subject = subjects(group);
            let found = &first.found;
            lines.push(format!("{word}  {:<12}  {subject}{found}", first.check));
            if let Some(advice) = &first.advice {
                lines.push(format!("      {:<12}  -> {advice}", ""));
            }
        }
        let (warnings, failures) = (self.count(State::Warn), self.count(State::Fail));
        lines.push(format!("{failures} failed, {warnings} warnings"));
        lines.join("\n")
    }
}

/// "eth0: ", or a few of many.
fn subjects(group: &[Finding]) -> String {
    const SHOWN: usize = 4;
    let names: Vec<&str> = group
        .iter()
        .filter_map(|finding| finding.subject.as_deref())
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 {
        format!("{shown}: ")
    } else {
        format!("{shown} and {more} more: ")
    }
}

fn check_config(file: &Path, report: &mut Report) -> Option<Config> {
    let name = file.display();
    match config::load(file) {
        Ok(config) => {
            match config::check_host(&config) {
                Ok(()) => report.ok("config", None, format!("{name} is good")),
                Err(errors) => report.fail(
                    "config",
                    None,
                    chain(&errors).replace('\n', "; "),
                    "correct it; a daemon that runs goes on with what it has",
                ),
            }
            Some(config)
        }
        Err(ConfigErrors::Invalid { errors, more }) => {
            let all = errors.len() + more;
            let first = errors.first().map(ToString::to_string).unwrap_or_default();
            report.fail(
                "config",
                None,
                format!("{all} errors; the first: {first}"),
                "`sluice check` shows all; the rest of what depends on the config is not looked at",
            );
            None
        }
        Err(unreadable) => {
            report.fail(
                "config",
                None,
                chain(&unreadable),
                "name it with -c; what depends on it is not looked at",
            );
            None
        }
    }
}

fn check_daemon(status: Option<&Status>, report: &mut Report) {
    let Some(status) = status else {
        report.ok("daemon", None, "not running");
        return;
    };
    let pid = status.pid;
    if status.ready {
        report.ok("daemon", None, format!("runs, pid {pid}, ready"));
    } else {
        report.warn(
            "daemon",
            None,
            format!("runs, pid {pid}, not ready"),
            "it waits for health checks and next hops; if this lasts, its log says why",
        );
    }
    if let Some(error) = &status.last_reload.error {
        report.warn(
            "daemon",
            None,
            format!("refused the last reload: {}", error.replace('\n', "; ")),
            "correct the config, then `sluice reload`",
        );
    }
    for warning in &status.warnings {
        let (found, advice) = warning
            .split_once("; ")
            .unwrap_or((warning, "see `sluice status`"));
        report.warn("daemon", None, found, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_that_differ_in_their_subject_only_share_a_line() {
        let mut report = Report::default();
        for n in 1..=6 {
            report.ok("neighbours", Some(&format!("web/10.0.0.{n}")), "answers");
        }
        report.fail_for(
            "neighbours",
            Some("web/10.0.0.7"),
            "no route to it; add one",
        );
        let text = report.text(Ink::Plain);
        assert_eq!(
            text,
            "ok    neighbours    web/10.0.0.1, web/10.0.0.2, web/10.0.0.3, web/10.0.0.4 and 2 more: answers\n\
             FAIL  neighbours    web/10.0.0.7: no route to it\n\
             \u{20}                   -> add one\n\
             1 failed, 0 warnings"
        );
    }

    #[test]
    fn a_daemon_that_warns_is_quoted() {
        let mut report = Report::default();
        check_daemon(None, &mut report);
        assert_eq!(report.findings[0].state, State::Ok);
    }
}
