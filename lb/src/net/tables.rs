//! Our copy of the kernel's links, neighbours and routes, and the next hop that follows from it. No input or output.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

use super::{NextHop, Reason, Resolution, Station, kernel::Event, link::Interface};

#[derive(Debug, Default)]
pub(super) struct Tables {
    links: HashMap<u32, Interface>,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    /// One entry for each wanted address that the kernel was asked about.
    routes: BTreeMap<IpAddr, Route>,
}

/// A route's next hop and the interface it is on: what the kernel's neighbour table is keyed by.
pub(super) type NeighbourKey = (u32, IpAddr);

/// What the kernel said about one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) freshness: Freshness,
    /// Kept while an entry is asked for anew, or was dropped to make room: until the kernel knows better, the last
    /// answer is the best. A failure that lasts takes it away.
    pub(super) mac: Option<[u8; 6]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Set by the operator, or on a link that needs no resolution.
    Permanent,
    /// Confirmed lately, or being confirmed now.
    Fresh,
    /// Good, but nobody checked for a while.
    Stale,
    /// Asked for, no answer yet.
    Asking,
    /// The kernel has no entry.
    Gone,
    /// Asked for, nobody answered.
    Failed,
    /// The kernel has no room for it.
    TableFull,
}

/// The way to a wanted address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Via {
        neighbour: NeighbourKey,
        source: IpAddr,
        mtu_bytes: Option<u32>,
    },
    Local,
    None,
}

/// What has to be looked at again after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// Next hops may differ, the routes do not.
    NextHops,
    /// Ask for the routes to addresses in here.
    RoutesWithin(IpNet),
    AllRoutes,
    Everything,
}

impl Tables {
    pub(super) fn apply(&mut self, event: Event) -> Effect {
        match event {
            Event::Link(interface) => self.put_link(interface),
            Event::LinkGone(index) => {
                self.links.remove(&index);
                self.forget_neighbours_on(index);
                Effect::AllRoutes
            }
            Event::Neighbour(key, neighbour) => self.put_neighbour(key, neighbour),
            Event::NeighbourGone(key) => self.lose_neighbour(key),
            Event::Route(prefix) => Effect::RoutesWithin(prefix),
            Event::AnyRoute => Effect::AllRoutes,
            Event::Lost => Effect::Everything,
        }
    }

    /// Takes over a dump of all links.
    pub(super) fn replace_links(&mut self, links: Vec<Interface>) {
        let old = std::mem::take(&mut self.links);
        let now: BTreeSet<u32> = links.iter().map(|interface| interface.index).collect();
        for interface in links {
            self.put_link(interface);
        }
        for index in old.into_keys().filter(|index| !now.contains(index)) {
            self.forget_neighbours_on(index);
        }
    }

    /// Takes over a dump of all neighbours. Those on the way to a wanted address survive it when they are not in it.
    pub(super) fn replace_neighbours(&mut self, neighbours: Vec<(NeighbourKey, Neighbour)>) {
        let needed = self.needed_neighbours();
        let now: BTreeSet<NeighbourKey> = neighbours.iter().map(|(key, _)| *key).collect();
        let missing: Vec<_> = self
            .neighbours
            .keys()
            .filter(|key| !now.contains(key))
            .copied()
            .collect();
        for key in missing {
            if needed.contains(&key) {
                self.lose_neighbour(key);
            } else {
                self.neighbours.remove(&key);
            }
        }
        for (key, neighbour) in neighbours {
            self.put_neighbour(key, neighbour);
        }
    }

    /// Takes over the kernel's answer about the route to `address`.
    ///
    /// When an interface goes down the kernel drops its routes. We keep such a route while nothing replaces it, so
    /// that the operator is told of the interface and not of a missing route.
    pub(super) fn put_route(&mut self, address: IpAddr, route: Route) {
        let keep = route == Route::None
            && matches!(self.routes.get(&address), Some(Route::Via { neighbour: (ifindex, _), .. })
                if self.links.get(ifindex).is_some_and(|interface| !interface.up));
        if !keep {
            self.routes.insert(address, route);
        }
    }

