//! Follows the kernel's tables and publishes the next hop of every wanted address.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

use super::{
    Resolution,
    kernel::{Kernel, KernelError, Probe},
    tables::{Effect, NeighbourKey, Tables},
};

/// The addresses to resolve.
pub type Wanted = Arc<BTreeSet<IpAddr>>;
/// An entry for every wanted address, once it was looked up.
pub type Resolutions = Arc<BTreeMap<IpAddr, Resolution>>;

/// A task that keeps the next hops of the wanted addresses resolved and known. It ends when this is dropped, or when
/// nobody can want anything any more.
#[derive(Debug)]
pub struct Resolver {
    turns: Arc<AtomicU64>,
    resolutions: watch::Receiver<Resolutions>,
    task: JoinHandle<()>,
}

/// Events within this time are handled together: a link that goes down brings many.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// How often we look without an event.
const TICK: Duration = Duration::from_secs(5);
/// How often the loop comes round at least.
const TURN: Duration = Duration::from_millis(500);
/// How many routes are asked for at a tick, in turn; it is a safety net, since changes come as events.
const ROUTES_PER_TICK: usize = 256;
/// Neighbours that are to be asked for within this time are asked for together.
const PROBE_BATCH: Duration = Duration::from_millis(100);
/// Pause before a netlink socket is opened anew.
const REOPEN: Duration = Duration::from_secs(1);

impl Resolver {
    /// Starts the task. The netlink sockets are opened here, in the calling thread's network namespace.
    pub fn start(wanted: watch::Receiver<Wanted>) -> io::Result<Self> {
        let kernel = Kernel::open()?;
        let (publish, resolutions) = watch::channel(Resolutions::default());
        let state = State {
            wanted,
            publish,
            tables: Tables::default(),
            probed: HashMap::new(),
            last_asked: None,
            turns: Arc::default(),
        };
        Ok(Self {
            turns: state.turns.clone(),
            resolutions,
            task: tokio::spawn(state.run(kernel)),
        })
    }

    /// Grows all the time, unless the task hangs.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The latest resolutions. Marked as changed only when one of them differs.
    pub fn resolutions(&self) -> watch::Receiver<Resolutions> {
        self.resolutions.clone()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct State {
    wanted: watch::Receiver<Wanted>,
    publish: watch::Sender<Resolutions>,
    tables: Tables,
    /// When the kernel was last asked for a neighbour.
    probed: HashMap<NeighbourKey, Instant>,
    /// Where the next tick's turn starts.
    last_asked: Option<IpAddr>,
    /// How often its loop came round.
    turns: Arc<AtomicU64>,
}

/// What to do when the debounce time is over.
#[derive(Debug, Default, PartialEq, Eq)]
struct Todo {
    read_links: bool,
    read_neighbours: bool,
    all_routes: bool,
    routes: BTreeSet<IpAddr>,
}

impl State {
    async fn run(mut self, mut kernel: Kernel) {
        loop {
            match self.follow(&mut kernel).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "lost sight of routes and neighbours; reading them anew");
                }
            }
            kernel = loop {
                self.turns.fetch_add(1, Ordering::Relaxed);
                sleep(REOPEN).await;
                match Kernel::open() {
                    Ok(kernel) => break kernel,
                    Err(error) => {
                        tracing::warn!(%error, "cannot open a netlink socket, so next hops stay as they were; it is tried again: are there too many open files?");
                    }
                }
            };
        }
    }

    /// Ends well when the wish list is closed.
    async fn follow(&mut self, kernel: &mut Kernel) -> Result<(), KernelError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = interval(TURN);
        let mut todo = Todo::everything();
        let mut due = Some(Instant::now());
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            let work = tokio::select! {
                event = kernel.next_event() => {
                    let effect = self.tables.apply(event?);
                    todo.add(effect, &self.wanted.borrow())
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    true
                }
                _ = turn.tick() => false,
                _ = tick.tick() => {
                    todo.read_neighbours = true;
                    self.take_turns(&mut todo.routes);
                    true
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = self.work(kernel, std::mem::take(&mut todo)).await?;
                    false
                }
            };
            if work {
                let soon = Instant::now() + DEBOUNCE;
                due = Some(due.map_or(soon, |due| due.min(soon)));
            }
        }
    }

    /// Returns when there is more to do if nothing happens before.
    async fn work(&mut self, kernel: &Kernel, todo: Todo) -> Result<Option<Instant>, KernelError> {
        let wanted = self.wanted.borrow_and_update().clone();
        self.tables.settle();
        if todo.read_links {
            self.tables.replace_links(kernel.links().await?);
        }
        let unknown = self.tables.want(&wanted);
        let routes: Vec<IpAddr> = if todo.all_routes {
            wanted.iter().copied().collect()
        } else {
            todo.routes
                .intersection(&wanted)
                .copied()
                .chain(unknown)
                .collect()
        };
        for address in routes {
            let route = kernel.route(address).await?;
            self.tables.put_route(address, route);
        }
        if todo.read_neighbours {
            self.tables.replace_neighbours(kernel.neighbours().await?);
        }
        // Before the requests for neighbours, so that they delay nothing, and after them for what they tell.
        self.publish(&wanted);
        let again = self.probe(kernel).await?;
        self.publish(&wanted);
        Ok(again)
    }

    fn publish(&self, wanted: &Wanted) {
        let now: BTreeMap<_, _> = wanted
            .iter()
            .map(|address| (*address, self.tables.resolve(*address)))
            .collect();
        self.publish.send_if_modified(|published| {
            let differs = **published != now;
            if differs {
                *published = Arc::new(now);
            }
            differs
        });
    }

    /// Asks the kernel for neighbours that it has to resolve or verify. Returns when some must be asked for again.
    async fn probe(&mut self, kernel: &Kernel) -> Result<Option<Instant>, KernelError> {
        let needed = self.tables.needed_neighbours();
        self.probed.retain(|key, _| needed.contains(key));
        let mut again = None;
        for key in needed {
            let Some(pause) = self.tables.probe_after(key) else {
                continue;
            };
            let now = Instant::now();
            if let Some(ripe) = self
                .probed
                .get(&key)
                .map(|last| *last + pause)
                .filter(|ripe| *ripe > now)
            {
                let ripe = ripe.max(now + PROBE_BATCH);
                again = Some(again.map_or(ripe, |again: Instant| again.min(ripe)));
                continue;
            }
            self.probed.insert(key, now);
            match kernel.probe(key).await? {
                Probe::Sent => self.tables.asked(key),
                Probe::TableFull => self.tables.table_full(key),
            }
        }
        Ok(again)
    }

    /// Adds the next addresses in turn.
    fn take_turns(&mut self, routes: &mut BTreeSet<IpAddr>) {
        let wanted = self.wanted.borrow();
        let start = self.last_asked.map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<IpAddr> = wanted
            .range((start, Bound::Unbounded))
            .take(ROUTES_PER_TICK)
            .copied()
            .collect();
        self.last_asked = turn
            .last()
            .filter(|_| turn.len() == ROUTES_PER_TICK)
            .copied();
        routes.extend(turn);
    }
}

