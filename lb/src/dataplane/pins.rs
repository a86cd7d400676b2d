//! What outlives the daemon: maps and links, pinned under a directory for each version of their format.
//!
//! `<pin_dir>/v1/` holds the maps by their names, and a link for each interface: `link_eth0` in native mode,
//! `generic_eth0` in generic mode. The BPF file system knows no dots in names, so a colon stands for one.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapInfo,
    programs::{
        ProgramError, Xdp, XdpMode as Flags,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use sluice_ebpf::abi::ABI_VERSION;

use super::{
    error::{LoadError, Shape},
    load::shape,
};
use crate::{config::XdpMode, net::if_index, sys};

/// Where pins are unless a config says otherwise.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/sluice";

/// Where the program runs for one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the network stack, for drivers that can't.
    Generic,
}

impl Mode {
    /// As in the config, in status and in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// An interface whose packets the program gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub name: String,
    pub index: u32,
    pub mode: Mode,
}

/// The directory of this version's pins.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    pub directory: PathBuf,
}

/// What is pinned.
pub(crate) struct Pinned {
    pub shapes: BTreeMap<&'static str, Shape>,
    pub links: Vec<(String, Mode)>,
}

/// Detaches the program from every interface and removes what is pinned, of any version. Returns what was removed.
pub fn unload(pin_dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut removed = Vec::new();
    for directory in versions(pin_dir)? {
        let mut paths = list(&directory)?;
        // Links first, so that no program meets maps that are about to go.
        paths.sort_by_key(|path| link_name(path).is_none());
        for path in paths {
            remove(&path)?;
            removed.push(path);
        }
        fs::remove_dir(&directory).map_err(|source| at(&directory, source))?;
    }
    match fs::remove_dir(pin_dir) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
            ) =>
        {
            Err(at(pin_dir, error))
        }
        _ => Ok(removed),
    }
}

/// Whether pins can be made here, or in a directory made here.
pub fn check_bpffs(pin_dir: &Path) -> Result<(), LoadError> {
    let there = pin_dir.ancestors().find(|path| path.exists());
    let there = there.unwrap_or_else(|| Path::new("/"));
    let kind = statfs(there).map_err(|error| at(there, error.into()))?;
    if kind.filesystem_type() == BPF_FS_MAGIC {
        Ok(())
    } else {
        Err(LoadError::NoBpffs {
            path: pin_dir.to_owned(),
        })
    }
}

impl Pins {
    /// The directory of our version, made if missing. Pins of another version there are an error.
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, LoadError> {
        if let Some(path) = other_versions(pin_dir)?.into_iter().next() {
            return Err(LoadError::OtherVersion { path });
        }
        let ours = pin_dir.join(format!("v{ABI_VERSION}"));
        check_bpffs(pin_dir)?;
        fs::create_dir_all(&ours).map_err(|source| at(&ours, source))?;
        Ok(Self { directory: ours })
    }

    /// The directory of our version, whether there is one or not.
    pub(crate) fn existing(pin_dir: &Path) -> Self {
        Self {
            directory: pin_dir.join(format!("v{ABI_VERSION}")),
        }
    }

    /// What is pinned of the maps with these names; and the links.
    pub(crate) fn read(
        &self,
        names: impl IntoIterator<Item = &'static str>,
    ) -> Result<Pinned, LoadError> {
        let mut shapes = BTreeMap::new();
        for map in names {
            let path = self.directory.join(map);
            if path.exists() {
                let info = MapInfo::from_pin(&path).map_err(|error| LoadError::Map {
                    map,
                    source: Box::new(error),
                })?;
                shapes.insert(map, shape(&info));
            }
        }
        let links = list(&self.directory)?
            .iter()
            .filter_map(|path| link_name(path))
            .collect();
        Ok(Pinned { shapes, links })
    }

    /// Removes all that is pinned here.
    pub(crate) fn clear(&self) -> Result<(), LoadError> {
        for path in list(&self.directory)? {
            remove(&path)?;
        }
        Ok(())
    }

