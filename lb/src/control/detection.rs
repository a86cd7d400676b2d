//! The task that detects attacks: reads counters and samples ten times a second, asks the detector, and has done what it
//! decides. It has a thread of its own, so that a search for a signature takes no time from the control loop.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use sluice_ebpf::abi::DropReason;
use tokio::time::{MissedTickBehavior, interval};

use super::{Event, Handle, Heart, View, limits::now_ms, measures::Measures, webhook::Webhook};
use crate::{
    dataplane::{Action, Watch, Watched},
    detect::{
        detector::{Decision, Reading, VipReading},
        header::{Header, InTunnel},
        minute::{self, MOST_A_TICK, Seen},
        recent::VipIndex,
        shared::{Shared, mitigation_key},
        talkers::Talk,
        trigger::TICK_MS,
    },
};

/// Runs until something fails that only a new start can cure.
pub(super) async fn run(
    handle: Handle,
    pin_dir: PathBuf,
    heart: Heart,
) -> Result<Infallible, String> {
    let watch = Watch::open(&pin_dir).map_err(|error| super::chain(&error))?;
    let mut task = Task {
        shared: handle.detection().clone(),
        webhook: Webhook::start(handle.detection().clone(), handle.supervisor()),
        handle,
        watch,
        config: None,
        measures: Measures::default(),
        sampling: 1,
        packets: None,
        kept: Instant::now(),
    };
    let mut tick = interval(Duration::from_millis(TICK_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        heart.beat();
        task.tick().await?;
    }
}

struct Task {
    handle: Handle,
    shared: Shared,
    watch: Watch,
    /// What the detector was last set by.
    config: Option<Arc<View>>,
    measures: Measures,
    webhook: Webhook,
    /// Samples a second, as the config says.
    sampling: u32,
    /// All that were counted before; `None` at first: what came before this task is no tick's.
    packets: Option<u64>,
    /// When baselines were last written.
    kept: Instant,
}

/// Baselines are written so often.
const KEEP: Duration = Duration::from_secs(60);

impl Task {
    async fn tick(&mut self) -> Result<(), String> {
        let view = self.handle.view();
        let mut decisions = self.follow(&view);
        let now_ms = now_ms();
        let fitted = self.measures.fitted(&self.handle).await;
        let reading = self.read(fitted)?;
        self.take_samples(now_ms, &reading);
        decisions.extend(self.shared.lock().detector.tick(now_ms, reading));
        let unmade = self.measures.apply(&self.handle, &self.shared).await;
        self.shared
            .lock()
            .detector
            .settle(now_ms, unmade, &mut decisions);
        let mut rows = Vec::new();
        for decision in decisions {
            rows.extend(self.tell(decision));
        }
        if self.kept.elapsed() >= KEEP {
            self.kept = Instant::now();
            let baselines = self.shared.lock().baselines();
            rows.extend(baselines.into_iter().map(|(key, value)| (key, Some(value))));
        }
        if !rows.is_empty() {
            // Packets meet what was decided already: the disk may take its time.
            let handle = self.handle.clone();
            tokio::spawn(async move {
                if let Err(error) = handle.keep(rows).await {
                    tracing::error!(%error, "what detection knows is not on the disk");
                }
            });
        }
        Ok(())
    }

    /// Takes another config, or other numbers of VIPs. Tells what is forgotten for that.
    fn follow(&mut self, view: &Arc<View>) -> Vec<Decision> {
        let same = self.config.as_ref().is_some_and(|known| {
            Arc::ptr_eq(&known.config, &view.config) && known.vip_numbers == view.vip_numbers
        });
        if same {
            return Vec::new();
        }
        self.sampling = view.config.detect.sampling;
        self.webhook.set_url(view.config.detect.webhook.as_ref());
        self.config = Some(view.clone());
        self.shared.lock().set(&view.config, &view.vip_numbers)
    }

    fn read(&mut self, fitted: BTreeMap<u64, sluice_ebpf::abi::Count>) -> Result<Reading, String> {
        let vips: Vec<VipIndex> = self.shared.lock().vips.values().copied().collect();
        let counted = self.watch.counted(&vips, is_measure);
        let counted = counted.map_err(|error| super::chain(&error))?;
        let reading = |(vip, counted): (&VipIndex, crate::dataplane::Counted)| VipReading {
            vip: *vip,
            classes: counted.classes,
            stopped: counted.stopped,
            ruled: counted.ruled,
        };
        Ok(Reading {
            vips: vips.iter().zip(counted).map(reading).collect(),
            fitted,
        })
    }

    /// Takes the samples since the last tick, and says how many are wanted until the next.
    fn take_samples(&mut self, now_ms: u64, reading: &Reading) {
        let total = |vip: &VipReading| vip.classes.iter().map(|count| count.packets).sum::<u64>();
        let packets: u64 = reading.vips.iter().map(total).sum();
        let came = packets.saturating_sub(self.packets.unwrap_or(packets));
        self.packets = Some(packets);
        let mut taken = Vec::new();
        while let Some(sample) = self.watch.sample() {
            taken.push(sample);
            if taken.len() >= MOST_SAMPLES {
                break;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "an estimate")]
        let weight = (came as f64 / taken.len().max(1) as f64).max(1.0) as f32;
        let every = taken.len().div_ceil(MOST_A_TICK).max(1);
        let seen = taken.iter().step_by(every).filter_map(seen).collect();
        let mut state = self.shared.lock();
        state.minute.push(now_ms, came, seen);
        for sample in taken {
            let Some(mut header) = Header::read(&sample.frame, tunnel(&sample)) else {
                continue;
            };
            if sample.answered {
                header = header.question();
            }
            // Other answers do not tell enough of what was asked.
            let known = !sample.answered || header.is_echo_request();
            state.talkers.push(Talk {
                at_ms: now_ms,
                vip: sample.vip,
                header,
                dropped: sample.reason.is_some(),
                weight,
            });
            if known && sample.reason.is_none_or(is_counted) {
                state.detector.sample(now_ms, sample.vip, header);
            }
        }
        drop(state);
        let rate = self.sampling;
        // Of so many packets a second as came in the last tick.
        let a_second = came * 1_000 / TICK_MS;
        self.watch.want((a_second / u64::from(rate)).max(1), rate);
    }

    /// Says what was decided, everywhere. Returns the row that changes on the disk.
    fn tell(&self, decision: Decision) -> Option<(String, Option<Vec<u8>>)> {
        let row = match &decision {
            Decision::Raised(mitigation)
            | Decision::Rearmed(mitigation)
            | Decision::Shadowed(mitigation)
            | Decision::Refused(mitigation) => Some((
                mitigation_key(mitigation.id),
                serde_json::to_vec(mitigation).ok(),
            )),
            Decision::Forgotten(mitigation) => Some((mitigation_key(mitigation.id), None)),
            Decision::Unjudged(_)
            | Decision::AttackBegan(_)
            | Decision::AttackEnded(_)
            | Decision::NoRule { .. } => None,
        };
        tracing::warn!("{decision}");
        let event = Event::Detection(Arc::new(decision));
        self.webhook.tell(|| crate::api::told(event.clone()));
        self.handle.tell(event);
        row
    }
}

/// A sample as rules look at it. Not of what was answered: rules see the question.
fn seen(sample: &Watched) -> Option<Seen> {
    if sample.answered {
        return None;
    }
    Some(Seen {
        vip: sample.vip,
        header: minute::read(&sample.frame, tunnel(sample))?,
        dropped: sample.reason.is_some(),
    })
}

fn tunnel(sample: &Watched) -> InTunnel {
    if matches!(sample.action, Action::Tx | Action::Redirect) {
        InTunnel::Maybe
    } else {
        InTunnel::No
    }
}

/// Whether packets that are dropped for this reason were counted by their class before.
fn is_counted(reason: DropReason) -> bool {
    is_measure(reason)
        || matches!(
            reason,
            DropReason::NoBackend
                | DropReason::BackendUnresolved
                | DropReason::TooBig
                | DropReason::Headroom
        )
}

/// Samples of a tick: twice what the highest rate gives.
const MOST_SAMPLES: usize = 2_000;

/// Whether packets that are dropped for this reason were counted by their class before, and stopped by the filter, though
/// not by a rule.
fn is_measure(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::LimitExact
            | DropReason::LimitHost
            | DropReason::LimitNetwork
            | DropReason::OutOfState
            | DropReason::Amplification
            | DropReason::SourceInvalid
            | DropReason::SourceVip
            | DropReason::SynChecksum
            | DropReason::Cookie
    )
}
