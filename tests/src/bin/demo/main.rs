//! A demo to watch: good traffic and a flood through a lab's load balancer, while it is changed and killed.

mod acts;
mod keep;
mod meter;
mod screen;
mod summary;
mod traffic;

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, value_parser};
use nix::unistd::Uid;
use sluice_tests::{Lab, remove_stale_labs};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{acts::Stage, screen::Screen};

/// Balances real traffic in network namespaces, floods it, changes it, kills the daemon, and says which promises held
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// About how many seconds it lasts
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u32).range(15..=3600))]
    seconds: u32,
    /// Leave the lab up afterwards until Ctrl-C, and say how to play with it
    #[arg(long)]
    keep: bool,
    /// Only remove what a demo or test that was killed has left
    #[arg(long, conflicts_with_all = ["seconds", "keep"])]
    clean: bool,
}

/// Set once the demo was asked to end.
type Stop = Arc<AtomicBool>;

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let stop = Stop::default();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| run(&arguments, &stop)));
    match outcome {
        _ if stop.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED),
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(arguments: &Arguments, stop: &Stop) -> Result<ExitCode> {
    ensure!(
        Uid::effective().is_root(),
        "the demo builds network namespaces: run it as root"
    );
    if arguments.clean {
        return clean();
    }
    stop_on_signals(stop).context("cannot wait for signals")?;
    println!(
        "setting up a lab: a router, a load balancer, backends, clients (after any other lab that floods has ended)"
    );
    let lab = Lab::new()
        .alone()
        .backends(["b1", "b2", "b3", acts::ADDED])
        .client(&acts::GOOD_CLIENTS)
        .config(|config| {
            let mut config = config.without(acts::ADDED);
            // For more flows than a flood makes until it is limited: a handshake that finds no room follows the table of
            // before for some seconds, also to a backend that is drained.
            config.flows = 1 << 21;
            config
        })
        .start();
    let stage = Stage::new(
        &lab,
        Screen::new(arguments.seconds),
        stop,
        arguments.seconds,
    )?;
    let promises = stage.play()?;
    let kept = summary::print(&promises);
    if arguments.keep {
        keep::print(&lab)?;
        while !stop.swap(false, Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(100));
        }
        println!("removing the lab");
    }
    Ok(if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Sets `stop` at the first signal, so that the lab is dropped; a second one ends the process as it is, should that hang.
fn stop_on_signals(stop: &Stop) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let listen = |kind| {
        let _guard = runtime.enter();
        signal(kind)
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let stopping = stop.clone();
    thread::spawn(move || {
        loop {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => (),
                    _ = terminate.recv() => (),
                    _ = hangup.recv() => (),
                }
            });
            if stopping.swap(true, Ordering::Relaxed) {
                process::exit(INTERRUPTED.into());
            }
        }
    });

    // Ctrl-C reaches the daemon and the command line too, and what waits for them panics: no news to who pressed it.
    let (stopping, say) = (stop.clone(), panic::take_hook());
    panic::set_hook(Box::new(move |panic| {
        if !stopping.load(Ordering::Relaxed) {
            say(panic);
        }
    }));
    Ok(())
}

fn clean() -> Result<ExitCode> {
    remove_stale_labs();
    let left: Vec<String> = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("sluice-lab-") && name.ends_with("-router"))
        .collect();
    if left.is_empty() {
        println!("nothing of a lab is left");
        return Ok(ExitCode::SUCCESS);
    }
    for router in left {
        let pid = router.split('-').nth(2).unwrap_or_default();
        println!("the lab of process {pid} still runs; `kill {pid}` ends it and removes its lab");
    }
    Ok(ExitCode::FAILURE)
}
