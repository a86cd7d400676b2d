//! `sluice token new`.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failed, Global, client, output::Output};
use crate::api::{self, Role};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token for clients by TCP: print it, and add its hash to the daemon's file
    New(TokenArgs),
}

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// What it allows
    #[arg(long, value_enum)]
    role: Role,
    /// How long it is valid, like 30d or 12h [default: until it is taken out of the file]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// Whose it is
    #[arg(long, default_value = "")]
    comment: String,
    /// The file of tokens [default: what the config file says]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
#[error("{} names no `tokens_file` in [api]; write one, or name it with --file", config.display())]
struct NoFile {
    config: PathBuf,
}

pub(super) fn token(global: &Global, command: TokenCommand, output: Output) -> Result<(), Failed> {
    let TokenCommand::New(args) = command;
    let file = args
        .file
        .or_else(|| client::path_in(&global.config, "api", "tokens_file"));
    let file = file.ok_or_else(|| NoFile {
        config: global.config.clone(),
    })?;
    let expires = args
        .expires
        .map(|expires| {
            SystemTime::now()
                .checked_add(expires.min(LONGEST))
                .ok_or("--expires is too far away")
        })
        .transpose()?;
    let token = api::create(&file, args.role, expires, &args.comment)?;
    let until = expires.map(|expires| humantime::format_rfc3339_seconds(expires).to_string());
    let shown = json!({ "token": token, "role": args.role.word(), "expires": until, "file": file });
    output.show(&shown, |_| token)?;
    // Not where the token goes: that may be a file.
    eprintln!("sluice: nobody can show this token again; `sluice reload` makes the daemon take it");
    Ok(())
}

/// A hundred years, so that every date has four digits.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
