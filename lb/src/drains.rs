//! What an operator has drained. It stands in the state directory, so that it survives a restart.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A backend as operators name it: `POOL/ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BackendName {
    pub pool: String,
    pub address: IpAddr,
}

/// Backends that get no new flows.
pub type Drains = BTreeSet<BackendName>;

/// The drains, in memory and in a file that is written before a change counts.
#[derive(Debug)]
pub struct DrainStore {
    path: PathBuf,
    drains: Drains,
}

/// A store that could not be read, and was set aside so that nothing in it is lost.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the drains in {} cannot be read ({why}); they stand in {} now, and nothing is drained: drain again what must be",
    path.display(), aside.display()
)]
pub struct SetAside {
    path: PathBuf,
    aside: PathBuf,
    why: String,
}

impl DrainStore {
    /// Reads `drains.json` in this directory. A store that makes no sense is set aside, and said.
    pub fn open(state_dir: &Path) -> io::Result<(Self, Option<SetAside>)> {
        let path = state_dir.join(FILE);
        let empty = |path| Self {
            path,
            drains: Drains::new(),
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((empty(path), None));
            }
            Err(error) => return Err(error),
        };
        let why = match serde_json::from_slice::<Stored>(&bytes) {
            Ok(Stored {
                version: VERSION,
                backends,
            }) => {
                return Ok((
                    Self {
                        path,
                        drains: backends,
                    },
                    None,
                ));
            }
            Ok(Stored { version, .. }) => format!("its version is {version}, not {VERSION}"),
            Err(error) => error.to_string(),
        };
        let aside = path.with_extension("json.unreadable");
        fs::rename(&path, &aside)?;
        let said = SetAside {
            path: path.clone(),
            aside,
            why,
        };
        Ok((empty(path), Some(said)))
    }

    pub fn drains(&self) -> &Drains {
        &self.drains
    }

    /// True if this changed anything.
    pub fn drain(&mut self, name: BackendName) -> io::Result<bool> {
        let mut drains = self.drains.clone();
        if !drains.insert(name) {
            return Ok(false);
        }
        self.replace(drains)?;
        Ok(true)
    }

    /// True if this changed anything.
    pub fn undrain(&mut self, name: &BackendName) -> io::Result<bool> {
        let mut drains = self.drains.clone();
        if !drains.remove(name) {
            return Ok(false);
        }
        self.replace(drains)?;
        Ok(true)
    }

    fn replace(&mut self, drains: Drains) -> io::Result<()> {
        let stored = Stored {
            version: VERSION,
            backends: drains,
        };
        let new = self.path.with_extension("json.new");
        let mut file = fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&stored)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        // The rename itself must be on the disk too before a change counts.
        if let Some(directory) = self.path.parent() {
            fs::File::open(directory)?.sync_all()?;
        }
        self.drains = stored.backends;
        Ok(())
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.address)
    }
}

/// A text that names no backend.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a backend is named POOL/ADDRESS, like web/10.0.0.11")]
pub struct NotABackend;

impl FromStr for BackendName {
    type Err = NotABackend;

    fn from_str(text: &str) -> Result<Self, NotABackend> {
        let (pool, address) = text.split_once('/').ok_or(NotABackend)?;
        if pool.is_empty() {
            return Err(NotABackend);
        }
        Ok(Self {
            pool: pool.to_owned(),
            address: address.parse().map_err(|_not_an_address| NotABackend)?,
        })
    }
}

impl From<BackendName> for String {
    fn from(name: BackendName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for BackendName {
    type Error = NotABackend;

    fn try_from(text: String) -> Result<Self, NotABackend> {
        text.parse()
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    backends: Drains,
}

const FILE: &str = "drains.json";
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drains_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let name: BackendName = "web/2001:db8::1".parse().unwrap();
        let (mut store, said) = DrainStore::open(dir.path()).unwrap();
        assert_eq!(said, None);
        assert!(store.drain(name.clone()).unwrap());
        assert!(!store.drain(name.clone()).unwrap());

        let (mut store, said) = DrainStore::open(dir.path()).unwrap();
        assert_eq!(said, None);
        assert_eq!(store.drains(), &Drains::from([name.clone()]));
        assert!(store.undrain(&name).unwrap());
        assert!(!store.undrain(&name).unwrap());
        let (store, _) = DrainStore::open(dir.path()).unwrap();
        assert!(store.drains().is_empty());
    }

    #[test]
    fn a_store_that_makes_no_sense_is_said_and_set_aside() {
        for text in [
            "{\"version\":1,\"backends\":[\"web/",
            "{\"version\":9,\"backends\":[]}",
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), text).unwrap();
            let (store, said) = DrainStore::open(dir.path()).unwrap();
            assert!(store.drains().is_empty());
            assert!(said.unwrap().to_string().contains("drains.json.unreadable"));
            let kept = fs::read_to_string(dir.path().join("drains.json.unreadable")).unwrap();
            assert_eq!(kept, text);
        }
    }

    #[test]
    fn only_pool_and_address_name_a_backend() {
        for text in ["web", "web/", "/10.0.0.1", "web/x", "web/10.0.0.1/24"] {
            assert_eq!(text.parse::<BackendName>(), Err(NotABackend), "{text}");
        }
    }
}
