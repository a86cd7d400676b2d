//! Plans by example, and what holds for every one: it leads to what is wanted, and no step of it harms a packet.

use std::collections::BTreeSet;

use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
};

use super::*;

fn key(last: u8) -> BackendKey {
    BackendKey {
        pool: "web".into(),
        address: [10, 0, 0, last].into(),
        forward: Forward::L2,
    }
}

fn vip(port: u16, policy: Option<String>, table: TableKey) -> VipImage {
    VipImage {
        place: Place {
            prefix: "192.0.2.1/32".parse().unwrap(),
            protocol: 6,
            port,
            host_ports: Vec::new(),
        },
        mtu_bytes: u16::MAX,
        flags: 0,
        stages: Stages::default(),
        answer: abi::SynAnswer::default(),
        challenge: abi::Challenge::default(),
        policy,
        table,
    }
}

fn image(backends: &[(u8, u8)], port: u16) -> Image {
    let backend = |flags| abi::Backend {
        flags,
        ..abi::Backend::default()
    };
    let table = TableKey {
        pool: "web".into(),
        forward: Forward::L2,
    };
    let takes_new = backends
        .iter()
        .filter(|&&(_, flags)| flags == BACKEND_FORWARDS | BACKEND_RESOLVED);
    let vip = vip(port, None, table.clone());
    Image {
        policies: BTreeMap::new(),
        backends: backends
            .iter()
            .map(|&(last, flags)| (key(last), backend(flags)))
            .collect(),
        tables: BTreeMap::from([(
            table,
            Table {
                slots: 251,
                weights: takes_new.map(|&(last, _)| (key(last), 1)).collect(),
            },
        )]),
        vips: BTreeMap::from([("www".to_owned(), Some(vip))]),
        protected: Some(Vec::new()),
    }
}

#[test]
fn equal_states_need_no_step() {
    let image = image(&[(1, 3)], 443);
    assert_eq!(plan(&image, &image), []);
}

#[test]
fn a_backend_that_fails_leaves_the_tables_first() {
    let steps = plan(
        &image(&[(1, 3), (2, 3)], 443),
        &image(&[(1, 3), (2, 0)], 443),
    );
    let [Step::PutTable(_), Step::PutVip(_), Step::PutBackend(failed)] = &steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!(*failed, key(2));
}

#[test]
fn what_goes_goes_last() {
    let steps = plan(&image(&[(1, 3)], 443), &image(&[(2, 3)], 80));
    let [
        Step::PutBackend(new),
        Step::PutTable(_),
        Step::PutVip(_),
        Step::FlipIndex,
        Step::RemoveBackend(old),
    ] = &steps[..]
    else {
        panic!("{steps:?}");
    };
    assert_eq!((new, old), (&key(2), &key(1)));
}

/// What the maps hold while steps are taken, and what packets find there.
#[derive(Debug)]
struct Model {
    known: Image,
    wanted: Image,
    /// The VIPs that packets find.
    index: BTreeSet<String>,
    rows: BTreeMap<String, Row>,
    tables: BTreeSet<TableKey>,
}

/// A VIP as packets read it.
#[derive(Debug, PartialEq)]
struct Row {
    policy: Option<String>,
    table: TableKey,
    /// What slots of its table lead to.
    backends: BTreeSet<BackendKey>,
}

impl Row {
    fn of(vip: &VipImage, tables: &BTreeMap<TableKey, Table>) -> Self {
        Self {
            policy: vip.policy.clone(),
            table: vip.table.clone(),
            backends: tables[&vip.table].weights.keys().cloned().collect(),
        }
    }

    fn all(image: &Image) -> BTreeMap<String, Self> {
        let vips = image.vips.iter().map(|(name, vip)| {
            let vip = vip.as_ref().unwrap();
            (name.clone(), Self::of(vip, &image.tables))
        });
        vips.collect()
    }
}

impl Model {
    fn new(actual: &Image, known: Image, wanted: Image) -> Self {
        Self {
            known,
            wanted,
            index: actual.vips.keys().cloned().collect(),
            rows: Row::all(actual),
            tables: actual.tables.keys().cloned().collect(),
        }
    }

    fn take(&mut self, step: &Step) {
        let Self {
            known,
            wanted,
            index,
            rows,
            tables,
        } = self;
        match step {
            Step::PutPolicy(name) => {
                known.policies.insert(name.clone(), wanted.policies[name]);
            }
            Step::PutBackend(key) => {
                known.backends.insert(key.clone(), wanted.backends[key]);
            }
            Step::PutTable(key) => {
                known.tables.insert(key.clone(), wanted.tables[key].clone());
                tables.insert(key.clone());
            }
            Step::PutProtected => known.protected = wanted.protected.clone(),
            Step::PutVip(name) => {
                let vip = wanted.vips[name].clone().unwrap();
                rows.insert(name.clone(), Row::of(&vip, &known.tables));
                if let Some(Some(held)) = known.vips.get_mut(name) {
                    let place = held.place.clone();
                    *held = VipImage { place, ..vip };
                }
            }
            Step::FlipIndex => {
                known.vips.extend(wanted.vips.clone());
                *index = wanted.vips.keys().cloned().collect();
            }
            Step::RemoveVip(name) => {
                known.vips.remove(name);
                rows.remove(name);
            }
            Step::RemoveTable(key) => {
                known.tables.remove(key);
                tables.remove(key);
            }
            Step::RemoveBackend(key) => {
                known.backends.remove(key);
            }
            Step::RemovePolicy(name) => {
                known.policies.remove(name);
            }
        }
    }

