//! Packs what is installed: a tarball to unpack into /usr/local, and a Debian package of the same.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    licences, machine,
    stages::{build, build_for_lab, git, workspace},
};

/// Builds the daemon, and packs it into `target/package/`.
pub(crate) fn package() -> Result<()> {
    let packed = pack(&build()?, &workspace().join("target/package"))?;
    for archive in packed.archives() {
        println!("packed {}", archive.display());
    }
    if packed.deb.is_none() {
        println!("no Debian package: there is no dpkg-deb here");
    }
    Ok(())
}

/// Packs the lab's daemon twice, and looks whether both are the same, and whether what is unpacked is whole.
pub(crate) fn check() -> Result<()> {
    let built = build_for_lab()?;
    let scratch = workspace().join("target/package-check");
    fs::create_dir_all(&scratch)?;
    // What debuggers need would be most of what is compressed here, four times.
    let daemon = scratch.join("sluice");
    let into = ["-o", text(&daemon)?, text(&built)?];
    machine::succeed("strip", &into, &[])?;
    let packed = pack(&daemon, &scratch.join("one"))?;
    let again = pack(&daemon, &scratch.join("two"))?;
    for (first, second) in packed.archives().zip(again.archives()) {
        ensure!(
            fs::read(first)? == fs::read(second)?,
            "{} and {} differ, which are made of the same",
            first.display(),
            second.display()
        );
    }
    let unpacked = scratch.join("unpacked");
    create_anew(&unpacked)?;
    let (tarball, folder) = (text(&packed.tarball)?, text(&unpacked)?);
    let strip = ["--strip-components=1", "--directory", folder];
    machine::succeed("tar", &[&["-xzf", tarball][..], &strip].concat(), &[])?;
    let listed = machine::output("tar", &["--numeric-owner", "-tvzf", tarball]);
    for line in listed.context("tar cannot list it")?.lines() {
        ensure!(
            line.starts_with("-rw-r--r-- 0/0") || line.starts_with("-rwxr-xr-x 0/0"),
            "who unpacks it as root gets: {line}"
        );
    }
    is_whole(&LOCAL, &unpacked)?;
    if let Some(deb) = &packed.deb {
        let unpacked = scratch.join("debian");
        create_anew(&unpacked)?;
        machine::succeed(
            "dpkg-deb",
            &["--extract", text(deb)?, text(&unpacked)?],
            &[],
        )?;
        is_whole(&DEBIAN, &unpacked.join("usr"))?;
    }
    for archive in packed.archives() {
        let bytes = fs::metadata(archive)?.len();
        println!("{}: {bytes} bytes, whole", archive.display());
    }
    Ok(())
}

/// Fails and names what lacks under a prefix.
fn is_whole(layout: &Layout, folder: &Path) -> Result<()> {
    let program = folder.join("bin/sluice");
    let said = machine::output(text(&program)?, &["--version"]);
    ensure!(
        said.as_deref() == Some(&format!("sluice {VERSION}")),
        "{} says {said:?}",
        program.display()
    );
    let unit = fs::read_to_string(folder.join(UNIT)).context(UNIT)?;
    let run = unit.lines().filter(|line| line.starts_with("Exec"));
    for program in run.filter_map(|line| line.split(['=', ' ']).nth(1)) {
        let there = program
            .strip_prefix(layout.prefix)
            .map(|path| format!("{}{path}", folder.display()));
        ensure!(
            there.is_some_and(|path| Path::new(&path).is_file()),
            "{UNIT} runs {program}, which is not there"
        );
    }
    for path in [layout.zsh].iter().chain(WHOLE) {
        let path = folder.join(path);
        let bytes = fs::metadata(&path).map(|file| file.len());
        ensure!(bytes.is_ok_and(|bytes| bytes > 0), "no {}", path.display());
    }
    Ok(())
}

struct Packed {
    tarball: PathBuf,
    /// None: this is no Debian.
    deb: Option<PathBuf>,
}

