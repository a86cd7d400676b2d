//! What the numbers in the maps stand for.

use std::{collections::BTreeMap, fs};

use serde::Deserialize;
use sluice_ebpf::abi::{NO_BACKEND, NO_VIP};

use super::Failed;
use crate::{
    config::{Config, Forward, suggestion},
    dataplane::BackendKey,
};

/// Names by the numbers that the data plane knows, as the daemon keeps them in its state directory.
#[derive(Default)]
pub(super) struct Names {
    vips: BTreeMap<u16, String>,
    backends: BTreeMap<u16, BackendKey>,
}

#[derive(Deserialize)]
struct Numbers {
    vips: BTreeMap<String, u16>,
    backends: Vec<(BackendKey, u16)>,
}

impl Names {
    /// Without that file numbers are shown.
    pub(super) fn read(config: &Config) -> Self {
        let file = config.dataplane.state_dir.join("numbers.json");
        let numbers: Option<Numbers> = fs::read(file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(Numbers { vips, backends }) = numbers else {
            return Self::default();
        };
        Self {
            vips: vips
                .into_iter()
                .map(|(name, number)| (number, name))
                .collect(),
            backends: backends
                .into_iter()
                .map(|(key, number)| (number, key))
                .collect(),
        }
    }

    pub(super) fn vip(&self, number: u16) -> Option<String> {
        let name = || self.vips.get(&number).cloned();
        (number != NO_VIP).then(|| name().unwrap_or_else(|| format!("number {number}")))
    }

    pub(super) fn backend(&self, number: u16) -> Option<String> {
        let name = || {
            let key = self.backends.get(&number)?;
            Some(format!("{}/{}", key.pool, key.address))
        };
        (number != NO_BACKEND).then(|| name().unwrap_or_else(|| format!("number {number}")))
    }

    pub(super) fn forward(&self, backend: u16) -> Option<Forward> {
        self.backends.get(&backend).map(|key| key.forward)
    }

    /// The number of a VIP, or what name was meant.
    pub(super) fn vip_number(&self, name: &str) -> Result<u16, Failed> {
        let found = self.vips.iter().find(|(_, known)| *known == name);
        found.map(|(number, _)| *number).ok_or_else(|| {
            let near = suggestion(name, self.vips.values().map(String::as_str));
            format!("nothing is loaded for a VIP `{name}`{near}").into()
        })
    }
}
