//! Builds the kernel objects once more from another folder, and compares them byte for byte with those in the daemon.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::{
    objects::{self, OBJECTS, Toolchain},
    stages::{BUILD_DAEMON, cargo, git, workspace},
};

/// Fails and names the first byte that depends on where an object was built.
///
/// The other folder stays under `target/`, so that a second run only builds what has changed.
pub(crate) fn check() -> Result<()> {
    let toolchain =
        Toolchain::find().map_err(|tried| anyhow!("no compiler for the kernel: {tried}"))?;
    let scratch = workspace().join("target/reproducible");
    let elsewhere = scratch.join("another/folder");
    copy_sources(&elsewhere)?;

    let embedded = embedded_objects()?;
    let rebuilt = objects::compile(
        &toolchain,
        &elsewhere,
        &scratch.join("target"),
        env::consts::ARCH,
    )
    .map_err(|why| anyhow!("{}: {why}", elsewhere.display()))?;
    for object in OBJECTS {
        let (first, second) = (embedded.join(format!("{object}.o")), rebuilt.join(object));
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (here, there) = (read(&first)?, read(&second)?);
        if let Some(offset) = difference(&here, &there) {
            bail!(
                "{object} depends on the folder it is built in: {} and {} differ at byte {offset}",
                first.display(),
                second.display()
            );
        }
        println!("{object}: {} bytes, the same from both folders", here.len());
    }
    Ok(())
}

/// Builds the daemon, and returns the folder that its build script left the objects in.
fn embedded_objects() -> Result<PathBuf> {
    let output = cargo(BUILD_DAEMON)
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the daemon does not build");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "build-script-executed")
        .filter_map(|message| message["out_dir"].as_str().map(PathBuf::from))
        .find(|folder| folder.join(format!("{}.o", OBJECTS[0])).exists())
        .context("no build script left kernel objects")
}

fn difference(first: &[u8], second: &[u8]) -> Option<usize> {
    let common = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    (common < first.len().max(second.len())).then_some(common)
}

/// Copies what git knows or would add. Files keep their time of change, by which cargo tells what to build again.
fn copy_sources(to: &Path) -> Result<()> {
    let all = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let listed = git(&all).context("cannot list the sources")?;
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    let from = workspace();
    for name in listed.lines().filter(|name| from.join(name).is_file()) {
        copy(&from.join(name), &to.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    fs::copy(from, to)?;
    fs::File::options()
        .write(true)
        .open(to)?
        .set_modified(fs::metadata(from)?.modified()?)
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(difference(b"same", b"same"), None);
        assert_eq!(difference(b"same", b"sane"), Some(2));
        assert_eq!(difference(b"same", b"same and more"), Some(4));
    }
}
