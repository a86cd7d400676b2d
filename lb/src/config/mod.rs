//! The config file: what it may say, and how it is read and checked.
//!
//! A config is refused whole, with every error it holds, each with its place and what would be right there.
mod addresses;
mod ca;
mod cross;
mod error;
mod health;
mod keys;
mod model;
mod outside;
mod read_amplification;
mod read_api;
mod read_detect;
mod read_health;
mod read_host;
mod read_policy;
mod read_pool;
mod read_rule;
mod read_sanity;
mod read_site;
mod read_sources;
mod read_syn;
mod read_vip;
mod secret;
mod section;
mod this_host;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use toml::{Spanned, de::DeTable};

use crate::sources::Kind;

pub use ca::{Ca, CaError};
pub(crate) use error::suggestion;
pub use error::{ConfigError, ConfigErrors, Position};
pub use health::{Check, Health, HttpCheck, Statuses, Tls};
pub use model::{
    AllDown, Amplified, Api, ApiTls, Backend, Class, Config, Dataplane, Defence, Detect, Forward,
    HashInput, Host, Mode, Origin, OutOfState, Policy, Pool, Pop, PrefixLengths, Protocol, Remote,
    Sanity, Scope, SourceLimit, SourceList, Stage, Stance, Syn, SynAnswer, SynMode, Vip, XdpMode,
};
pub(crate) use read_policy::class_words;
pub use secret::{SecretError, read_secret};
pub use this_host::{check_host, check_on};

use error::{Errors, Lines};
use outside::Outside;
use section::Section;

/// Where the config is unless a flag names another file.
pub const DEFAULT_FILE: &str = "/etc/sluice/sluice.toml";

/// Reads and checks a config file, and the files that it names.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let unreadable = |source: io::Error| ConfigErrors::Unreadable {
        file: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    read(&bytes, &path.display().to_string(), Outside::Checked)
}

/// Checks a config that is already in memory. Nothing outside of `text` is looked at, so the files that it names need not exist.
pub fn parse(text: &str, file_name: &str) -> Result<Config, ConfigErrors> {
    read(text.as_bytes(), file_name, Outside::Ignored)
}

/// A number that is equal for configs that say the same, on every machine and in every version that has the same keys.
pub fn hash(config: &Config) -> u64 {
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    serde_json::to_writer(&mut fnv, config)
        .expect("a config's paths come from TOML, so they are UTF-8");
    fnv.0
}

/// A file larger than this is surely not a config: 65,535 VIPs take some 10 MiB.
const MAX_BYTES: usize = 16 << 20;

fn read(bytes: &[u8], file_name: &str, outside: Outside) -> Result<Config, ConfigErrors> {
    let errors = Errors::default();
    if bytes.len() > MAX_BYTES {
        errors.add(0, || {
            format!(
                "larger than {} MiB, so this is hardly a config",
                MAX_BYTES >> 20
            )
        });
        return errors.into_result(None, &Lines::new(""), file_name);
    }
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            errors.add(good.len(), || {
                "not UTF-8; save the file as UTF-8 text".into()
            });
            return errors.into_result(None, &Lines::new(good), file_name);
        }
    };
    let lines = Lines::new(text);
    if let Some(at) = text.find('\0') {
        errors.add(at, || "a NUL byte; a config is plain text".into());
        return errors.into_result(None, &lines, file_name);
    }
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            // Only the first: those that follow are mostly its echoes.
            let at = error.span().map_or(0, |span| span.start);
            errors.add(at, || format!("not valid TOML: {}", error.message()));
            return errors.into_result(None, &lines, file_name);
        }
    };
    let config = tables(&table, &lines, &errors, outside, file_name);
    errors.into_result(config, &lines, file_name)
}

/// Reads every table, also after an error, and then what they say of each other.
fn tables(
    root: &Spanned<DeTable<'_>>,
    lines: &Lines<'_>,
    errors: &Errors,
    outside: Outside,
    file_name: &str,
) -> Option<Config> {
    let file = Section::new(root.get_ref(), 0, &keys::FILE, errors);
    let list = |key, keys| {
        file.get(key)
            .and_then(|field| field.tables(keys))
            .unwrap_or_default()
    };
    let (pool_tables, vip_tables, policy_tables) = (
        list("pool", &keys::POOL),
        list("vip", &keys::VIP),
        list("policy", &keys::POLICY),
    );
    cross::count(&vip_tables, "VIPs", cross::VIPS);
    cross::count(&policy_tables, "policies", cross::POLICIES);
    let pool_names = cross::names(&pool_tables, "pool", lines);
    let policy_names = cross::names(&policy_tables, "policy", lines);
    let vip_names = cross::names(&vip_tables, "VIP", lines);
    let rules = read_rule::rules(&list("rule", &keys::RULE), &vip_names);
    let (denied, allowed) = (list("deny", &keys::DENY), list("allow", &keys::ALLOW));
    cross::names(&denied, "denied set", lines);
    cross::names(&allowed, "allowed set", lines);
    cross::references(&denied, "vip", &vip_names);
    cross::references(&allowed, "vip", &vip_names);
    let denied = denied.iter().map(|table| (Kind::Deny, table));
    let allowed = allowed.iter().map(|table| (Kind::Allow, table));
    let sources = read_sources::sources(&file, denied.chain(allowed), outside);

    let pop = read_site::pop(&file, outside);
    let dataplane = read_site::dataplane(&file);
    let api = read_api::api(&file, outside);
    let detect = read_detect::detect(&file);
    let host = read_host::host(&file);
    let pools: Vec<_> = pool_tables
        .iter()
        .filter_map(|table| read_pool::pool(table, outside))
        .collect();
    let vips: Vec<_> = vip_tables.iter().filter_map(read_vip::vip).collect();
    let policies: Vec<_> = policy_tables
        .iter()
        .filter_map(read_policy::policy)
        .collect();
    cross::references(&vip_tables, "pool", &pool_names);
    cross::references(&vip_tables, "policy", &policy_names);
    cross::duplicate_vips(&vips, lines, errors);
    cross::reachability(&vips, &pools, errors);
    read_syn::secret(&policies, &policy_tables, pop.as_ref());

    let (dataplane, interfaces_at) = dataplane?;
    let (api, mut host) = (api?, host?);
    if let Some(remote) = &api.remote {
        host.ports.push((Protocol::Tcp, remote.listen.port()));
    }
    let positions = |at: Vec<usize>| at.into_iter().map(|at| lines.position(at)).collect();
    let origin = Origin {
        file: file_name.to_owned(),
        interfaces: positions(interfaces_at),
        vips: positions(vips.iter().map(|placed| placed.address_at).collect()),
    };
    Some(Config {
        pop: pop?,
        dataplane,
        api,
        detect: detect?,
        pools: pools.into_iter().map(|placed| placed.pool).collect(),
        vips: vips.into_iter().map(|placed| placed.vip).collect(),
        policies,
        rules,
        sources,
        host,
        origin,
    })
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl io::Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
