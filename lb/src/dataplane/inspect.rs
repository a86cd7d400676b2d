//! What is pinned, for who only looks.

use std::path::{Path, PathBuf};

use super::{
    error::LoadError,
    load::{Need, Sizes},
    pins::{Mode, Pins, check_mode, other_versions},
    plane::check,
};
use crate::{config::Dataplane, sys};

/// What is pinned under a directory.
#[derive(Debug)]
pub struct Inspection {
    /// Directories of other versions that hold anything.
    pub other_versions: Vec<PathBuf>,
    /// Whether there is anything of this version.
    pub loaded: bool,
    pub links: Vec<PinnedProgram>,
    /// Why a daemon with this config could not take over what is there.
    pub mismatch: Option<LoadError>,
}

/// A link that keeps the program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedProgram {
    pub interface: String,
    pub mode: Mode,
    /// False if that interface is gone.
    pub attached: bool,
}

/// Looks at what is pinned, and whether it is what a config asks for.
pub fn inspect(pin_dir: &Path, config: Option<&Dataplane>) -> Result<Inspection, LoadError> {
    let pins = Pins::existing(pin_dir);
    let pinned = pins.read(Sizes::any().shapes().into_iter().map(|(name, _)| name))?;
    let loaded = !pinned.shapes.is_empty() || !pinned.links.is_empty();
    let links = pinned.links.iter().map(|(interface, mode)| {
        let path = pins.link(interface, *mode);
        let attached = sys::link_ifindex(&path).map_err(|source| LoadError::Directory {
            path: path.clone(),
            source,
        })?;
        Ok(PinnedProgram {
            interface: interface.clone(),
            mode: *mode,
            attached: attached.is_some(),
        })
    });
    let links = links.collect::<Result<Vec<_>, LoadError>>()?;
    let mismatch = config.filter(|_| loaded).and_then(|config| {
        let mut sizes = Sizes::new(config, Need::default());
        sizes.keep(config, Need::default(), &pinned.shapes);
        let stay =
            |link: &&PinnedProgram| link.attached && config.interfaces.contains(&link.interface);
        check(&sizes, &pins, &pinned)
            .and_then(|()| {
                let mut stay = links.iter().filter(stay);
                stay.try_for_each(|link| check_mode(&link.interface, link.mode, config.mode))
            })
            .err()
    });
    Ok(Inspection {
        other_versions: other_versions(pin_dir)?,
        loaded,
        links,
        mismatch,
    })
}
