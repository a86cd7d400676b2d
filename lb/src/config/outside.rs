//! The files that a config names: whether they are what they should be.

use std::path::{Path, PathBuf};

use super::{Ca, model::ApiTls, read_secret, read_sources};
use crate::{
    api::{ServerTls, TlsError, Tokens},
    sources::{Members, OnBad, Places, networks},
};

/// Whether to look at them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outside {
    Checked,
    Ignored,
}

impl Outside {
    pub(super) fn secret(self, path: &Path) -> Result<(), String> {
        match self {
            Self::Checked => read_secret(path)
                .map(drop)
                .map_err(|wrong| wrong.to_string()),
            Self::Ignored => Ok(()),
        }
    }

    pub(super) fn tokens(self, path: &Path) -> Result<(), String> {
        match self {
            Self::Checked => Tokens::load(path)
                .map(drop)
                .map_err(|wrong| wrong.to_string()),
            Self::Ignored => Ok(()),
        }
    }

    pub(super) fn ca(self, path: &Path) -> Result<Ca, String> {
        match self {
            Self::Checked => Ca::read(path).map_err(|wrong| wrong.to_string()),
            Self::Ignored => Ok(Ca::unread(path)),
        }
    }

    pub(super) fn sources(self, path: &Path, on_bad: OnBad) -> Result<Members, String> {
        match self {
            Self::Checked => read_sources::read(path, on_bad),
            Self::Ignored => Ok(Members::default()),
        }
    }

    pub(super) fn places(
        self,
        asked: &[Places],
        databases: &[PathBuf],
    ) -> Result<Vec<Result<Members, String>>, String> {
        match self {
            Self::Checked if !asked.is_empty() => {
                let told = networks(asked, databases).map_err(|wrong| wrong.to_string())?;
                let told = told.into_iter();
                Ok(told
                    .map(|members| members.map_err(|wrong| wrong.to_string()))
                    .collect())
            }
            Self::Checked | Self::Ignored => {
                Ok(asked.iter().map(|_| Ok(Members::default())).collect())
            }
        }
    }

    pub(super) fn tls(self, tls: &ApiTls) -> Result<(), TlsError> {
        match self {
            Self::Checked => ServerTls::load(tls).map(drop),
            Self::Ignored => Ok(()),
        }
    }
}
