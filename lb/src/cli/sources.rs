//! `sluice deny` and `sluice allow`.

use std::{fmt::Display, fs, io::Read, net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::{
    Failed, Watch,
    client::{Client, ClientError, encoded},
    output::{Ink, Output},
    table::{or_dash, table},
};
use crate::{
    api::model::{Page, SourceDone, SourceItem},
    sources::{Country, Kind, NotTold, Places, asn_of, networks},
};

#[derive(Debug, Subcommand)]
pub(super) enum SourceCommand {
    /// Show entries, of the config and set at run time
    List(SourceFilters),
    /// Add prefixes; one that is there already is replaced
    Add {
        /// Addresses or prefixes
        #[arg(required = true)]
        prefixes: Vec<String>,
        #[command(flatten)]
        options: SourceOptions,
    },
    /// Make a named set hold what stands in a file, all or nothing
    Import {
        name: String,
        /// A prefix a line, with comments; netset; CSV; JSON lines; `-` for standard input
        #[arg(required_unless_present = "mmdb", conflicts_with_all = ["mmdb", "places"])]
        file: Option<PathBuf>,
        #[command(flatten)]
        places: PlaceOptions,
        /// Skip lines that are no prefixes, and tell them
        #[arg(long, conflicts_with = "mmdb")]
        skip_bad: bool,
        #[command(flatten)]
        options: SourceOptions,
    },
    /// Remove entries
    Remove {
        /// Ids, names or prefixes
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// Which entries to show: those that match all of these.
#[derive(Debug, Args)]
pub(super) struct SourceFilters {
    /// With this id, name or prefix
    #[arg(long)]
    key: Option<String>,
    /// Those that hold this address
    #[arg(long, value_name = "ADDRESS")]
    covers: Option<IpAddr>,
    #[command(flatten)]
    pub(super) watch: Watch,
}

/// The networks of some countries and autonomous systems.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("places").multiple(true))]
pub(super) struct PlaceOptions {
    /// Instead of a list, a database of countries or autonomous systems; may be given again
    #[arg(long, value_name = "FILE", requires = "places")]
    mmdb: Vec<PathBuf>,
    /// Of these countries, by their codes of ISO 3166
    #[arg(long, value_name = "CODE", group = "places", requires = "mmdb")]
    country: Vec<Country>,
    /// Of these autonomous systems, by their numbers
    #[arg(long, value_name = "NUMBER", value_parser = asn_of, group = "places", requires = "mmdb")]
    asn: Vec<u32>,
}

#[derive(Debug, Args)]
pub(super) struct SourceOptions {
    /// Only for packets to this VIP
    #[arg(long, value_name = "NAME")]
    vip: Option<String>,
    /// How long it stays, like `90s`, `10m`, `24h`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Only count whom it would deny
    #[arg(long)]
    monitor: bool,
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

pub(super) async fn show(
    kind: Kind,
    filters: &SourceFilters,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    let covers = filters.covers.map(|address| address.to_string());
    let pairs = [
        ("key", filters.key.as_deref()),
        ("covers", covers.as_deref()),
    ];
    let given: Vec<String> = pairs
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", encoded(value?))))
        .collect();
    let path = if given.is_empty() {
        path(kind)
    } else {
        format!("{}?{}", path(kind), given.join("&"))
    };
    let answer: Page<SourceItem> = client.list(&path).await?;
    output.show(&answer, |answer| entries(output.ink, &answer.items))
}

pub(super) async fn change(
    kind: Kind,
    command: SourceCommand,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    match command {
        SourceCommand::List(filters) => show(kind, &filters, client, output).await,
        SourceCommand::Add { prefixes, options } => {
            let mut done: Vec<SourceItem> = Vec::new();
            for prefix in prefixes {
                let mut fields = options.fields();
                fields.insert("prefix".to_owned(), prefix.into());
                done.push(client.send_json(Method::POST, &path(kind), &fields).await?);
            }
            output.show(&done, |done| entries(output.ink, done))
        }
        SourceCommand::Import {
            name,
            file,
            places,
            skip_bad,
            options,
        } => {
            let is_list = file.is_some();
            let (list, from) = match file {
                Some(file) => (read(&file)?, file.display().to_string()),
                None => places.list()?,
            };
            let mut fields = options.fields();
            fields.insert("name".to_owned(), name.into());
            fields.insert("list".to_owned(), list.into());
            fields.insert("skip_bad".to_owned(), skip_bad.into());
            let sent = client.send_json(Method::POST, &path(kind), &fields).await;
            let done: SourceDone = sent.map_err(|error| match error {
                ClientError::Refused(_) => format!("{from}: {error}; nothing changed").into(),
                _ => Failed::from(error),
            })?;
            for line in done.bad.iter().flatten() {
                eprintln!("skipped: {from}: {line}");
            }
            output.show(&done, |done| {
                let mut text = entries(output.ink, std::slice::from_ref(&done.entry));
                if is_list {
                    let (lines, skipped) = (done.lines.unwrap_or(0), done.skipped.unwrap_or(0));
                    text += &format!("\n{lines} lines taken, {skipped} skipped");
                }
                text
            })
        }
        SourceCommand::Remove { keys } => {
            let mut removed = Vec::new();
            for key in keys {
                let found: Page<SourceItem> = client
                    .list(&format!("{}?key={}", path(kind), encoded(&key)))
                    .await?;
                if found.items.is_empty() {
                    let word = kind.word();
                    return Err(format!(
                        "no entry has the id, name or prefix {key}; `sluice {word} list` lists them"
                    )
                    .into());
                }
                for item in found.items {
                    client
                        .tell(Method::DELETE, &format!("{}/{}", path(kind), item.id))
                        .await?;
                    removed.push(item.id);
                }
            }
            output.show(&json!({ "removed": removed }), |_| {
                let ids: Vec<String> = removed.iter().map(ToString::to_string).collect();
                format!("removed: {}", ids.join(", "))
            })
        }
    }
}

impl PlaceOptions {
    /// The networks as a list, and where they are from. The daemon does not see the databases.
    fn list(self) -> Result<(String, String), Failed> {
        let wanted = Places {
            countries: self.country.into_iter().collect(),
            asns: self.asn.into_iter().collect(),
        };
        let unchanged = |why: &dyn Display| format!("{why}; nothing changed");
        let found = networks(&[wanted], &self.mmdb).map_err(|error| unchanged(&error))?;
        let list: Result<String, _> = found
            .into_iter()
            .map(|members| Ok(members?.to_list()))
            .collect();
        let list = list.map_err(|error: NotTold| unchanged(&error))?;
        let from: Vec<String> = self
            .mmdb
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        Ok((list, from.join(", ")))
    }
}

impl SourceOptions {
    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        if let Some(vip) = &self.vip {
            fields.insert("vip".to_owned(), vip.clone().into());
        }
        if let Some(ttl) = self.ttl {
            fields.insert("ttl_seconds".to_owned(), ttl.as_secs().into());
        }
        if self.monitor {
            fields.insert("mode".to_owned(), "monitor".into());
        }
        if let Some(comment) = &self.comment {
            fields.insert("comment".to_owned(), comment.clone().into());
        }
        fields
    }
}

fn path(kind: Kind) -> String {
    format!("/v1/{}", kind.word())
}

/// A line that is no text is for the daemon to tell.
fn read(file: &std::path::Path) -> Result<String, Failed> {
    let mut bytes = Vec::new();
    let read = if file == std::path::Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).map(drop)
    } else {
        fs::read(file).map(|read| bytes = read)
    };
    read.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn entries(ink: Ink, items: &[SourceItem]) -> String {
    let row = |item: &SourceItem| {
        let what = match (&item.name, item.prefix) {
            (Some(name), _) => name.clone(),
            (None, Some(prefix)) => prefix.to_string(),
            (None, None) => String::new(),
        };
        [
            item.id.to_string(),
            what,
            or_dash(item.vip.as_ref()),
            format!("{:?}", item.mode).to_lowercase(),
            item.ranges_v4.to_string(),
            item.prefixes_v6.to_string(),
            or_dash(item.expires.as_ref()),
            or_dash(item.matched_packets.as_ref()),
            or_dash(item.dropped_packets.as_ref()),
            item.comment.clone(),
        ]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    let header = [
        "ID", "NAME", "VIP", "MODE", "IPV4", "IPV6", "EXPIRES", "MATCHED", "DROPPED", "COMMENT",
    ];
    table(ink, header, &rows)
}
