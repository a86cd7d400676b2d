//! A data plane in memory, for tests of what stands above it.

use std::sync::{Arc, Mutex};

use sluice_ebpf::abi::{Count, DropReason, VipStats};

use super::{Attachment, Dataplane, DropFigure, Failure, Figures, FlowCount};
use crate::{config::Mode, dataplane::Desired};

/// Shares what it holds with the test.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    desired: Desired,
    interfaces: Vec<String>,
    fails: Option<&'static str>,
}

impl Fake {
    pub(crate) fn held(&self) -> Desired {
        self.0.lock().unwrap().desired.clone()
    }

    /// From now on nothing can be applied, until this is called with `None`.
    pub(crate) fn fail(&self, with: Option<&'static str>) {
        self.0.lock().unwrap().fails = with;
    }
}

impl Dataplane for Fake {
    fn apply(&mut self, desired: &Desired) -> Result<Vec<String>, Failure> {
        let mut held = self.0.lock().unwrap();
        if let Some(error) = held.fails {
            return Err(error.into());
        }
        held.desired = desired.clone();
        Ok(Vec::new())
    }

    /// Every VIP and backend has some of everything.
    fn figures(&self) -> Result<Figures, Failure> {
        let held = self.0.lock().unwrap();
        if let Some(error) = held.fails {
            return Err(error.into());
        }
        let mut figures = Figures::default();
        let count = |packets| Count {
            packets,
            bytes: packets * 100,
        };
        for name in held.desired.vips.keys() {
            let stats = VipStats {
                pass: count(1),
                tx: count(20),
                redirect: count(300),
                out_of_state: 4,
                inserts: 5,
            };
            figures.vips.insert(name.clone(), stats);
            figures.checksums.insert(name.clone(), 0xfeed);
            for (reason, mode, packets) in [
                (DropReason::NoBackend, Mode::Enforce, 6),
                (DropReason::LimitHost, Mode::Enforce, 7),
                (DropReason::LimitHost, Mode::Monitor, 8),
            ] {
                figures.drops.push(DropFigure {
                    vip: Some(name.clone()),
                    reason,
                    mode,
                    count: count(packets),
                });
            }
        }
        for key in held.desired.backends.keys() {
            figures.backends.insert(key.clone(), count(50));
            let flows = FlowCount {
                proven: 3,
                unproven: 2,
            };
            figures.flows.backends.insert(key.clone(), flows);
        }
        figures.flows.capacity = 1 << 20;
        figures.flow_stats.evicted_idle = 9;
        Ok(figures)
    }

    fn attachments(&self) -> Vec<Attachment> {
        let held = self.0.lock().unwrap();
        let attach = |interface: &String| Attachment {
            interface: interface.clone(),
            mode: "native",
        };
        held.interfaces.iter().map(attach).collect()
    }

    fn set_interfaces(&mut self, names: &[String]) -> Result<(), Failure> {
        self.0.lock().unwrap().interfaces = names.to_vec();
        Ok(())
    }

    fn program_id(&self) -> Option<u32> {
        Some(7)
    }
}