    /// Forgets the routes to addresses that nobody wants any more, and returns the wanted ones that have none yet.
    pub(super) fn want(&mut self, wanted: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        self.routes.retain(|address, _| wanted.contains(address));
        wanted
            .iter()
            .filter(|address| !self.routes.contains_key(address))
            .copied()
            .collect()
    }

    /// Forgets the MAC addresses of neighbours that failed. To be called when a batch of events was applied: an entry
    /// that is removed by hand fails and goes at once, and that says nothing about the neighbour.
    pub(super) fn settle(&mut self) {
        for neighbour in self.neighbours.values_mut() {
            if neighbour.freshness == Freshness::Failed {
                neighbour.mac = None;
            }
        }
    }

    /// Notes that the kernel was asked for a neighbour: it sends no event before it has an answer.
    pub(super) fn asked(&mut self, key: NeighbourKey) {
        let asking = Neighbour {
            freshness: Freshness::Asking,
            mac: None,
        };
        let known = self.neighbours.entry(key).or_insert(asking);
        if known.freshness == Freshness::Gone {
            known.freshness = Freshness::Asking;
        }
    }

    pub(super) fn table_full(&mut self, key: NeighbourKey) {
        let mac = self.neighbours.get(&key).and_then(|known| known.mac);
        self.neighbours.insert(
            key,
            Neighbour {
                freshness: Freshness::TableFull,
                mac,
            },
        );
    }

    pub(super) fn resolve(&self, address: IpAddr) -> Resolution {
        match self.next_hop(address) {
            Ok(next_hop) => Resolution::Resolved(next_hop),
            Err(reason) => Resolution::Unresolved(reason),
        }
    }

    /// The neighbours on the way to the wanted addresses.
    pub(super) fn needed_neighbours(&self) -> BTreeSet<NeighbourKey> {
        let neighbours = self.routes.values().filter_map(|route| match route {
            Route::Via { neighbour, .. } => Some(*neighbour),
            Route::Local | Route::None => None,
        });
        neighbours.collect()
    }

    /// How long after the last request the kernel should be asked for this neighbour again, or None for never.
    pub(super) fn probe_after(&self, key: NeighbourKey) -> Option<Duration> {
        if !self.links.get(&key.0)?.up {
            return None;
        }
        let Some(known) = self.neighbours.get(&key) else {
            return Some(Duration::ZERO);
        };
        match known.freshness {
            // The kernel would take a request as an order to make the entry an ordinary one.
            Freshness::Permanent => None,
            Freshness::Fresh | Freshness::Asking => None,
            Freshness::Stale => Some(Duration::from_secs(10)),
            // The kernel gives up after 3 seconds, and the entry is then `Failed`.
            Freshness::Failed | Freshness::TableFull => Some(Duration::from_secs(4)),
            // When the table is too small, each request takes another's place: that must not become a spin.
            Freshness::Gone => Some(Duration::from_secs(1)),
        }
    }

    fn next_hop(&self, address: IpAddr) -> Result<NextHop, Reason> {
        let (neighbour, source, route_mtu_bytes) = match self.routes.get(&address) {
            Some(Route::Via {
                neighbour,
                source,
                mtu_bytes,
            }) => (*neighbour, *source, *mtu_bytes),
            Some(Route::Local) => return Err(Reason::Local),
            Some(Route::None) | None => return Err(Reason::NoRoute),
        };
        let egress = self.up(neighbour.0)?;
        let source_mac = egress.mac.ok_or(Reason::NotEthernet)?;
        let (ifindex, vlan) = match egress.vlan {
            None => (egress.index, None),
            Some(tag) if tag.parent == 0 => return Err(Reason::NotEthernet),
            Some(tag) => match self.up(tag.parent)? {
                Interface { vlan: Some(_), .. } | Interface { mac: None, .. } => {
                    return Err(Reason::NotEthernet);
                }
                parent => (parent.index, Some(tag.id)),
            },
        };
        let destination_mac = match self.neighbours.get(&neighbour) {
            Some(Neighbour {
                freshness: Freshness::Failed,
                ..
            }) => return Err(Reason::NeighbourFailed),
            Some(Neighbour { mac: Some(mac), .. }) => *mac,
            Some(Neighbour {
                freshness: Freshness::TableFull,
                ..
            }) => return Err(Reason::NeighbourTableFull),
            Some(_) | None => return Err(Reason::NeighbourIncomplete),
        };
        let mtu_bytes = route_mtu_bytes.map_or(egress.mtu_bytes, |mtu_bytes| {
            mtu_bytes.min(egress.mtu_bytes)
        });
        Ok(NextHop {
            ifindex,
            vlan,
            source_mac,
            destination_mac,
            station: if neighbour.1 == address {
                Station::Backend
            } else {
                Station::Router
            },
            mtu_bytes: u16::try_from(mtu_bytes).unwrap_or(u16::MAX),
            source,
        })
    }

