//! The next-hop resolver against a real kernel: two network namespaces, a cable between them. Needs root and iproute2.
use std::{
    collections::BTreeSet,
    fs::File,
    net::IpAddr,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use sluice::net::{NextHop, Reason, Resolution, Resolver, Station, if_index, interfaces};
use tokio::{sync::watch, time::timeout};

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const NEW_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

const NEIGHBOUR_V4: &str = "10.9.0.2";
const NEIGHBOUR_V6: &str = "fd09::2";
const BEHIND_GATEWAY_V4: &str = "192.0.2.1";
const BEHIND_GATEWAY_V6: &str = "2001:db8::1";
const ABSENT: &str = "10.9.0.99";
const UNROUTED: &str = "203.0.113.1";
const OWN: &str = "10.9.0.1";

#[test]
fn next_hops_are_resolved_and_follow_the_kernel() {
    let cable = Cable::new("follow");
    cable.in_host(async {
        let (_wanted, resolver) = start([
            NEIGHBOUR_V4,
            NEIGHBOUR_V6,
            BEHIND_GATEWAY_V4,
            BEHIND_GATEWAY_V6,
            UNROUTED,
            OWN,
        ]);
        let mut resolutions = resolver.resolutions();
        for (address, station, source, mtu_bytes) in [
            (NEIGHBOUR_V4, Station::Backend, "10.9.0.1", 1500),
            (NEIGHBOUR_V6, Station::Backend, "fd09::1", 1500),
            (BEHIND_GATEWAY_V4, Station::Router, "10.9.0.1", 1400),
            (BEHIND_GATEWAY_V6, Station::Router, "fd09::1", 1500),
        ] {
            let next_hop = resolved(&mut resolutions, address, PEER_MAC).await;
            let expected = NextHop {
                ifindex: if_index("cable").unwrap(),
                vlan: None,
                source_mac: HOST_MAC,
                destination_mac: PEER_MAC,
                station,
                mtu_bytes,
                source: source.parse().unwrap(),
            };
            assert_eq!(next_hop, expected, "{address}");
        }
        unresolved(&mut resolutions, UNROUTED, Reason::NoRoute).await;
        unresolved(&mut resolutions, OWN, Reason::Local).await;

        cable.peer(&format!("link set cable address {}", text(NEW_MAC)));
        // The peer's first packet tells the kernel of its new address; from then on our time counts.
        cable.host(&format!(
            "neigh replace {NEIGHBOUR_V4} lladdr {} dev cable nud stale",
            text(NEW_MAC)
        ));
        let told = Instant::now();
        resolved(&mut resolutions, BEHIND_GATEWAY_V4, NEW_MAC).await;
        assert!(
            told.elapsed() < Duration::from_millis(100),
            "took {:?}",
            told.elapsed()
        );

        cable.host("route add 203.0.113.0/24 via 10.9.0.2");
        resolved(&mut resolutions, UNROUTED, NEW_MAC).await;
        cable.host("route del 203.0.113.0/24");
        unresolved(&mut resolutions, UNROUTED, Reason::NoRoute).await;

        cable.host("link set cable mtu 1300");
        wait(
            &mut resolutions,
            NEIGHBOUR_V6,
            |r| matches!(r, Resolution::Resolved(n) if n.mtu_bytes == 1300),
        )
        .await;

        cable.host("link set cable down");
        for address in [NEIGHBOUR_V4, NEIGHBOUR_V6, BEHIND_GATEWAY_V4] {
            unresolved(&mut resolutions, address, Reason::InterfaceDown).await;
        }
        cable.host("link set cable up");
        resolved(&mut resolutions, NEIGHBOUR_V4, NEW_MAC).await;
        cable.peer("link set cable down");
        unresolved(&mut resolutions, NEIGHBOUR_V4, Reason::InterfaceDown).await;
    });
}

#[test]
fn a_silent_neighbour_is_named_and_found_when_it_comes() {
    let cable = Cable::new("silent");
    cable.in_host(async {
        let (wanted, resolver) = start([ABSENT]);
        let mut resolutions = resolver.resolutions();
        unresolved(&mut resolutions, ABSENT, Reason::NeighbourIncomplete).await;
        unresolved(&mut resolutions, ABSENT, Reason::NeighbourFailed).await;
        cable.peer(&format!("address add {ABSENT}/24 dev cable"));
        resolved(&mut resolutions, ABSENT, PEER_MAC).await;

        wanted.send(Arc::new(addresses([NEIGHBOUR_V6]))).unwrap();
        resolved(&mut resolutions, NEIGHBOUR_V6, PEER_MAC).await;
        assert!(
            !resolutions.borrow().contains_key(&ABSENT.parse().unwrap()),
            "no longer wanted"
        );
    });
}

#[test]
fn the_kernel_is_made_to_verify_stale_neighbours() {
    let cable = Cable::new("stale");
    cable.in_host(async {
        let (_wanted, resolver) = start([NEIGHBOUR_V4]);
        let mut resolutions = resolver.resolutions();
        resolved(&mut resolutions, NEIGHBOUR_V4, PEER_MAC).await;
        cable.host(&format!(
            "neigh replace {NEIGHBOUR_V4} lladdr {} dev cable nud stale",
            text(NEW_MAC)
        ));
        resolved(&mut resolutions, NEIGHBOUR_V4, NEW_MAC).await;
        // Nobody has the new address: only a kernel that asks again finds the old one.
        resolved(&mut resolutions, NEIGHBOUR_V4, PEER_MAC).await;

        cable.host("neigh flush dev cable");
        let before = resolutions.borrow().clone();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(
            *resolutions.borrow(),
            before,
            "an entry that only the kernel lost is not lost"
        );
        assert!(
            cable.host("neigh show").contains(NEIGHBOUR_V4),
            "and was asked for again"
        );
    });
}

#[test]
fn interfaces_are_listed() {
    let cable = Cable::new("list");
    cable.in_host(async {
        let interfaces = interfaces().await.unwrap();
        let found = interfaces
            .iter()
            .find(|interface| interface.name == "cable")
            .unwrap();
        assert_eq!(found.index, if_index("cable").unwrap());
        assert_eq!(
            (found.mac, found.mtu_bytes, found.up),
            (Some(HOST_MAC), 1500, true)
        );
        assert!(if_index("absent").is_err());
    });
}

/// Two namespaces, `host` and `peer`, joined by a veth pair that is called `cable` on both ends.
struct Cable {
    host: String,
    peer: String,
}

impl Cable {
    fn new(name: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "needs root, to make network namespaces"
        );
        let id = std::process::id();
        let cable = Self {
            host: format!("sluice-{name}-host-{id}"),
            peer: format!("sluice-{name}-peer-{id}"),
        };
        let (host, peer) = (&cable.host, &cable.peer);
        ip(&format!("netns add {host}"));
        ip(&format!("netns add {peer}"));
        ip(&format!(
            "link add cable netns {host} address {} type veth peer name cable netns {peer} address {}",
            text(HOST_MAC),
            text(PEER_MAC)
        ));
        for (command, end) in [
            (Self::host as fn(&Self, &str) -> String, 1),
            (Self::peer, 2),
        ] {
            command(&cable, "link set lo up");
            command(&cable, &format!("address add 10.9.0.{end}/24 dev cable"));
            command(
                &cable,
                &format!("address add fd09::{end}/64 dev cable nodad"),
            );
            command(&cable, "link set cable up");
        }
        cable.host("route add 192.0.2.0/24 via 10.9.0.2 mtu 1400");
        cable.host("route add 2001:db8::/32 via fd09::2");
        cable
    }

    fn host(&self, command: &str) -> String {
        ip(&format!("-n {} {command}", self.host))
    }

    fn peer(&self, command: &str) -> String {
        ip(&format!("-n {} {command}", self.peer))
    }

    /// Runs in the host's namespace: on a thread of its own, with a runtime that has no other.
    fn in_host(&self, body: impl Future<Output = ()> + Send) {
        let namespace = File::open(format!("/run/netns/{}", self.host)).unwrap();
        thread::scope(|scope| {
            let run = move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(body);
            };
            if let Err(panic) = scope.spawn(run).join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.host, &self.peer] {
            // It may not exist, if the set-up failed: then there is nothing to remove.
            let _ = Command::new("ip")
                .args(["netns", "delete", namespace])
                .output();
        }
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn start<const N: usize>(texts: [&str; N]) -> (watch::Sender<sluice::net::Wanted>, Resolver) {
    let (wanted, receiver) = watch::channel(Arc::new(addresses(texts)));
    (wanted, Resolver::start(receiver).unwrap())
}

async fn wait(
    resolutions: &mut watch::Receiver<sluice::net::Resolutions>,
    address: &str,
    is_it: impl Fn(&Resolution) -> bool,
) -> Resolution {
    let address: IpAddr = address.parse().unwrap();
    let found = resolutions.wait_for(|map| map.get(&address).is_some_and(&is_it));
    let found = timeout(Duration::from_secs(40), found)
        .await
        .map(|map| map.map(|map| map[&address]));
    match found {
        Ok(found) => found.unwrap(),
        Err(_) => panic!("{address} stays {:?}", resolutions.borrow().get(&address)),
    }
}

async fn resolved(
    resolutions: &mut watch::Receiver<sluice::net::Resolutions>,
    address: &str,
    mac: [u8; 6],
) -> NextHop {
    let is_it = |r: &Resolution| matches!(r, Resolution::Resolved(next_hop) if next_hop.destination_mac == mac);
    match wait(resolutions, address, is_it).await {
        Resolution::Resolved(next_hop) => next_hop,
        Resolution::Unresolved(reason) => panic!("{reason}"),
    }
}

async fn unresolved(
    resolutions: &mut watch::Receiver<sluice::net::Resolutions>,
    address: &str,
    reason: Reason,
) {
    wait(resolutions, address, |resolution| {
        *resolution == Resolution::Unresolved(reason)
    })
    .await;
}
