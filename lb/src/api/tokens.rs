//! Tokens of clients by TCP: a file of hashes, and what each allows.

use std::{
    fmt::{self, Write as _},
    fs::{self, File},
    io::{self, Read, Write as _},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use clap::ValueEnum;
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// See everything, change nothing
    Read,
    /// See and change everything
    Operate,
}

/// The tokens of a file, by their hashes: nobody who reads it learns a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(Vec<Stored>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    hash: Hash,
    role: Role,
    expires: Option<SystemTime>,
}

/// A token is random enough that nobody finds it by trying, so a fast hash is as good as a slow one.
type Hash = [u8; digest::SHA256_OUTPUT_LEN];

/// What a token allows, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub role: Role,
    pub expires: Option<SystemTime>,
    hash: Hash,
}

/// Why a token allows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    Unknown,
    Expired(SystemTime),
}

/// Why a file of tokens is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error(
        "cannot read the tokens {}: {source}; make one by `sluice token new --role read --file {}`",
        path.display(),
        path.display()
    )]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the tokens {} must be a plain file", path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "others than its owner can write the tokens {}, and so let themselves in; `chmod go-w` it",
        path.display()
    )]
    Writable { path: PathBuf },
    #[error("{}:{line}: {message}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("the tokens {} are larger than {MAX_BYTES} bytes; remove those that are not used any more", path.display())]
    TooLarge { path: PathBuf },
}

impl Tokens {
    /// Reads a file whole, or refuses it whole.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        let unreadable = |source| TokensError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let metadata = path.metadata().map_err(unreadable)?;
        let path_buf = || path.to_owned();
        // Before it is opened: opening a FIFO would wait.
        if !metadata.is_file() {
            return Err(TokensError::NotAFile { path: path_buf() });
        }
        if metadata.permissions().mode() & 0o022 != 0 {
            return Err(TokensError::Writable { path: path_buf() });
        }
        let mut text = String::new();
        File::open(path)
            .map_err(unreadable)?
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(TokensError::TooLarge { path: path_buf() });
        }
        let mut tokens = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let stored = line.parse().map_err(|message| TokensError::Line {
                path: path_buf(),
                line: number,
                message,
            })?;
            tokens.push(stored);
        }
        Ok(Self(tokens))
    }

    /// What `token` allows now. Takes equally long for every token, whether it is there or nearly there or not.
    pub fn grant(&self, token: &str, now: SystemTime) -> Result<Grant, Denied> {
        self.of_hash(&hash(token), now)
    }

    /// Whether what was granted once still is.
    pub fn still_grants(&self, grant: &Grant, now: SystemTime) -> Result<Grant, Denied> {
        self.of_hash(&grant.hash, now)
    }

    fn of_hash(&self, hash: &Hash, now: SystemTime) -> Result<Grant, Denied> {
        let mut found = NOT_FOUND;
        for (stored, index) in self.0.iter().zip(0u32..) {
            let equal: Choice = stored.hash.ct_eq(hash);
            found.conditional_assign(&index, equal);
        }
        let index = usize::try_from(found).map_err(|_too_large| Denied::Unknown)?;
        let stored = self.0.get(index).ok_or(Denied::Unknown)?;
        match stored.expires {
            Some(expires) if expires <= now => Err(Denied::Expired(expires)),
            expires => Ok(Grant {
                role: stored.role,
                expires,
                hash: *hash,
            }),
        }
    }
}