    fn up(&self, ifindex: u32) -> Result<&Interface, Reason> {
        self.links
            .get(&ifindex)
            .filter(|interface| interface.up)
            .ok_or(Reason::InterfaceDown)
    }

    fn put_link(&mut self, interface: Interface) -> Effect {
        let index = interface.index;
        if !interface.up {
            self.forget_neighbours_on(index);
        }
        let old = self.links.insert(index, interface);
        // Most link events are about statistics or settings that do not matter here.
        if old.as_ref() == self.links.get(&index) {
            Effect::Nothing
        } else {
            Effect::AllRoutes
        }
    }

    fn put_neighbour(&mut self, key: NeighbourKey, told: Neighbour) -> Effect {
        let known = self.neighbours.get(&key).copied();
        let mac = match told.freshness {
            Freshness::Asking | Freshness::Failed => {
                told.mac.or_else(|| known.and_then(|known| known.mac))
            }
            _ => told.mac,
        };
        let now = Neighbour { mac, ..told };
        self.neighbours.insert(key, now);
        if known == Some(now) {
            Effect::Nothing
        } else {
            Effect::NextHops
        }
    }

    fn lose_neighbour(&mut self, key: NeighbourKey) -> Effect {
        let is_up = self.links.get(&key.0).is_some_and(|interface| interface.up);
        match self.neighbours.get_mut(&key) {
            Some(Neighbour {
                freshness: Freshness::TableFull,
                ..
            }) => {}
            Some(known) if is_up => known.freshness = Freshness::Gone,
            _ => {
                self.neighbours.remove(&key);
            }
        }
        Effect::NextHops
    }