    pub(crate) fn link(&self, interface: &str, mode: Mode) -> PathBuf {
        let prefix = match mode {
            Mode::Native => NATIVE,
            Mode::Generic => GENERIC,
        };
        self.directory
            .join(format!("{prefix}{}", interface.replace('.', ":")))
    }

    /// Whether the link that was pinned for it is still there, and leads to the interface that has this name now.
    pub(crate) fn is_attached(&self, attached: &Attached) -> bool {
        let held = sys::link_ifindex(&self.link(&attached.name, attached.mode)).ok();
        held.flatten()
            .is_some_and(|held| if_index(&attached.name).ok() == Some(held))
    }

    /// Makes `program` the one that runs on exactly these interfaces, without a gap where one runs already.
    ///
    /// New interfaces come first, since they are what can fail: then the links to them are dropped, and all others are
    /// as they were.
    pub(crate) fn attach(
        &self,
        program: &mut Xdp,
        interfaces: &[String],
        mode: XdpMode,
    ) -> Result<(Vec<Attached>, Vec<String>), LoadError> {
        let pinned = self.read([])?.links;
        let places = self.places(interfaces, mode, &pinned)?;
        let mut links = Vec::with_capacity(places.len());
        for place in &places {
            links.push(match place.held {
                Some(mode) => Link::Held(mode),
                None => attach_anew(program, place, mode)?,
            });
        }
        let (mut attached, mut warnings) = (Vec::new(), Vec::new());
        for (Place { name, index, .. }, link) in places.into_iter().zip(links) {
            let (runs, refusal) = match link {
                Link::Held(runs) => {
                    replace(program, &self.link(&name, runs), &name)?;
                    (runs, None)
                }
                Link::New { link, runs, native } => {
                    self.pin(link, &name, runs)?;
                    (runs, native)
                }
            };
            if runs == Mode::Generic && mode != XdpMode::Generic {
                let why = refusal.map_or_else(String::new, |error| format!(" ({error})"));
                warnings.push(format!(
                    "{name} takes no native XDP{why}: the program runs in generic mode there, which is several times slower"
                ));
            }
            attached.push(Attached {
                name,
                index,
                mode: runs,
            });
        }
        for (name, mode) in pinned {
            let is_it = |attached: &Attached| attached.name == name && attached.mode == mode;
            if !attached.iter().any(is_it) {
                remove(&self.link(&name, mode))?;
            }
        }
        Ok((attached, warnings))
    }

    /// Finds the interfaces, and the pinned links that lead to them.
    fn places(
        &self,
        interfaces: &[String],
        mode: XdpMode,
        pinned: &[(String, Mode)],
    ) -> Result<Vec<Place>, LoadError> {
        let place = |name: &String| {
            let name = name.clone();
            let Ok(index) = if_index(&name) else {
                return Err(LoadError::NoInterface { interface: name });
            };
            let mut held = None;
            for (_, is) in pinned.iter().filter(|(interface, _)| *interface == name) {
                let path = self.link(&name, *is);
                if sys::link_ifindex(&path).map_err(|source| at(&path, source))? == Some(index) {
                    check_mode(&name, *is, mode)?;
                    held = Some(*is);
                }
            }
            Ok(Place { name, index, held })
        };
        interfaces.iter().map(place).collect()
    }

    /// Pins a new link, in the place of one that leads elsewhere.
    fn pin(&self, link: FdLink, interface: &str, mode: Mode) -> Result<(), LoadError> {
        let path = self.link(interface, mode);
        if path.exists() {
            remove(&path)?;
        }
        link.pin(path).map_err(|source| LoadError::PinLink {
            interface: interface.to_owned(),
            source: Box::new(source),
        })?;
        Ok(())
    }
}

/// An interface to attach to.
struct Place {
    name: String,
    index: u32,
    /// The mode of the pinned link that leads there.
    held: Option<Mode>,
}

/// What keeps the program on an interface.
enum Link {
    /// It is pinned.
    Held(Mode),
    /// It is not pinned yet: when it is dropped, the program is off the interface again.
    New {
        link: FdLink,
        runs: Mode,
        /// Why it is not native, where that was tried first.
        native: Option<ProgramError>,
    },
}