/// Draws a token, and adds its hash to the file, which is made if it is not there. Returns the token: nobody else has it.
pub fn create(
    path: &Path,
    role: Role,
    expires: Option<SystemTime>,
    comment: &str,
) -> Result<String, TokensError> {
    let unreadable = |source| TokensError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let before = match Tokens::load(path) {
        Ok(_) => fs::read_to_string(path).map_err(unreadable)?,
        Err(TokensError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            String::new()
        }
        Err(error) => return Err(error),
    };
    let mut secret = [0; SECRET_BYTES];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(|_unspecified| {
            unreadable(io::Error::other("the kernel gives no random numbers"))
        })?;
    let token = format!("{PREFIX}{}", hex(&secret));
    let stored = Stored {
        hash: hash(&token),
        role,
        expires,
    };
    let newline = if before.is_empty() || before.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let comment = comment.replace(char::is_control, " ");
    let line = format!("{newline}{stored} {comment}");
    let mut file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(unreadable)?;
    // One write, so that two at a time do not mix.
    file.write_all(format!("{}\n", line.trim_end()).as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(unreadable)?;
    Ok(token)
}

const NOT_FOUND: u32 = u32::MAX;
const MAX_BYTES: u64 = 1 << 20;
const SECRET_BYTES: usize = 32;
/// So that whoever finds a token knows what it is of.
const PREFIX: &str = "sluice_";
const NEVER: &str = "never";

fn hash(token: &str) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// A line of the file: role, end and hash.
impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.role.word())?;
        match self.expires {
            Some(expires) => write!(f, "{}", humantime::format_rfc3339_seconds(expires))?,
            None => f.write_str(NEVER)?,
        }
        write!(f, " {}", hex(&self.hash))
    }
}

impl std::str::FromStr for Stored {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let mut word = |what: &str| {
            words.next().ok_or_else(|| {
                format!("no {what}; a line is `ROLE EXPIRES SHA256 COMMENT`, as `sluice token new` writes it")
            })
        };
        let role = match word("role")? {
            "read" => Role::Read,
            "operate" => Role::Operate,
            _ => return Err("the role must be `read` or `operate`".into()),
        };
        let expires = match word("end")? {
            NEVER => None,
            date => Some(humantime::parse_rfc3339(date).map_err(|_wrong| {
                "the end must be `never`, or a date like `2030-01-31T12:00:00Z`".to_owned()
            })?),
        };
        let hash = unhex(word("hash")?).ok_or("the hash must be 64 hexadecimal digits")?;
        Ok(Self {
            hash,
            role,
            expires,
        })
    }
}

impl Role {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }

    pub const fn may_change(self) -> bool {
        matches!(self, Self::Operate)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_token_is_stored_by_its_hash_and_grants_its_role_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let now = SystemTime::now();
        let end = now + Duration::from_secs(60);
        let read = create(&path, Role::Read, Some(end), "prometheus\nroot").unwrap();
        let operate = create(&path, Role::Operate, None, "").unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains(&read[PREFIX.len()..]) && text.contains("prometheus root"));

        let tokens = Tokens::load(&path).unwrap();
        let grant = tokens.grant(&read, now).unwrap();
        assert_eq!(grant.role, Role::Read);
        assert_eq!(tokens.grant(&operate, now).unwrap().role, Role::Operate);
        let later = end + Duration::from_secs(1);
        assert!(matches!(
            tokens.grant(&read, later),
            Err(Denied::Expired(_))
        ));
        assert!(tokens.grant(&operate, later).is_ok());
        for wrong in ["", "sluice_", &read[1..], &format!("{read}0")] {
            assert_eq!(tokens.grant(wrong, now), Err(Denied::Unknown), "{wrong}");
        }
        assert_eq!(tokens.still_grants(&grant, now), Ok(grant));
        assert_eq!(
            Tokens::default().still_grants(&grant, now),
            Err(Denied::Unknown)
        );
    }

    #[test]
    fn a_line_is_added_after_one_that_has_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        fs::write(&path, "# mine").unwrap();
        let token = create(&path, Role::Read, None, "").unwrap();
        assert!(
            Tokens::load(&path)
                .unwrap()
                .grant(&token, SystemTime::now())
                .is_ok()
        );
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let hash = "0".repeat(64);
        for (text, said) in [
            ("\nread".to_owned(), ":2: no end"),
            (format!("root never {hash}"), ":1: the role must be"),
            (format!("read soon {hash}"), "the end must be"),
            ("read never 00".to_owned(), "64 hexadecimal digits"),
            (format!("read never {}", "é".repeat(32)), "64 hexadecimal"),
            (" ".repeat(1 << 20) + "x", "larger than"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Tokens::load(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            let error = create(&path, Role::Read, None, "").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let error = Tokens::load(&path).unwrap_err().to_string();
        assert!(error.contains("chmod go-w"), "{error}");
        let error = Tokens::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("plain file"), "{error}");
        let error = Tokens::load(&dir.path().join("x")).unwrap_err().to_string();
        assert!(error.contains("sluice token new"), "{error}");
    }
}
