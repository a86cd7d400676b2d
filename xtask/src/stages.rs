//! Runs cargo in stages: each says its name and how long it took, and the first that fails ends the run with a summary.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    mem,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{licences, machine, package, reproducible};

/// Builds the daemon as it is installed.
pub(crate) fn build() -> Result<PathBuf> {
    run_cargo(BUILD_RELEASE)?;
    let built = workspace().join("target/release/sluice");
    println!("built {}", built.display());
    Ok(built)
}

/// Builds it as the lab runs it.
pub(crate) fn build_for_lab() -> Result<PathBuf> {
    run_cargo(BUILD_DAEMON)?;
    Ok(workspace().join("target/debug/sluice"))
}

/// Every check there is.
pub(crate) fn test() -> Result<ExitCode> {
    let mut run = Run::default();
    let outcome = checks(&mut run, Scope::Everything).and_then(|()| lab(&mut run, None));
    Ok(run.summary(outcome))
}

/// Every check that needs no privilege.
pub(crate) fn test_without_lab() -> Result<ExitCode> {
    let mut run = Run::default();
    let outcome = checks(&mut run, Scope::NoLab);
    println!(
        "\n*** --fast: the verdict table and the lab were LEFT OUT; `cargo xtask test` runs them too ***"
    );
    Ok(run.summary(outcome))
}

/// The lab tests whose name contains `filter`.
pub(crate) fn test_in_lab(filter: &str) -> Result<ExitCode> {
    let mut run = Run::default();
    let outcome = lab(&mut run, Some(filter));
    Ok(run.summary(outcome))
}

/// The daemon's figures, from a release build: each test of one prints it.
pub(crate) fn figures() -> Result<ExitCode> {
    let mut run = Run::default();
    let outcome = run
        .cargo_test(
            "figures of the lookup table",
            &[
                "test",
                "--release",
                "--package",
                "sluice",
                "--lib",
                "--locked",
                "maglev::",
                "--",
                "--nocapture",
            ],
        )
        .and_then(|()| {
            run.cargo_tests(
                "figures of the daemon",
                &[("FLOOD_SECONDS", "60")],
                &[&[
                    "test",
                    "--release",
                    "--package",
                    "sluice-tests",
                    "--test",
                    "scenarios",
                    "--locked",
                    "--",
                    "--nocapture",
                    "--test-threads=1",
                    "api::",
                    "idle::",
                    "health_load::",
                    "scale::",
                    "large::",
                    "challenge::a_flood",
                    "attacks::",
                ]],
            )
        });
    println!();
    for figure in &run.figures {
        println!("{figure}");
    }
    Ok(run.summary(outcome))
}

/// Becomes a program of `tests/`, in release mode: so Ctrl-C reaches it alone, and its exit code is ours.
pub(crate) fn run_lab_program(name: &str, arguments: &[String]) -> Result<ExitCode> {
    let packages = ["--package", "sluice", "--package", "sluice-tests"];
    let build = [
        "build",
        "--release",
        "--locked",
        "--bin",
        "sluice",
        "--bin",
        name,
    ];
    run_cargo(&[&build[..], &packages].concat())?;
    let built = workspace().join("target/release");
    let program = built.join(name);
    let daemon = env::var_os("SLUICE_BIN").unwrap_or_else(|| built.join("sluice").into());
    let error = machine::command(&program.to_string_lossy())
        .env("SLUICE_BIN", daemon)
        .args(arguments)
        .exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// The root of the repository.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ is in the workspace")
}

/// The cargo that runs this task.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = env::var("CARGO").unwrap_or_else(|_unset| "cargo".into());
    let mut cargo = machine::command(&program);
    cargo
        .args(arguments)
        .current_dir(workspace())
        // Set by the cargo that runs this task. A build script of a dependency is run anew when it changes.
        .env_remove("CARGO_MANIFEST_DIR");
    cargo
}