impl Packed {
    fn archives(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.tarball), self.deb.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// Packs a daemon into the folder `into`, which is made anew. Of the same commit and daemon come the same bytes.
fn pack(daemon: &Path, into: &Path) -> Result<Packed> {
    create_anew(into)?;
    let time = git(&["log", "-1", "--format=%ct"])?;
    let deb = machine::has("dpkg-deb")
        .then(|| pack_deb(daemon, into, &time))
        .transpose()?;
    Ok(Packed {
        tarball: pack_tarball(daemon, into, &time)?,
        deb,
    })
}

/// Only files go into it: folders that are there when it is unpacked stay as they are.
fn pack_tarball(daemon: &Path, into: &Path, time: &str) -> Result<PathBuf> {
    let name = format!("sluice-{VERSION}-linux-{}", env::consts::ARCH);
    let root = into.join(&name);
    lay_out(daemon, &LOCAL, &root)?;
    let mut files = Vec::new();
    add_files(&root, &mut files)?;
    files.sort();

    let archive = into.join(format!("{name}.tar.gz"));
    let (mtime, file) = (format!("--mtime=@{time}"), text(&archive)?);
    let mut arguments = vec![
        "--create",
        "--format=ustar",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        &mtime,
        // Without the time of packing.
        "--use-compress-program=gzip -n",
        "--file",
        file,
        "--directory",
        text(into)?,
    ];
    for path in &files {
        arguments.push(text(path.strip_prefix(into)?)?);
    }
    machine::succeed("tar", &arguments, &[])?;
    fs::remove_dir_all(&root)?;
    Ok(archive)
}

fn pack_deb(daemon: &Path, into: &Path, time: &str) -> Result<PathBuf> {
    let root = into.join("debian");
    lay_out(daemon, &DEBIAN, &root.join("usr"))?;
    let architecture = machine::output("dpkg", &["--print-architecture"])
        .context("dpkg does not know this machine's architecture")?;
    let headers = machine::output("objdump", &["-p", text(daemon)?])
        .context("objdump (of binutils) cannot read the daemon")?;
    let (major, minor) = newest_glibc(&headers).context("the daemon needs no glibc")?;
    let control = format!(
        "Package: sluice\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: The Sluice contributors\n\
         Depends: libc6 (>= {major}.{minor}), libgcc-s1\n\
         Section: net\n\
         Priority: optional\n\
         Description: anycast-aware L4 load balancer and DoS filter\n"
    );
    write(&root.join("DEBIAN/control"), &control)?;
    make_readable(&root)?;

    let archive = into.join(format!("sluice_{VERSION}_{architecture}.deb"));
    // gzip: xz would write other bytes with other numbers of CPUs.
    let build = ["--root-owner-group", "-Zgzip", "--build"];
    let paths = [text(&root)?, text(&archive)?];
    machine::succeed(
        "dpkg-deb",
        &[&build[..], &paths].concat(),
        &[("SOURCE_DATE_EPOCH", time)],
    )?;
    fs::remove_dir_all(&root)?;
    Ok(archive)
}

/// Puts everything under `root` where it lies under the prefix.
fn lay_out(daemon: &Path, layout: &Layout, root: &Path) -> Result<()> {
    let program = root.join("bin/sluice");
    copy(daemon, &program)?;
    let unit = fs::read_to_string(workspace().join("packaging/sluice.service"))?;
    write(&root.join(UNIT), &unit.replace(LOCAL.prefix, layout.prefix))?;

    let program = text(&program)?;
    machine::succeed(program, &["man", text(&root.join(MAN))?], &[])?;
    for (shell, path) in [("bash", BASH), ("fish", FISH), ("zsh", layout.zsh)] {
        let script = machine::output(program, &["completions", shell]);
        let script = script.with_context(|| format!("no completions for {shell}"))?;
        write(&root.join(path), &script)?;
    }

    let doc = root.join(DOC);
    for name in git(&[&["ls-files", "--"], DOCUMENTS].concat())?.lines() {
        copy(&workspace().join(name), &doc.join(name))?;
    }
    write(&root.join(THIRD_PARTY), &licences::notices()?)?;
    make_readable(root)
}

/// The newest glibc of which the program needs something, from what `objdump -p` says of it.
fn newest_glibc(headers: &str) -> Option<(u32, u32)> {
    headers
        .split("GLIBC_")
        .skip(1)
        .filter_map(machine::version)
        .max()
}

/// Whatever umask this runs under.
fn make_readable(folder: &Path) -> Result<()> {
    machine::succeed("chmod", &["-R", "u=rwX,go=rX", text(folder)?], &[])
}

fn create_anew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn add_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            add_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_room_for(to)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn write(to: &Path, content: &str) -> Result<()> {
    make_room_for(to)?;
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))
}

fn make_room_for(path: &Path) -> Result<()> {
    Ok(fs::create_dir_all(path.parent().unwrap_or(path))?)
}

fn text(path: &Path) -> Result<&str> {
    let text = path.to_str();
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Of the whole workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where things lie.
struct Layout {
    prefix: &'static str,
    zsh: &'static str,
}

const LOCAL: Layout = Layout {
    prefix: "/usr/local",
    zsh: "share/zsh/site-functions/_sluice",
};

const DEBIAN: Layout = Layout {
    prefix: "/usr",
    zsh: "share/zsh/vendor-completions/_sluice",
};

const UNIT: &str = "lib/systemd/system/sluice.service";
const BASH: &str = "share/bash-completion/completions/sluice";
const FISH: &str = "share/fish/vendor_completions.d/sluice.fish";
const MAN: &str = "share/man/man1";
const DOC: &str = "share/doc/sluice";
const THIRD_PARTY: &str = "share/doc/sluice/LICENSE-THIRD-PARTY";

/// What lies in [`DOC`] as it does in the repository, so that links between pages lead somewhere.
const DOCUMENTS: &[&str] = &["*.md", "LICENSE*", "grafana", "lb/sluice.example.toml"];

/// Some of what must be there, of each kind.
const WHOLE: &[&str] = &[
    BASH,
    FISH,
    "share/man/man1/sluice.1",
    "share/man/man1/sluice-limit-set.1",
    "share/doc/sluice/README.md",
    "share/doc/sluice/lb/docs/operations.md",
    "share/doc/sluice/lb/sluice.example.toml",
    "share/doc/sluice/grafana/dashboards/overview.json",
    "share/doc/sluice/grafana/rules/alerts.yml",
    "share/doc/sluice/LICENSE",
    "share/doc/sluice/LICENSE-APACHE",
    "share/doc/sluice/LICENSE-MIT",
    THIRD_PARTY,
];

#[cfg(test)]
mod tests {
    use super::newest_glibc;

    #[test]
    fn the_newest_glibc_is_told_by_its_number() {
        let headers =
            "  required from libc.so.6:\n    0x0 0x00 05 GLIBC_2.34\n    0x0 0x00 04 GLIBC_2.9\n";
        assert_eq!(newest_glibc(headers), Some((2, 34)));
        assert_eq!(newest_glibc("  NEEDED  libm.so.6\n"), None);
    }
}
