//! The file that limits outlive a restart in: a line of JSON for each change, and a header.
//!
//! A change is on the disk before it is answered. When most lines are history the file is written anew beside itself and
//! renamed, so a crash leaves the old file or the new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::store::{Corruption, LimitRecord};

/// A line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Line {
    /// The first line; what it says of ids holds although the lines that used them are gone.
    Header {
        version: u32,
        next_id: u64,
    },
    Set(LimitRecord),
    Remove(u64),
}

/// The open file. After a failed write the next one makes the file anew.
pub(super) struct Journal {
    path: PathBuf,
    /// At its end; `None` if that may be torn.
    file: Option<File>,
    pub(super) lines: usize,
}

impl Journal {
    /// Reads all lines that can be read. If some cannot, the file is put aside, and the caller must write it anew.
    pub(super) fn open(
        directory: &Path,
        now: u64,
    ) -> io::Result<(Self, Vec<Line>, Option<Corruption>)> {
        let path = directory.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut journal = Self {
            path,
            file: None,
            lines: 0,
        };
        let Some(bytes) = bytes else {
            return Ok((journal, Vec::new(), None));
        };
        let (lines, unreadable) = read(&bytes);
        journal.lines = lines.len();
        if unreadable == 0 && bytes.ends_with(b"\n") {
            let file = OpenOptions::new().append(true).open(&journal.path)?;
            journal.file = Some(file);
        }
        if unreadable == 0 {
            return Ok((journal, lines, None));
        }
        let aside = unused_name(directory, now);
        // It stays under its own name too, until a whole one takes that.
        fs::hard_link(&journal.path, &aside)
            .or_else(|_| fs::copy(&journal.path, &aside).map(drop))?;
        let corruption = Corruption {
            file: journal.path.clone(),
            aside,
            unreadable_lines: unreadable,
        };
        Ok((journal, lines, Some(corruption)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file that lines can be added to.
    pub(super) fn is_whole(&self) -> bool {
        self.file.is_some()
    }

    /// Adds lines at the end; they are on the disk when this returns.
    pub(super) fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let Some(mut file) = self.file.take() else {
            return Err(io::Error::other("the file's end is not known"));
        };
        let mut text = Vec::new();
        for line in lines {
            write_line(&mut text, line)?;
        }
        file.write_all(&text)?;
        file.sync_data()?;
        self.lines += lines.len();
        self.file = Some(file);
        Ok(())
    }

    /// Writes the file anew.
    pub(super) fn rewrite(&mut self, lines: impl Iterator<Item = Line>) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(&beside)?);
        let mut count = 0;
        for line in lines {
            write_line(&mut writer, &line)?;
            count += 1;
        }
        let file = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.lines = count;
        self.file = Some(file);
        Ok(())
    }
}

pub(super) const VERSION: u32 = 1;

const FILE: &str = "limits.jsonl";

fn write_line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Lines that can be read, and the number of those that cannot. A file without its header has lost something.
fn read(bytes: &[u8]) -> (Vec<Line>, usize) {
    let (mut lines, mut unreadable) = (Vec::new(), 0);
    for text in bytes.split(|byte| *byte == b'\n') {
        if text.is_empty() {
            continue;
        }
        match serde_json::from_slice(text) {
            Ok(Line::Header { version, .. }) if version != VERSION => unreadable += 1,
            Ok(line) => lines.push(line),
            Err(_) => unreadable += 1,
        }
    }
    if unreadable == 0 && !matches!(lines.first(), Some(Line::Header { .. })) {
        unreadable = 1;
    }
    (lines, unreadable)
}

fn unused_name(directory: &Path, now: u64) -> PathBuf {
    let name = |time: u64| directory.join(format!("{FILE}.corrupt-{time}"));
    let mut time = now;
    while name(time).exists() {
        time += 1;
    }
    name(time)
}