/// What git says of this repository.
pub(crate) fn git(arguments: &[&str]) -> Result<String> {
    let folder = workspace()
        .to_str()
        .context("the path of the workspace is not UTF-8")?;
    // In a container, root often works on somebody else's clone.
    let trusted = format!("safe.directory={folder}");
    let here = ["-c", &trusted, "-C", folder];
    machine::output("git", &[&here, arguments].concat())
        .context("git is missing, or this is not a clone")
}

const BUILD_RELEASE: &[&str] = &["build", "--release", "--package", "sluice", "--locked"];

/// A thread for each scenario: who runs beside whom is for their turns to say, and all must be known to be waiting.
const LAB_THREADS: &str = "--test-threads=256";

/// The daemon, with the features of its dependencies that tests need. There are no examples; but asking for them has cargo
/// choose features as it does for tests, and so nothing is built twice.
pub(crate) const BUILD_DAEMON: &[&str] = &[
    "build",
    "--package",
    "sluice",
    "--package",
    "sluice-tests",
    "--bin",
    "sluice",
    "--examples",
    "--locked",
];

const UNITS: &[&str] = &["--lib", "--bins"];

/// Of the other tests beside the lab's; the rest loads programs into the kernel.
const NEED_NO_ROOT: &[&str] = &[
    "--test", "config", "--test", "docs", "--test", "grafana", "--test", "packet", "--test",
    "sketch",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Everything,
    NoLab,
}

