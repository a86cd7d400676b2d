//! The wrapper that repairs a frame before each run, and the programs of the bench's object.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRun, TestRunOptions, Xdp, XdpMode},
};
use sluice::objects::BENCH;

/// What a wrapper puts into each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    pub(crate) bytes: u32,
    pub(crate) v6: bool,
    pub(crate) answered: Answered,
    /// Number of flows less one, a power of two less one; 0 leaves the source alone.
    pub(crate) flow_mask: u32,
}

/// What the program under test makes of a frame, other than to send it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Answered {
    No = 0,
    Echo = 1,
    /// A challenge or a cookie.
    ToSyn = 2,
}

/// The bench's object, loaded for one kind of frames.
pub(crate) struct Wrapper {
    ebpf: Ebpf,
    /// The array empties when its last user space handle goes.
    tested: Option<ProgramArray<MapData>>,
}

impl Wrapper {
    pub(crate) fn load(frames: Frames, out_ifindex: u32) -> Result<Self> {
        let ebpf = EbpfLoader::new()
            .override_global("FRAME_BYTES", &frames.bytes, true)
            .override_global("V6", &u8::from(frames.v6), true)
            .override_global("ANSWERED", &(frames.answered as u8), true)
            .override_global("FLOW_MASK", &frames.flow_mask, true)
            .override_global("OUT_IFINDEX", &out_ifindex, true)
            .load(BENCH)
            .context("cannot load the bench's programs (are you root?)")?;
        Ok(Self { ebpf, tested: None })
    }

    /// Loads one of the programs.
    pub(crate) fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        Ok(program)
    }

    /// Puts a program of this object behind the wrapper.
    pub(crate) fn test_own(&mut self, name: &str) -> Result<()> {
        let tested = self.program(name)?.fd()?.try_clone()?;
        self.test(&tested)
    }

    /// Puts a program behind the wrapper. The kernel empties the array when its last user goes, so it is kept.
    pub(crate) fn test(&mut self, program: &ProgramFd) -> Result<()> {
        let map = self.ebpf.take_map("TESTED").context("TESTED")?;
        let mut tested = ProgramArray::try_from(map)?;
        tested.set(0, program, 0)?;
        self.tested = Some(tested);
        self.program("wrap")?;
        Ok(())
    }

    /// Frames that `sink` saw.
    pub(crate) fn seen(&self) -> Result<u64> {
        let map = self.ebpf.map("SEEN").context("SEEN")?;
        let seen = PerCpuArray::<_, u64>::try_from(map)?;
        Ok(seen.get(&0, 0)?.iter().sum())
    }

    pub(crate) fn attach(
        &mut self,
        name: &str,
        interface: &str,
    ) -> Result<aya::programs::xdp::XdpLinkId> {
        let program = self.program(name)?;
        Ok(program.attach(interface, XdpMode::Driver)?)
    }
}

/// The kernel's jiffies, now.
pub(crate) fn jiffies() -> Result<u64> {
    let mut wrapper = Wrapper::load(
        Frames {
            bytes: 0,
            v6: false,
            answered: Answered::No,
            flow_mask: 0,
        },
        0,
    )?;
    wrapper.program("clock")?.test_run(TestRunOptions {
        data_in: Some(&[0; 64]),
        ..TestRunOptions::default()
    })?;
    let map = wrapper.ebpf.map("JIFFIES").context("JIFFIES")?;
    Ok(Array::<_, u64>::try_from(map)?.get(&0, 0)?)
}
