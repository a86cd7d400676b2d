//! The checker against real listeners on loopback.
use std::net::TcpStream;

use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

use super::*;

pub(super) fn target(pool: &str, last: u8, check: Check) -> Target {
    let (interval, timeout) = (Duration::from_millis(20), Duration::from_secs(2));
    let health = Health {
        check,
        interval,
        fast_interval: interval,
        jitter: Duration::ZERO,
        timeout,
        rise: 2,
        fall: 2,
        via_tunnel: false,
    };
    Target {
        pool: pool.into(),
        address: IpAddr::from([127, 0, 0, last]),
        health,
        via: None,
    }
}

struct Running {
    targets: watch::Sender<Arc<Vec<Target>>>,
    transitions: mpsc::Receiver<Transition>,
    checker: Checker,
}

fn start(targets: Vec<Target>) -> Running {
    let (sender, receiver) = watch::channel(Arc::new(targets));
    let (report, transitions) = mpsc::channel(16);
    Running {
        targets: sender,
        transitions,
        checker: Checker::start(receiver, report, Snapshot::default()).unwrap(),
    }
}

impl Running {
    async fn next(&mut self) -> Transition {
        timeout(Duration::from_secs(10), self.transitions.recv())
            .await
            .unwrap()
            .unwrap()
    }

    async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(200), self.transitions.recv())
            .await
            .is_err()
    }

    fn status(&self, target: &Target) -> Option<Status> {
        self.checker
            .snapshot()
            .borrow()
            .get(&(target.pool.clone(), target.address))
            .cloned()
    }
}