fn checks(run: &mut Run, scope: Scope) -> Result<()> {
    run.cargo("format", &["fmt", "--all", "--check"])?;
    run.stage("licences", |_| licences::check())?;
    run.cargo(
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    if scope == Scope::Everything {
        // All at once keeps all CPUs busy.
        run.cargo(
            "build of all tests",
            &["test", "--workspace", "--no-run", "--locked"],
        )?;
    }
    let programs = match scope {
        Scope::Everything => [UNITS, &["--test", "*"]],
        Scope::NoLab => [UNITS, NEED_NO_ROOT],
    };
    let tests = [
        "test",
        "--workspace",
        "--exclude",
        "sluice-tests",
        "--locked",
        "--no-fail-fast",
    ];
    // Many beside each other: some compute, some wait.
    let tests = programs.map(|programs| [&tests, programs].concat());
    run.cargo_tests(
        "unit, property and command tests",
        &[("RUST_TEST_THREADS", "4")],
        &tests.each_ref().map(Vec::as_slice),
    )?;
    run.cargo(
        "documentation",
        // Examples as for `BUILD_DAEMON`: this shares what clippy checked.
        &[
            "doc",
            "--no-deps",
            "--workspace",
            "--lib",
            "--examples",
            "--locked",
        ],
    )?;
    run.cargo_test(
        "examples in the documentation",
        &["test", "--workspace", "--doc", "--locked", "--no-fail-fast"],
    )?;
    run.stage("reproducible kernel objects", |_| reproducible::check())?;
    run.stage("packages", |_| package::check())
}

fn lab(run: &mut Run, filter: Option<&str>) -> Result<()> {
    run.cargo("daemon for the lab", BUILD_DAEMON)?;
    let before = run.passed;
    let mut test = |name: &str, programs: &[&str], threads: Option<&str>| {
        let test = ["test", "--package", "sluice-tests", "--locked"];
        let mut arguments = [&test, programs, &["--no-fail-fast", "--"]].concat();
        arguments.extend(threads);
        arguments.extend(filter);
        run.cargo_test(name, &arguments)
    };
    test(
        "verdict table",
        &["--lib", "--bins", "--test", "verdicts"],
        None,
    )?;
    test("lab", &["--test", "scenarios"], Some(LAB_THREADS))?;
    match filter {
        Some(filter) if run.passed == before => bail!("no lab test has \"{filter}\" in its name"),
        None if run.passed == before => bail!("not a single lab test ran"),
        _ => Ok(()),
    }
}

/// What the stages of one run have added up to.
#[derive(Default)]
struct Run {
    passed: u64,
    failed: u64,
    ignored: u64,
    failed_tests: Vec<String>,
    /// What tests have measured.
    figures: Vec<String>,
}

impl Run {
    fn stage(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = work(self);
        println!(
            "=== {name}: {} in {:.1} s",
            if outcome.is_ok() { "ok" } else { "FAILED" },
            start.elapsed().as_secs_f64()
        );
        outcome.with_context(|| format!("stage \"{name}\""))
    }

    fn cargo(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        self.stage(name, |_| run_cargo(arguments))
    }

    /// Shows what the tests print while they run, and counts their results.
    fn cargo_test(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        self.cargo_tests(name, &[], &[arguments])
    }

    /// The same of several cargos beside each other, with variables of the environment.
    fn cargo_tests(
        &mut self,
        name: &str,
        variables: &[(&str, &str)],
        cargos: &[&[&str]],
    ) -> Result<()> {
        self.stage(name, |run| {
            let (lines, printed) = mpsc::channel();
            thread::scope(|scope| {
                let cargos: Vec<_> = cargos
                    .iter()
                    .map(|arguments| {
                        let lines = lines.clone();
                        scope.spawn(move || test_with(arguments, variables, &lines))
                    })
                    .collect();
                drop(lines);
                for line in printed {
                    std::io::stdout().write_all(&line)?;
                    run.count(String::from_utf8_lossy(&line).trim_end());
                }
                cargos
                    .into_iter()
                    .try_for_each(|it| it.join().expect("it does not panic"))
            })
        })
    }

    fn count(&mut self, line: &str) {
        // Without a line's end before it, the name of the test stands first.
        if let Some((_, figure)) = line.split_once("figure: ") {
            self.figures.push(figure.to_owned());
        }
        if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed_tests.push(test.to_owned());
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(number)), Some(what)) =
                (words.next().map(str::parse::<u64>), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn summary(mut self, outcome: Result<()>) -> ExitCode {
        println!();
        if let Err(error) = &outcome {
            println!("FAILED: {error:#}");
            for test in &self.failed_tests {
                println!("    {test}");
            }
            println!("No stage after this one ran.");
            // A stage without tests counts as one check.
            self.failed = self.failed.max(1);
        }
        if self.ignored > 0 {
            println!("{} ignored", self.ignored);
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if outcome.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs cargo, and sends what it prints, line by line.
fn test_with(
    arguments: &[&str],
    variables: &[(&str, &str)],
    lines: &mpsc::Sender<Vec<u8>>,
) -> Result<()> {
    let mut child = cargo(arguments)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut output = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        // Nobody reads on when the terminal is gone; the tests' outcome is wanted still.
        let _ = lines.send(mem::take(&mut line));
    }
    let status = child.wait()?;
    ensure!(
        status.success(),
        "`cargo {}`: {status}",
        arguments.join(" ")
    );
    Ok(())
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    let status = cargo(arguments)
        .env("RUSTDOCFLAGS", "-D warnings")
        .status()
        .context("cannot run cargo")?;
    if status.success() {
        Ok(())
    } else {
        Err(anyhow!("`cargo {}`: {status}", arguments.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_test_programs_add_up() {
        let mut run = Run::default();
        for line in [
            "running 3 tests",
            "test config::an_unknown_key_is_refused ... ok",
            "test flow::a_proven_flow_stays ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.30s",
            "test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.25s",
        ] {
            run.count(line);
        }
        run.count("figure: reload: 412 ms");
        assert_eq!((run.passed, run.failed, run.ignored), (42, 1, 2));
        assert_eq!(run.figures, ["reload: 412 ms"]);
        assert_eq!(run.failed_tests, ["flow::a_proven_flow_stays"]);
    }
}
