//! Builds the kernel objects twice, from two folders, and compares them byte for byte.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    machine,
    objects::{self, OBJECTS, Toolchain},
    stages::workspace,
};

/// Fails and names the first byte that depends on where the object was built.
///
/// Both folders stay under `target/`, so that a second run only builds what has changed.
pub(crate) fn check() -> Result<()> {
    let toolchain =
        Toolchain::find().map_err(|tried| anyhow!("no compiler for the kernel: {tried}"))?;
    let scratch = workspace().join("target/reproducible");
    let elsewhere = scratch.join("another/folder");
    copy_sources(workspace(), &elsewhere)?;

    let build = |from: &Path, target_dir: PathBuf| {
        objects::compile(&toolchain, from, &target_dir, env::consts::ARCH)
            .map_err(|why| anyhow!("{}: {why}", from.display()))
    };
    let here = build(workspace(), scratch.join("here"))?;
    let there = build(&elsewhere, scratch.join("there"))?;
    for object in OBJECTS {
        let read = |folder: &Path| {
            fs::read(folder.join(object)).with_context(|| format!("cannot read {object}"))
        };
        let (first, second) = (read(&here)?, read(&there)?);
        if let Some(offset) = difference(&first, &second) {
            bail!(
                "{object} depends on the folder it is built in: {} and {} differ at byte {offset}",
                here.join(object).display(),
                there.join(object).display()
            );
        }
        println!(
            "{object}: {} bytes, the same from both folders",
            first.len()
        );
    }
    Ok(())
}

fn difference(first: &[u8], second: &[u8]) -> Option<usize> {
    let common = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    (common < first.len().max(second.len())).then_some(common)
}

/// Copies what git knows or would add. Files keep their time of change, by which cargo tells what to build again.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    let folder = from
        .to_str()
        .context("the path of the workspace is not UTF-8")?;
    let listed = machine::output(
        "git",
        &[
            "-C",
            folder,
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
    )
    .context("cannot list the sources: git is missing, or this is not a clone")?;
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
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
