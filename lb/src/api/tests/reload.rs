//! Reloads and plans whose files take their time: nobody else waits for them.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    thread,
    time::Instant,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::time::sleep;

use super::*;
use crate::{dataplane::Purpose, sources::writer::Writer as Database};

const LIMIT: &str = r#"{ "prefix": "198.51.100.0/24", "pps": 10 }"#;
const RELOAD: &str = "/v1/reload";

/// A file that is read to its end when the test lets it.
struct Slow {
    path: PathBuf,
}

impl Slow {
    fn new(path: PathBuf) -> Self {
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let slow = Self { path };
        let path = slow.path.clone();
        // A reader that blocks the test itself gets nothing in the end, and the test fails.
        thread::spawn(move || {
            while path.exists() {
                thread::sleep(Duration::from_secs(5));
                _ = open(&path);
            }
        });
        slow
    }

    /// Waits until somebody reads it; what is written here is what they read, until this is dropped.
    async fn reader(&self) -> File {
        for _ in 0..1_000 {
            match open(&self.path) {
                Ok(file) => return file,
                Err(_nobody_reads) => sleep(Duration::from_millis(2)).await,
            }
        }
        panic!("nobody reads {}", self.path.display());
    }
}

fn open(path: &std::path::Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    options.open(path)
}

/// A world whose config file names a list that is slow.
async fn with_slow_list() -> (World, Slow) {
    let world = World::ready().await;
    let list = Slow::new(world.dir.path().join("list"));
    let path = &list.path;
    let config = format!("{CONFIG}\n[[deny]]\nname = \"list\"\nfile = {path:?}\n");
    fs::write(world.config_file(), config).unwrap();
    (world, list)
}

/// Waits until a list is.
async fn in_force(world: &World) {
    for _ in 0..1_000 {
        if !world.plane.sources().is_empty() {
            return;
        }
        sleep(Duration::from_millis(2)).await;
    }
    panic!("no list is in force");
}

#[tokio::test]
async fn while_a_list_is_read_limits_are_set_and_shown() {
    let (world, list) = with_slow_list().await;
    for (method, path, status) in [(Method::GET, "/v1/plan", 200), (Method::POST, RELOAD, 204)] {
        let others = async {
            let mut file = list.reader().await;
            let begun = Instant::now();
            let set = world.send(Method::POST, "/v1/limits", LIMIT).await;
            let took = begun.elapsed();
            println!("a limit while {path} reads: {took:?}");
            assert!(set.status < 300, "{}", set.text());
            assert!(took < Duration::from_millis(500), "{took:?}");
            assert_eq!(world.plane.limits().len(), 1);
            assert_eq!(world.get("/v1/limits/1").await.status, 200);
            assert_eq!(world.plane.sources(), []);
            file.write_all(b"192.0.2.0/24\n").unwrap();
        };
        let (answer, ()) = tokio::join!(world.send(method, path, ""), others);
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    assert_eq!(world.plane.sources(), [(63, Purpose::Deny, 1)]);
}

#[tokio::test]
async fn a_reload_reads_when_the_one_before_it_is_in_force() {
    let (world, list) = with_slow_list().await;
    let reload = || world.send(Method::POST, RELOAD, "");
    let files = async {
        let mut file = list.reader().await;
        // Time enough for the other one to read as well, if it did not wait: then it would find the end at once.
        sleep(Duration::from_millis(200)).await;
        file.write_all(b"192.0.2.0/24\n").unwrap();
        drop(file);
        in_force(&world).await;
        let mut file = list.reader().await;
        assert_eq!(world.plane.sources(), [(63, Purpose::Deny, 1)]);
        file.write_all(b"192.0.2.0/24\n198.51.100.0/24\n").unwrap();
    };
    let (first, second, ()) = tokio::join!(reload(), reload(), files);
    assert_eq!((first.status, second.status), (204, 204));
    assert_eq!(world.plane.sources(), [(63, Purpose::Deny, 2)]);
}

#[tokio::test]
async fn a_reload_is_done_also_when_who_asked_is_gone() {
    let (world, list) = with_slow_list().await;
    let asked = tokio::spawn(exchange(
        world.connect().await,
        Request::builder().method(Method::POST).uri(RELOAD),
        "",
    ));
    let mut file = list.reader().await;
    asked.abort();
    assert!(asked.await.is_err());
    // It has noticed by now.
    assert_eq!(world.get("/v1/status").await.status, 200);
    file.write_all(b"192.0.2.0/24\n").unwrap();
    drop(file);
    in_force(&world).await;
}

#[tokio::test]
async fn a_database_is_read_once_for_all_sets_of_a_config() {
    let world = World::ready().await;
    let file = Slow::new(world.dir.path().join("geo.mmdb"));
    let mut database = Database::new("Test-Country", 28, 6);
    for (code, network) in [("KP", "198.51.100.0/24"), ("TV", "192.0.2.0/24")] {
        let record = database.country(code);
        database.put(network.parse().unwrap(), record);
    }
    let path = &file.path;
    let config = format!(
        "{CONFIG}\n[geo]\ndatabases = [{path:?}]\n\
         [[deny]]\nname = \"kp\"\ncountries = [\"KP\"]\n\
         [[allow]]\nname = \"tv\"\ncountries = [\"TV\"]\n"
    );
    fs::write(world.config_file(), config).unwrap();
    let once = async {
        let mut file = file.reader().await;
        file.write_all(&database.bytes()).unwrap();
    };
    let (answer, ()) = tokio::join!(world.send(Method::POST, RELOAD, ""), once);
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(world.plane.sources().len(), 2);
}
