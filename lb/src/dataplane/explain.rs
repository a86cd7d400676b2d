//! What would become of one packet: a twin of the program that counts nothing, run over the same maps.

use std::path::Path;

use aya::{
    Ebpf,
    programs::{ProgramError, TestRun, TestRunOptions},
};
use sluice_ebpf::abi::{RuleState, Step, Trace, maps};

use super::{
    error::LoadError,
    load::{self, Need, Sizes, Twin},
    pins::Pins,
    plane::{check, mapped},
};
use crate::{config::Dataplane, sys::Mapped};

/// The twin. It ends with this value.
pub struct Explainer {
    object: Ebpf,
    trace: Mapped<Trace>,
    rules: Mapped<RuleState>,
}

/// What the program would do with a frame.
#[derive(Clone, Debug)]
pub struct Explained {
    pub action: Action,
    /// The frame as it would leave.
    pub frame: Vec<u8>,
    pub trace: Trace,
    /// Id of the last rule that meant it.
    pub rule: Option<u64>,
}

/// What an XDP program returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
    Unknown(u32),
}

/// Why a frame could not be explained.
#[derive(Debug, thiserror::Error)]
#[error("the kernel cannot run the program on this frame of {frame_bytes} bytes")]
pub struct ExplainError {
    frame_bytes: usize,
    source: Box<ProgramError>,
}

/// Room for outer headers.
const MOST_HEADERS_BYTES: usize = 256;

impl Explainer {
    /// Loads the twin over the maps that are pinned; the daemon need not run.
    pub fn open(pin_dir: &Path, config: &Dataplane) -> Result<Self, LoadError> {
        let need = Need::default();
        let mut sizes = Sizes::new(config, need);
        let pins = Pins::existing(pin_dir);
        let pinned = pins.read(sizes.shapes().iter().map(|&(name, _)| name))?;
        if pinned.shapes.is_empty() {
            return Err(LoadError::NothingLoaded {
                path: pin_dir.to_owned(),
            });
        }
        sizes.keep(config, need, &pinned.shapes);
        check(&sizes, &pins, &pinned)?;
        let object = load::load(&sizes, &pins.directory, Twin::Explaining)?;
        let trace = mapped(&object, maps::TRACE)?;
        let rules = mapped(&object, maps::RULES)?;
        Ok(Self {
            object,
            trace,
            rules,
        })
    }

    /// Runs one frame, as if it came in by this interface.
    pub fn explain(&mut self, frame: &[u8], ifindex: u32) -> Result<Explained, ExplainError> {
        let failed = |source| ExplainError {
            frame_bytes: frame.len(),
            source: Box::new(source),
        };
        let program = load::program(&mut self.object).map_err(|error| match error {
            LoadError::Program(source) => failed(*source),
            _ => failed(ProgramError::NotLoaded),
        })?;
        self.trace.write(0, &bytemuck::Zeroable::zeroed());
        let mut out = vec![0; frame.len() + MOST_HEADERS_BYTES];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u8; 24] = bytemuck::cast([0, length, 0, ifindex, 0, 0]);
        options.ctx_in = Some(&context);
        let result = program.test_run(options).map_err(failed)?;
        out.truncate(result.data_size_out as usize);
        let trace = self.trace.read(0);
        let rule = trace.rule.checked_sub(1);
        Ok(Explained {
            action: Action::from(result.return_value),
            frame: out,
            trace,
            rule: rule
                .filter(|number| *number < self.rules.len())
                .map(|number| self.rules.read(number).id),
        })
    }
}

impl Explained {
    /// What the program did, in order.
    pub fn steps(&self) -> impl Iterator<Item = Step> {
        let count = usize::try_from(self.trace.count).unwrap_or(usize::MAX);
        self.trace
            .steps
            .into_iter()
            .take(count)
            .filter_map(|number| Step::ALL.get(usize::from(number)).copied())
    }
}

impl Action {
    /// The kernel's.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Aborted => 0,
            Self::Drop => 1,
            Self::Pass => 2,
            Self::Tx => 3,
            Self::Redirect => 4,
            Self::Unknown(other) => other,
        }
    }

    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Tx => "tx",
            Self::Redirect => "redirect",
            Self::Aborted | Self::Unknown(_) => "aborted",
        }
    }
}

impl From<u32> for Action {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}