/// The kernel has one mode at a time on an interface. To go from one to the other, the link that is there would have to go
/// before it is known whether the new one holds.
pub(super) fn check_mode(interface: &str, is: Mode, asked: XdpMode) -> Result<(), LoadError> {
    match (asked, is) {
        (XdpMode::Native, Mode::Generic) | (XdpMode::Generic, Mode::Native) => {
            Err(LoadError::OtherMode {
                interface: interface.to_owned(),
                is,
            })
        }
        _ => Ok(()),
    }
}

fn attach_anew(program: &mut Xdp, place: &Place, mode: XdpMode) -> Result<Link, LoadError> {
    let name = || place.name.clone();
    let failed = |source| LoadError::Attach {
        interface: name(),
        source: Box::new(source),
    };
    let native = match mode {
        XdpMode::Generic => None,
        _ => Some(program.attach_to_if_index(place.index, Flags::Driver)),
    };
    let (id, runs, native) = match native {
        Some(Ok(id)) => (id, Mode::Native, None),
        Some(Err(source)) if mode == XdpMode::Native => {
            return Err(LoadError::Native {
                interface: name(),
                source: Box::new(source),
            });
        }
        refused => {
            let id = program.attach_to_if_index(place.index, Flags::Skb);
            (
                id.map_err(failed)?,
                Mode::Generic,
                refused.and_then(Result::err),
            )
        }
    };
    let link = program.take_link(id).map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|_error| LoadError::NoLink { interface: name() })?;
    Ok(Link::New { link, runs, native })
}

const NATIVE: &str = "link_";
const GENERIC: &str = "generic_";

/// Puts the program behind a pinned link: no packet misses both.
fn replace(program: &mut Xdp, pin: &Path, interface: &str) -> Result<(), LoadError> {
    let failed = |source: ProgramError| LoadError::Attach {
        interface: interface.to_owned(),
        source: Box::new(source),
    };
    let link = PinnedLink::from_pin(pin)
        .and_then(|link| XdpLink::try_from(FdLink::from(link)))
        .map_err(|error| failed(io_error(error)))?;
    let id = program.attach_to_link(link).map_err(failed)?;
    // The pin keeps it; ours is closed.
    drop(program.take_link(id).map_err(failed)?);
    Ok(())
}

fn io_error(error: aya::programs::links::LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

/// The interface and mode that a pin's name tells.
fn link_name(path: &Path) -> Option<(String, Mode)> {
    let name = path.file_name()?.to_str()?;
    let (name, mode) = match name.strip_prefix(NATIVE) {
        Some(name) => (name, Mode::Native),
        None => (name.strip_prefix(GENERIC)?, Mode::Generic),
    };
    Some((name.replace(':', "."), mode))
}

/// Removes a pin. A link's program is off its interface when this returns.
fn remove(path: &Path) -> Result<(), LoadError> {
    if link_name(path).is_some() {
        sys::detach_link(path).map_err(|source| at(path, source))?;
    }
    fs::remove_file(path).map_err(|source| at(path, source))
}

/// Directories of any version.
fn versions(pin_dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let is_version = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok())
            .is_some()
    };
    Ok(list(pin_dir)?.into_iter().filter(is_version).collect())
}

/// Directories of other versions than ours that hold anything.
pub(crate) fn other_versions(pin_dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let ours = pin_dir.join(format!("v{ABI_VERSION}"));
    let mut others = Vec::new();
    for path in versions(pin_dir)? {
        if path != ours && !list(&path)?.is_empty() {
            others.push(path);
        }
    }
    Ok(others)
}

/// What a directory holds; nothing if it is missing.
fn list(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| at(directory, source))?,
    };
    entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()
        .map_err(|source| at(directory, source))
}

fn at(path: &Path, source: io::Error) -> LoadError {
    LoadError::Directory {
        path: path.to_owned(),
        source,
    }
}
