//! `sluice check`.

use std::{path::Path, process::ExitCode};

use serde::Serialize;

use super::{Failed, output::Output};
use crate::{
    api::FileError,
    config::{self, ConfigErrors},
};

#[derive(Serialize)]
struct Report {
    ok: bool,
    config_hash: Option<String>,
    errors: Vec<FileError>,
}

/// Says whether a config would be taken.
pub(super) fn check(file: &Path, output: Output) -> Result<ExitCode, Failed> {
    let checked = config::load(file).and_then(|config| {
        config::check_host(&config)?;
        Ok(config)
    });
    match checked {
        Ok(config) => {
            let report = Report {
                ok: true,
                config_hash: Some(format!("{:016x}", config::hash(&config))),
                errors: Vec::new(),
            };
            output.show(&report, |_| {
                let (vips, pools) = (config.vips.len(), config.pools.len());
                format!("{}: good; VIPs: {vips}, pools: {pools}", file.display())
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(errors @ ConfigErrors::Invalid { .. }) if output.json => {
            let report = Report {
                ok: false,
                config_hash: None,
                errors: errors
                    .errors()
                    .iter()
                    .cloned()
                    .map(FileError::from)
                    .collect(),
            };
            output.show(&report, |_| String::new())?;
            Ok(ExitCode::FAILURE)
        }
        Err(errors @ ConfigErrors::Invalid { .. }) => {
            eprintln!("{errors}");
            Ok(ExitCode::FAILURE)
        }
        Err(unseen) => Err(unseen.into()),
    }
}