async fn listen(address: IpAddr, port: u16) -> TcpListener {
    TcpListener::bind(SocketAddr::new(address, port))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_backend_goes_up_down_and_up_again() {
    let listener = listen(IpAddr::from([127, 0, 0, 2]), 0).await;
    let port = listener.local_addr().unwrap().port();
    let web = target("web", 2, Check::Tcp { port });
    let mut running = start(vec![web.clone()]);
    let up = running.next().await;
    assert_eq!(
        (up.pool.as_str(), up.address, up.state, up.error),
        ("web", web.address, State::Up, None)
    );

    drop(listener);
    let down = running.next().await;
    assert_eq!(
        (down.state, down.error.as_deref()),
        (State::Down, Some("connect: connection refused"))
    );
    running
        .checker
        .snapshot()
        .wait_for(|all| all.values().all(|status| status.state == State::Down))
        .await
        .unwrap();
    let status = running.status(&web).unwrap();
    assert_eq!((status.error, status.since), (down.error, down.at));

    let _listener = listen(web.address, port).await;
    assert_eq!(running.next().await.state, State::Up);
}

#[tokio::test]
async fn without_a_check_a_backend_is_up_at_once() {
    let mut running = start(vec![target("web", 1, Check::None)]);
    assert_eq!(running.next().await.state, State::Up);
    assert!(running.is_quiet().await);
}

#[tokio::test]
async fn a_backend_keeps_its_state_when_the_targets_change() {
    let listener = listen(IpAddr::from([127, 0, 0, 3]), 0).await;
    let port = listener.local_addr().unwrap().port();
    let web = target("web", 3, Check::Tcp { port });
    let mut running = start(vec![web.clone()]);
    let up = running.next().await;

    let other = target("other", 9, Check::None);
    running
        .targets
        .send(Arc::new(vec![other.clone(), web.clone()]))
        .unwrap();
    assert_eq!(running.next().await.pool, "other");
    assert!(
        running.is_quiet().await,
        "no second transition of what was up"
    );
    assert_eq!(running.status(&web).unwrap().since, up.at);

    let mut slower = web.clone();
    slower.health.interval = Duration::from_millis(30);
    running
        .targets
        .send(Arc::new(vec![slower.clone()]))
        .unwrap();
    assert!(running.is_quiet().await);
    assert_eq!(
        running.status(&slower).unwrap().state,
        State::Up,
        "the new check was not failed"
    );
    assert_eq!(running.status(&other), None);

    drop(listener);
    assert_eq!(
        running.next().await.state,
        State::Down,
        "the new check is made"
    );
}

#[tokio::test]
async fn checks_stop_with_the_target_and_with_the_checker() {
    let listener = listen(IpAddr::from([127, 0, 0, 4]), 0).await;
    let web = target(
        "web",
        4,
        Check::Tcp {
            port: listener.local_addr().unwrap().port(),
        },
    );
    let mut running = start(vec![web.clone()]);
    assert_eq!(running.next().await.state, State::Up);
    let load = running.checker.load.clone();
    running.targets.send(Arc::new(vec![])).unwrap();
    running
        .checker
        .snapshot()
        .wait_for(|all| all.is_empty())
        .await
        .unwrap();
    assert!(stand_still(&load).await);

    running.targets.send(Arc::new(vec![web])).unwrap();
    assert_eq!(running.next().await.state, State::Up);
    assert!(!stand_still(&load).await);
    drop(running.checker);
    assert_eq!(running.transitions.recv().await, None);
    assert!(stand_still(&load).await);
}

/// No check begins for ten intervals.
async fn stand_still(load: &Load) -> bool {
    let checks = load.checks();
    sleep(Duration::from_millis(200)).await;
    load.checks() == checks
}

#[tokio::test]
async fn the_servers_program_does_not_see_a_tcp_check() {
    let listener = listen(IpAddr::from([127, 0, 0, 6]), 0).await;
    let port = listener.local_addr().unwrap().port();
    let mut running = start(vec![target("web", 6, Check::Tcp { port })]);
    assert_eq!(running.next().await.state, State::Up);
    let accepted = timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(accepted.is_err(), "{accepted:?}");
}

#[tokio::test]
async fn a_check_that_nobody_answers_fails_when_its_time_is_over() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let mut web = target("web", 7, Check::None);
    socket
        .bind(&SocketAddr::new(web.address, 0).into())
        .unwrap();
    // There is room for one connection, and then SYNs are dropped.
    socket.listen(0).unwrap();
    let at = socket.local_addr().unwrap().as_socket().unwrap();
    let _taken = TcpStream::connect(at).unwrap();
    web.health.check = Check::Tcp { port: at.port() };
    (web.health.timeout, web.health.fall) = (Duration::from_millis(300), 1);
    let began = Instant::now();
    let down = start(vec![web]).next().await;
    assert_eq!(
        (down.state, down.error.as_deref()),
        (State::Down, Some("timed out after 300ms"))
    );
    let took = began.elapsed();
    let timeout = Duration::from_millis(300);
    assert!((timeout..timeout * 2).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_new_checker_goes_on_from_what_the_old_one_knew() {
    let listener = listen(IpAddr::from([127, 0, 0, 5]), 0).await;
    let port = listener.local_addr().unwrap().port();
    let web = target("web", 5, Check::Tcp { port });
    let since = SystemTime::UNIX_EPOCH;
    let known = BTreeMap::from([(
        ("web".to_owned(), web.address),
        Status::new(State::Up, since),
    )]);
    let (_targets, receiver) = watch::channel(Arc::new(vec![web.clone()]));
    let (report, mut transitions) = mpsc::channel(16);
    let checker = Checker::start(receiver, report, Arc::new(known)).unwrap();
    let quiet = timeout(Duration::from_millis(200), transitions.recv()).await;
    assert!(quiet.is_err(), "it was up, and is: {quiet:?}");
    let snapshot = checker.snapshot().borrow().clone();
    assert_eq!(snapshot[&("web".to_owned(), web.address)].since, since);
    assert!(checker.load().checks() > 2);
    drop(listener);
    let down = timeout(Duration::from_secs(10), transitions.recv()).await;
    assert_eq!(down.unwrap().unwrap().state, State::Down);
}

#[test]
fn a_status_tells_when_its_backend_went_and_came() {
    let now = Instant::now();
    let mut status = Status::unknown();
    status.enter(State::Up, SystemTime::now(), now);
    assert_eq!((status.lost, status.returned), (None, None));
    status.enter(State::Down, SystemTime::now(), now);
    assert_eq!((status.lost, status.returned), (Some(now), None));
    let later = now + Duration::from_secs(1);
    status.enter(State::Up, SystemTime::now(), later);
    assert_eq!((status.lost, status.returned), (Some(now), Some(later)));
}