    /// Whether all that packets are led to is there, and takes them.
    fn is_safe(&self) -> bool {
        self.index.iter().all(|name| {
            // Backends of a VIP that goes may go down a moment before it.
            let stays = self.wanted.vips.contains_key(name);
            let leads = |key: &BackendKey| {
                let backend = self.known.backends.get(key);
                backend.is_some_and(|backend| !stays || takes_new(backend))
            };
            self.rows.get(name).is_some_and(|row| {
                let policy = row.policy.as_ref();
                policy.is_none_or(|policy| self.known.policies.contains_key(policy))
                    && self.tables.contains(&row.table)
                    && row.backends.iter().all(leads)
            })
        })
    }
}

fn takes_new(backend: &abi::Backend) -> bool {
    backend.flags == BACKEND_FORWARDS | BACKEND_RESOLVED
}

/// As configs make them: tables are those of VIPs, and lead only to backends that take new flows. Two tables of a pool
/// may share backends.
fn an_image() -> impl Strategy<Value = Image> {
    let way = || select(vec![Forward::L2, Forward::Ipip]);
    let policies = btree_map("[ab]", 0..2u32, 0..3);
    let backends = btree_map(("[pq]", 1..4u8, way()), (0..4u8, 1..3u16, 0..3u16), 0..10);
    let vips = btree_map("[a-c]", ("[pq]", way(), 0..3u16, option::of("[ab]")), 0..4);
    let protected = vec(1..4u64, 0..3);
    let parts = (policies, backends, vips, protected);
    parts.prop_map(|(policies, backends, vips, protected)| {
        let protected = protected.into_iter().map(|bits| Prefix {
            bits: [bits, 0],
            mask: [u64::MAX; 2],
        });
        let mut image = Image {
            protected: Some(protected.collect()),
            ..Image::default()
        };
        for (name, monitor) in policies {
            let policy = abi::Policy {
                monitor,
                ..abi::Policy::default()
            };
            image.policies.insert(name, policy);
        }
        let mut weights = BTreeMap::new();
        for ((pool, last, forward), (flags, mtu_bytes, weight)) in backends {
            let key = BackendKey {
                pool,
                address: [10, 0, 0, last].into(),
                forward,
            };
            let backend = abi::Backend {
                flags,
                mtu_bytes,
                ..abi::Backend::default()
            };
            if takes_new(&backend) && weight > 0 {
                weights.insert(key.clone(), weight);
            }
            image.backends.insert(key, backend);
        }
        for (name, (pool, forward, port, policy)) in vips {
            let leads = |key: &BackendKey| {
                key.pool == pool && (key.forward == forward || forward == Forward::L2)
            };
            let of_table = weights.iter().filter(|(key, _)| leads(key));
            let table = Table {
                slots: 251,
                weights: of_table
                    .map(|(key, weight)| (key.clone(), *weight))
                    .collect(),
            };
            let key = TableKey { pool, forward };
            image.tables.insert(key.clone(), table);
            let policy = policy.filter(|policy| image.policies.contains_key(policy));
            let vip = vip(port, policy, key);
            image.vips.insert(name, Some(vip));
        }
        image
    })
}

/// What is known of maps that another daemon left, or that somebody else wrote to: bits choose what is not.
fn forget(image: &Image, vips: u8, tables: u8, protected: bool) -> Image {
    let mut image = image.clone();
    for (n, vip) in image.vips.values_mut().enumerate() {
        if (vips >> n) & 1 != 0 {
            *vip = None;
        }
    }
    let mut n = 0;
    image.tables.retain(|_, _| {
        n += 1;
        (tables >> n) & 1 == 0
    });
    if protected {
        image.protected = None;
    }
    image
}

proptest! {
    #[test]
    fn a_plan_leads_to_what_is_wanted_and_each_step_is_safe(
        actual in an_image(),
        wanted in an_image(),
        (vips, tables, protected) in any::<(u8, u8, bool)>(),
    ) {
        let known = forget(&actual, vips, tables, protected);
        let steps = plan(&known, &wanted);
        let mut model = Model::new(&actual, known, wanted.clone());
        prop_assert!(model.is_safe(), "{model:?}");
        for step in &steps {
            model.take(step);
            prop_assert!(model.is_safe(), "after {step}: {model:?}");
        }
        prop_assert_eq!(&model.known, &wanted);
        prop_assert_eq!(&model.rows, &Row::all(&wanted));
        prop_assert!(plan(&wanted, &wanted).is_empty());
    }
}
