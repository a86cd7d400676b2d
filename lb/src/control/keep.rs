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
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        config,
        control::{Refused, Supervisor, fake::Fake},
        limits::Precondition,
        store::{Directory, Store, Writer},
    };

    #[tokio::test]
    async fn a_loop_that_panics_is_replaced_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sluice.toml");
        std::fs::write(
            &file,
            "[pop]\nname = \"ams\"\nid = 1\n[dataplane]\ninterfaces = [\"lo\"]\n",
        )
        .unwrap();
        let plane = Fake::default();
        let open = {
            let (plane, directory) = (plane.clone(), dir.path().to_owned());
            move |config: Arc<Config>| {
                let store = Store::open(Directory::new(&directory));
                let (store, contents, _) = store.map_err(|error| error.to_string())?;
                Ok(Start {
                    plane: plane.clone(),
                    config: Config::clone(&config),
                    config_file: file.clone(),
                    contents,
                    writer: Writer::start(store).map_err(|error| error.to_string())?,
                    adopted: true,
                    warnings: Vec::new(),
                })
            }
        };
        let config = config::load(&dir.path().join("sluice.toml")).unwrap();
        let sources = Sources {
            health: watch::channel(Arc::default()).1,
            targets: watch::channel(Arc::default()).0,
            resolutions: watch::channel(Arc::default()).1,
            wanted: watch::channel(Arc::default()).0,
        };
        let (control, handle) = Control::new(
            open(Arc::new(config)).unwrap(),
            sources.clone(),
            Supervisor::default(),
        );
        tokio::spawn(keep(control, handle.clone(), sources, open));
        let spec = serde_json::from_str(r#"{"prefix": "198.51.100.0/24", "pps": 10}"#).unwrap();
        let (set, _) = handle
            .set_limit(spec, Precondition::default())
            .await
            .unwrap();

        plane.panic_next();
        assert!(matches!(handle.figures().await, Err(Refused::Ended)));
        for _ in 0..100 {
            if handle.figures().await.is_ok() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        assert!(
            handle.limit(set.record.id).await.is_ok(),
            "it is in the store"
        );
        let task = handle.supervisor().tasks().pop().unwrap();
        assert_eq!((task.name, task.restarts, task.running), (NAME, 1, true));
        assert!(task.error.unwrap().contains("a bug"));
    }
}