impl Todo {
    fn everything() -> Self {
        Self {
            read_links: true,
            read_neighbours: true,
            all_routes: true,
            routes: BTreeSet::new(),
        }
    }

    /// True if there is something to do.
    fn add(&mut self, effect: Effect, wanted: &BTreeSet<IpAddr>) -> bool {
        match effect {
            Effect::Nothing => return false,
            Effect::NextHops => {}
            Effect::RoutesWithin(prefix) => {
                let before = self.routes.len();
                self.routes.extend(within(wanted, prefix));
                return self.routes.len() > before;
            }
            Effect::AllRoutes => self.all_routes = true,
            Effect::Everything => *self = Self::everything(),
        }
        true
    }
}

/// The addresses in a prefix. On a host with a full table, most route events concern none.
fn within(wanted: &BTreeSet<IpAddr>, prefix: IpNet) -> impl Iterator<Item = IpAddr> {
    let (first, last) = match prefix {
        IpNet::V4(net) => (IpAddr::V4(net.network()), IpAddr::V4(net.broadcast())),
        IpNet::V6(net) => (IpAddr::V6(net.network()), IpAddr::V6(net.broadcast())),
    };
    wanted.range(first..=last).copied()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_route_event_concerns_the_addresses_in_its_prefix() {
        let wanted = addresses([
            "10.0.0.1",
            "10.0.1.0",
            "10.0.1.255",
            "10.0.2.0",
            "2001:db8::1",
            "2001:db9::1",
        ]);
        let mut todo = Todo::default();
        assert!(todo.add(
            Effect::RoutesWithin("10.0.1.0/24".parse().unwrap()),
            &wanted
        ));
        assert_eq!(todo.routes, addresses(["10.0.1.0", "10.0.1.255"]));
        assert!(!todo.add(
            Effect::RoutesWithin("192.0.2.0/24".parse().unwrap()),
            &wanted
        ));
        assert!(todo.add(
            Effect::RoutesWithin("2001:db8::/32".parse().unwrap()),
            &wanted
        ));
        assert_eq!(
            todo.routes,
            addresses(["10.0.1.0", "10.0.1.255", "2001:db8::1"])
        );
        assert!(todo.add(Effect::RoutesWithin("0.0.0.0/0".parse().unwrap()), &wanted));
        assert_eq!(todo.routes.len(), 5);
        assert!(!todo.all_routes);
    }

    #[test]
    fn a_neighbour_event_asks_for_no_route() {
        let mut todo = Todo::default();
        assert!(todo.add(Effect::NextHops, &addresses(["10.0.0.1"])));
        assert_eq!(todo, Todo::default());
    }

    #[tokio::test]
    async fn ticks_ask_for_all_routes_in_turn() {
        let wanted: BTreeSet<IpAddr> = (0..600)
            .map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)))
            .collect();
        let (_sender, receiver) = watch::channel(Arc::new(wanted.clone()));
        let mut state = State {
            wanted: receiver,
            publish: watch::channel(Resolutions::default()).0,
            tables: Tables::default(),
            probed: HashMap::new(),
            last_asked: None,
            turns: Arc::default(),
        };
        let mut asked = BTreeSet::new();
        for _ in 0..3 {
            let mut turn = BTreeSet::new();
            state.take_turns(&mut turn);
            assert!(turn.len() <= ROUTES_PER_TICK);
            asked.append(&mut turn);
        }
        assert_eq!(asked, wanted);
        state.take_turns(&mut asked);
        assert_eq!(
            state.last_asked,
            Some(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_00ff))),
            "and starts again"
        );
    }
}