    /// Other machines may be on the cable when it is plugged in again.
    fn forget_neighbours_on(&mut self, index: u32) {
        self.neighbours.retain(|(ifindex, _), _| *ifindex != index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::VlanTag;

    const ETH: u32 = 2;
    const VLAN: u32 = 7;
    const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn backend() -> IpAddr {
        IpAddr::from([10, 1, 0, 1])
    }

    fn router() -> IpAddr {
        IpAddr::from([10, 0, 0, 1])
    }

    fn ethernet(index: u32) -> Interface {
        let mac = Some([2, 0, 0, 0, 1, u8::try_from(index).unwrap()]);
        Interface {
            index,
            name: format!("eth{index}"),
            mac,
            mtu_bytes: 1500,
            up: true,
            vlan: None,
        }
    }

    fn via(ifindex: u32) -> Route {
        Route::Via {
            neighbour: (ifindex, router()),
            source: IpAddr::from([10, 0, 0, 9]),
            mtu_bytes: None,
        }
    }

    fn known(freshness: Freshness) -> Neighbour {
        Neighbour {
            freshness,
            mac: Some(ROUTER_MAC),
        }
    }

    fn unanswered(freshness: Freshness) -> Neighbour {
        Neighbour {
            freshness,
            mac: None,
        }
    }

    /// A backend behind a router that answers.
    fn tables() -> Tables {
        let mut tables = Tables::default();
        tables.replace_links(vec![ethernet(ETH)]);
        tables.put_route(backend(), via(ETH));
        tables.replace_neighbours(vec![((ETH, router()), known(Freshness::Fresh))]);
        tables
    }

    fn reason(tables: &Tables) -> Option<Reason> {
        match tables.resolve(backend()) {
            Resolution::Resolved(_) => None,
            Resolution::Unresolved(reason) => Some(reason),
        }
    }

    #[test]
    fn the_next_hop_is_the_routers() {
        let expected = NextHop {
            ifindex: ETH,
            vlan: None,
            source_mac: [2, 0, 0, 0, 1, 2],
            destination_mac: ROUTER_MAC,
            station: Station::Router,
            mtu_bytes: 1500,
            source: IpAddr::from([10, 0, 0, 9]),
        };
        assert_eq!(tables().resolve(backend()), Resolution::Resolved(expected));
    }

    #[test]
    fn a_vlan_device_resolves_to_its_parent_and_a_tag() {
        let mut tables = tables();
        let mut vlan = ethernet(VLAN);
        vlan.vlan = Some(VlanTag {
            id: 100,
            parent: ETH,
        });
        vlan.mtu_bytes = 1400;
        tables.apply(Event::Link(vlan.clone()));
        tables.put_route(backend(), via(VLAN));
        tables.apply(Event::Neighbour((VLAN, router()), known(Freshness::Fresh)));
        let Resolution::Resolved(next_hop) = tables.resolve(backend()) else {
            panic!("unresolved")
        };
        assert_eq!((next_hop.ifindex, next_hop.vlan), (ETH, Some(100)));
        assert_eq!(
            next_hop.source_mac,
            [2, 0, 0, 0, 1, 7],
            "a VLAN device may have a MAC of its own"
        );
        assert_eq!(next_hop.mtu_bytes, 1400);

        tables.apply(Event::Link(Interface {
            up: false,
            ..ethernet(ETH)
        }));
        assert_eq!(reason(&tables), Some(Reason::InterfaceDown));
        tables.apply(Event::Link(Interface {
            vlan: Some(VlanTag { id: 5, parent: 1 }),
            ..ethernet(ETH)
        }));
        assert_eq!(reason(&tables), Some(Reason::NotEthernet), "two tags");
        vlan.vlan = Some(VlanTag { id: 100, parent: 0 });
        tables.apply(Event::Link(vlan));
        assert_eq!(
            reason(&tables),
            Some(Reason::NotEthernet),
            "the parent is in another namespace"
        );
    }

    #[test]
    fn the_lesser_mtu_counts_and_a_huge_one_saturates() {
        let mut tables = tables();
        let neighbour = (ETH, router());
        let source = router();
        let mtu_bytes = |tables: &Tables| match tables.resolve(backend()) {
            Resolution::Resolved(next_hop) => next_hop.mtu_bytes,
            Resolution::Unresolved(reason) => panic!("{reason}"),
        };
        tables.put_route(
            backend(),
            Route::Via {
                neighbour,
                source,
                mtu_bytes: Some(1280),
            },
        );
        assert_eq!(mtu_bytes(&tables), 1280);
        tables.put_route(
            backend(),
            Route::Via {
                neighbour,
                source,
                mtu_bytes: Some(9000),
            },
        );
        assert_eq!(mtu_bytes(&tables), 1500);
        tables.apply(Event::Link(Interface {
            mtu_bytes: 100_000,
            ..ethernet(ETH)
        }));
        tables.put_route(
            backend(),
            Route::Via {
                neighbour,
                source,
                mtu_bytes: None,
            },
        );
        assert_eq!(mtu_bytes(&tables), 65_535);
    }

    #[test]
    fn a_neighbour_works_until_it_fails() {
        let key = (ETH, router());
        let mut tables = tables();
        for freshness in [Freshness::Stale, Freshness::Fresh, Freshness::Permanent] {
            tables.apply(Event::Neighbour(key, known(freshness)));
            assert_eq!(reason(&tables), None, "{freshness:?}");
        }
        tables.apply(Event::NeighbourGone(key));
        assert_eq!(reason(&tables), None, "dropped to make room");
        assert_eq!(tables.probe_after(key), Some(Duration::from_secs(1)));
        tables.apply(Event::Neighbour(key, unanswered(Freshness::Asking)));
        assert_eq!(reason(&tables), None, "asked for anew");
        tables.apply(Event::Neighbour(key, unanswered(Freshness::Failed)));
        assert_eq!(reason(&tables), Some(Reason::NeighbourFailed));
        tables.apply(Event::NeighbourGone(key));
        assert_eq!(reason(&tables), None, "removed by hand");
        tables.apply(Event::Neighbour(key, unanswered(Freshness::Failed)));
        tables.settle();
        assert_eq!(reason(&tables), Some(Reason::NeighbourFailed));
        tables.apply(Event::Neighbour(key, unanswered(Freshness::Asking)));
        assert_eq!(reason(&tables), Some(Reason::NeighbourIncomplete));
        tables.apply(Event::NeighbourGone(key));
        tables.table_full(key);
        assert_eq!(reason(&tables), Some(Reason::NeighbourTableFull));
        tables.apply(Event::Neighbour(key, known(Freshness::Fresh)));
        assert_eq!(reason(&tables), None);
    }

    #[test]
    fn a_link_that_was_down_starts_afresh() {
        let mut tables = tables();
        tables.apply(Event::Link(Interface {
            up: false,
            ..ethernet(ETH)
        }));
        tables.put_route(backend(), Route::None);
        assert_eq!(
            reason(&tables),
            Some(Reason::InterfaceDown),
            "not a missing route"
        );
        assert_eq!(tables.probe_after((ETH, router())), None);
        tables.apply(Event::Link(ethernet(ETH)));
        assert_eq!(tables.probe_after((ETH, router())), Some(Duration::ZERO));
        tables.asked((ETH, router()));
        assert_eq!(tables.probe_after((ETH, router())), None);
        tables.put_route(backend(), via(ETH));
        assert_eq!(reason(&tables), Some(Reason::NeighbourIncomplete));
        tables.put_route(backend(), Route::None);
        assert_eq!(reason(&tables), Some(Reason::NoRoute));
        tables.put_route(backend(), Route::Local);
        assert_eq!(reason(&tables), Some(Reason::Local));
    }

    #[test]
    fn a_removed_link_takes_its_neighbours_along() {
        let mut tables = tables();
        assert_eq!(tables.apply(Event::LinkGone(ETH)), Effect::AllRoutes);
        assert_eq!(reason(&tables), Some(Reason::InterfaceDown));
        assert!(tables.neighbours.is_empty());
    }

    #[test]
    fn what_changes_nothing_costs_nothing() {
        let mut tables = tables();
        assert_eq!(tables.apply(Event::Link(ethernet(ETH))), Effect::Nothing);
        assert_eq!(
            tables.apply(Event::Neighbour((ETH, router()), known(Freshness::Fresh))),
            Effect::Nothing
        );
        assert_eq!(
            tables.apply(Event::Neighbour((ETH, router()), known(Freshness::Stale))),
            Effect::NextHops
        );
        let prefix: IpNet = "10.1.0.0/16".parse().unwrap();
        assert_eq!(
            tables.apply(Event::Route(prefix)),
            Effect::RoutesWithin(prefix)
        );
        assert_eq!(tables.apply(Event::Lost), Effect::Everything);
    }

    #[test]
    fn a_dump_replaces_all_but_what_is_still_needed() {
        let mut tables = tables();
        let stranger = (ETH, IpAddr::from([10, 0, 0, 77]));
        tables.apply(Event::Neighbour(stranger, known(Freshness::Fresh)));
        tables.replace_neighbours(vec![]);
        assert_eq!(reason(&tables), None);
        assert_eq!(tables.neighbours.len(), 1);
        tables.replace_links(vec![]);
        assert_eq!(reason(&tables), Some(Reason::InterfaceDown));
    }

    #[test]
    fn only_wanted_addresses_have_routes() {
        let mut tables = tables();
        let other = IpAddr::from([10, 1, 0, 2]);
        assert_eq!(tables.want(&[backend(), other].into()), [other]);
        assert_eq!(tables.want(&[other].into()), [other]);
        assert!(tables.needed_neighbours().is_empty());
    }
}
