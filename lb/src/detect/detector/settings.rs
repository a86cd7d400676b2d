//! How the detector is set: by `[detect]` for all, and by policies for VIPs.

use crate::{
    config::{self, Stance},
    detect::{
        life::Times,
        recent::VipIndex,
        trigger::{Rates, TICK_MS, Thresholds},
    },
};

/// How the detector is set.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// For what is spread over all VIPs.
    pub stance: Stance,
    pub thresholds: Thresholds,
    pub times: Times,
    pub cap_factor: f64,
}

/// A VIP as the config has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipSettings {
    pub index: VipIndex,
    pub name: String,
    pub stance: Stance,
}

impl Settings {
    /// As the config says.
    pub fn of(config: &config::Detect) -> Self {
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            stance: config.mode,
            thresholds: Thresholds {
                floor: Rates {
                    pps: config.floor_pps,
                    bps: config.floor_bps,
                },
                factor: config.factor.into(),
                learn_ticks: ms(config.learn) / TICK_MS,
                quiet_ms: ms(config.quiet),
            },
            times: Times {
                hold_ms: ms(config.hold),
                quiet_ms: ms(config.quiet),
            },
            cap_factor: config.cap.into(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stance: Stance::default(),
            thresholds: Thresholds::default(),
            times: Times::default(),
            cap_factor: 10.0,
        }
    }
}
