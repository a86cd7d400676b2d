//! What is pinned, and whether anybody looks after it.

use std::path::Path;

use super::Report;
use crate::{api::model::Status, config::Dataplane, control::chain, dataplane};

pub(super) fn check(
    pin_dir: &Path,
    config: Option<&Dataplane>,
    status: Option<&Status>,
    report: &mut Report,
) {
    let found = match dataplane::inspect(pin_dir, config) {
        Ok(found) => found,
        Err(error) => {
            report.fail_for("pins", None, &chain(&error));
            return;
        }
    };
    for path in &found.other_versions {
        report.fail(
            "pins",
            None,
            format!("{} is of another version of sluice", path.display()),
            "stop the daemon and run `sluice unload`, or this version cannot start",
        );
    }
    if !found.loaded {
        report.ok(
            "pins",
            None,
            format!("nothing is loaded under {}", pin_dir.display()),
        );
        return;
    }
    if let Some(mismatch) = &found.mismatch {
        report.fail_for("pins", None, &chain(mismatch));
    }
    for link in &found.links {
        let interface = Some(link.interface.as_str());
        let wanted = config.is_none_or(|config| config.interfaces.contains(&link.interface));
        if !link.attached {
            report.fail(
                "pins",
                interface,
                "its link leads to an interface that is gone",
                "start the daemon, or reload: it attaches anew",
            );
        } else if !wanted {
            report.warn(
                "pins",
                interface,
                "the program runs there, and the config does not name it",
                "reload, or start the daemon: it takes the program off",
            );
        } else {
            let mode = link.mode.word();
            report.ok(
                "pins",
                interface,
                format!("the program runs there, in {mode} mode"),
            );
        }
    }
    if status.is_none() {
        report.warn(
            "pins",
            None,
            "a data plane is loaded and no daemon looks after it: health and next hops are as they were",
            "start the daemon, which takes it over; or `sluice unload`",
        );
    }
}
