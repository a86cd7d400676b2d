//! Keeps the control loop running: what it knew is in the maps and in the store, from where a new one takes it.

use std::sync::Arc;

use tokio::time::sleep;

use super::{Control, Dataplane, Handle, Sources, Start, control_loop::Ended};
use crate::config::Config;

const NAME: &str = "control loop";

/// Runs a loop, and another one in its place if it panics or hangs. `reopen` gives what the next one starts from; the config is
/// the one that was in force. Meanwhile the data plane forwards as it did, and whoever asks is told to try again.
pub(super) async fn keep<P: Dataplane + Send + 'static>(
    mut control: Control<P>,
    handle: Handle,
    sources: Sources,
    mut reopen: impl FnMut(Arc<Config>) -> Result<Start<P>, String>,
) {
    let supervisor = handle.supervisor().clone();
    let mut back_off = supervisor.back_off();
    loop {
        let heart = supervisor.heart();
        let task = control.run(heart.clone());
        let ended = supervisor.watch(NAME, heart, task).await;
        let mut error = match ended {
            Ok(Ended::Unwanted) => return,
            Ok(Ended::StoreGone) => "the thread that writes to the disk ended".to_owned(),
            Err(error) => error,
        };
        control = loop {
            let wait = back_off.after_end();
            supervisor.ended(NAME, &error, wait);
            sleep(wait).await;
            match reopen(handle.view().config.clone()) {
                Ok(start) => break Control::resume(start, sources.clone(), &handle),
                Err(why) => error = format!("cannot take up the data plane again: {why}"),
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        io,
        path::{Path, PathBuf},
        time::Duration,
    };

    use tempfile::TempDir;

    use super::*;
    use crate::{
        book::Precondition,
        config,
        control::{
            Refused, Supervisor, TaskStatus,
            fake::{self, CONFIG, Fake},
        },
        dataplane::Ordered,
        desired::{Tightened, Tightening},
        store::{Allocated, Directory, Medium, Store, Writer, shaky::Shaky},
    };

    /// What loops start from.
    struct World {
        plane: Fake,
        config: Arc<Config>,
        dir: TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("sluice.toml");
            std::fs::write(&file, CONFIG).unwrap();
            Self {
                plane: Fake::default(),
                config: Arc::new(config::load(&file).unwrap()),
                dir,
            }
        }

        fn directory(&self) -> Directory {
            Directory::new(self.dir.path())
        }

        /// A loop on this medium, and in its place others on the directory.
        fn start(&self, medium: impl Medium, supervisor: Supervisor) -> Handle {
            let (sources, ..) = fake::sources();
            let start = open(medium, &self.plane, &self.config).unwrap();
            let (control, handle) = Control::new(start, sources.clone(), supervisor);
            let (plane, directory) = (self.plane.clone(), self.dir.path().to_owned());
            let reopen =
                move |config: Arc<Config>| open(Directory::new(&directory), &plane, &config);
            tokio::spawn(keep(control, handle.clone(), sources, reopen));
            handle
        }
    }

    fn open(medium: impl Medium, plane: &Fake, config: &Config) -> Result<Start<Fake>, String> {
        let (store, contents, _) = Store::open(medium).map_err(|error| error.to_string())?;
        Ok(Start {
            plane: plane.clone(),
            config: config.clone(),
            config_file: "sluice.toml".into(),
            contents,
            writer: Writer::start(store).map_err(|error| error.to_string())?,
            adopted: true,
            warnings: Vec::new(),
        })
    }

    async fn restarted(handle: &Handle) -> TaskStatus {
        let task = || {
            let task = handle.supervisor().tasks().pop();
            task.filter(|task| task.running && task.restarts > 0)
        };
        until(|| task().is_some()).await;
        task().unwrap()
    }

    async fn until(is: impl Fn() -> bool) {
        for _ in 0..200 {
            if is() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("not within 10 s");
    }

    #[tokio::test]
    async fn a_loop_that_panics_is_replaced_and_nothing_is_lost() {
        let world = World::new();
        let handle = world.start(world.directory(), Supervisor::default());
        let spec = serde_json::from_str(r#"{"prefix": "198.51.100.0/24", "pps": 10}"#).unwrap();
        let (set, _) = handle
            .set_limit(spec, Precondition::default())
            .await
            .unwrap();

        world.plane.panic_next();
        assert!(matches!(handle.figures().await, Err(Refused::Ended)));
        let task = restarted(&handle).await;
        assert_eq!((task.name, task.restarts), (NAME, 1));
        assert!(task.error.unwrap().contains("a bug"));
        assert!(
            handle.limit(set.record.id).await.is_ok(),
            "it is in the store"
        );
    }

    #[tokio::test]
    async fn what_detection_wants_outlives_a_loop() {
        let world = World::new();
        let handle = world.start(world.directory(), Supervisor::hasty());
        let is = async |ordered| {
            let held = || world.plane.held().vips.remove("site");
            until(|| held().is_some_and(|vip| vip.ordered == ordered)).await;
        };
        let challenge = Tightening {
            challenge: true,
            ..Tightening::default()
        };
        let challenge = Tightened::from([("site".to_owned(), challenge)]);
        handle.tighten(challenge).await.unwrap();
        is(Ordered::Challenge).await;

        world.plane.panic_next();
        assert!(matches!(handle.figures().await, Err(Refused::Ended)));
        let before = handle.view().desired.clone();
        until(|| !Arc::ptr_eq(&before, &handle.view().desired)).await;
        is(Ordered::Challenge).await;

        world.plane.panic_next();
        assert!(matches!(handle.figures().await, Err(Refused::Ended)));
        let calm = handle.tighten(Tightened::new()).await;
        assert!(matches!(calm, Err(Refused::Ended)), "none runs: {calm:?}");
        is(Ordered::Nothing).await;
    }

    /// Cannot be begun, and whoever tries again finds a bug.
    #[derive(Default)]
    struct Broken {
        is_known: Cell<bool>,
    }

    impl Medium for Broken {
        type Backend = Allocated;

        fn path(&self) -> &Path {
            assert!(!self.is_known.replace(true), "a bug");
            Path::new("/broken")
        }

        fn exists(&self) -> io::Result<bool> {
            Ok(false)
        }

        fn open(&self) -> io::Result<Allocated> {
            unreachable!("nothing was written")
        }

        fn create(&self) -> io::Result<Allocated> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn publish(&self) -> io::Result<()> {
            unreachable!("nothing was created")
        }

        fn set_aside(&self) -> io::Result<PathBuf> {
            unreachable!("nothing was written")
        }

        fn copy_aside(&self) -> io::Result<PathBuf> {
            unreachable!("nothing was written")
        }
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_told_of() {
        let world = World::new();
        let disk = Shaky::default();
        let handle = world.start(disk.clone(), Supervisor::hasty());
        let spec = serde_json::from_str(r#"{"prefix": "198.51.100.0/24", "pps": 10}"#).unwrap();
        let is_told = || {
            let told = &handle.view().warnings;
            told.iter().any(|it| it.contains("does not answer"))
        };
        let hung = disk.hang();
        let set = {
            let handle = handle.clone();
            tokio::spawn(async move { handle.set_limit(spec, Precondition::default()).await })
        };
        until(is_told).await;
        assert!(handle.figures().await.is_ok(), "others are answered");
        assert!(!set.is_finished());
        drop(hung);
        assert!(set.await.unwrap().is_ok());
        until(|| !is_told()).await;
    }

    #[tokio::test]
    async fn a_loop_whose_store_is_gone_is_replaced_by_one_that_takes_changes() {
        let world = World::new();
        let handle = world.start(Broken::default(), Supervisor::hasty());
        let task = restarted(&handle).await;
        assert_eq!((task.name, task.restarts), (NAME, 1));
        assert_eq!(
            task.error.as_deref(),
            Some("the thread that writes to the disk ended")
        );
        let spec = serde_json::from_str(r#"{"prefix": "198.51.100.0/24", "pps": 10}"#).unwrap();
        let set = handle.set_limit(spec, Precondition::default()).await;
        assert!(set.is_ok());
    }
}
