//! Shell completions and manual pages, from the same definitions that the command line is read by.

use std::{fs, path::Path};

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use super::{Cli, Failed, output::Output};

/// Prints the script that a shell needs.
pub(super) fn completions(shell: Shell, output: Output) -> Result<(), Failed> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut script);
    let script = String::from_utf8(script)?;
    let shell = shell.to_string();
    output.show(&json!({ "shell": shell, "script": script }), |_| {
        script.clone()
    })
}

/// Writes `sluice.1`, and `sluice-limit-set.1` and so on.
pub(super) fn write(dir: &Path, output: Output) -> Result<(), Failed> {
    let failed = |error: std::io::Error| -> Failed {
        format!("cannot write manual pages to {}: {error}", dir.display()).into()
    };
    fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("sluice") && name.ends_with(".1") {
            pages.push(name.into_owned());
        }
    }
    pages.sort();
    output.show(&json!({ "pages": pages }), |_| {
        format!("{} pages in {}", pages.len(), dir.display())
    })
}
