//! Samples: all cases in turn, round after round, so that the machine's moods meet all alike.

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions, Xdp};

use crate::{
    balancer::{Balancer, Table},
    cases::{Case, Path, State},
    wrapper::{Answered, Frames, Wrapper, jiffies},
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: u32,
    pub(crate) repeats: u32,
}

/// The samples of one row, in ns per packet.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    pub(crate) name: String,
    pub(crate) ns: Vec<f64>,
    /// Index of the floor's row, unless this is one.
    pub(crate) floor: Option<usize>,
}

pub(crate) struct Balancers {
    ordinary: Balancer,
    named: Balancer,
    filtered: Balancer,
    full: Balancer,
    exhausted: Balancer,
}

impl Balancers {
    pub(crate) fn load() -> Result<Self> {
        let now = jiffies()?;
        let table = |flows, buckets| Table { flows, buckets };
        let mut this = Self {
            ordinary: Balancer::load(table(1 << 17, 1 << 17), now)?,
            named: Balancer::load(table(1 << 17, 1 << 17), now)?,
            filtered: Balancer::load(table(1 << 17, 1 << 17), now)?,
            full: Balancer::load(table(1 << 20, 1 << 19), now)?,
            exhausted: Balancer::load(table(1, 1 << 10), now)?,
        };
        this.ordinary.insert_exact(0)?;
        this.named.insert_exact(1 << 16)?;
        this.filtered.insert_exact(0)?;
        this.filtered.limit_established()?;
        this.exhausted.exhaust_sketch(now)?;
        Ok(this)
    }

    pub(crate) fn of(&mut self, state: State) -> &mut Balancer {
        match state {
            State::Ordinary => &mut self.ordinary,
            State::Named => &mut self.named,
            State::Filtered => &mut self.filtered,
            State::Full => &mut self.full,
            State::Exhausted => &mut self.exhausted,
        }
    }
}

/// One row while it is measured.
struct Row<'a> {
    wrapper: Wrapper,
    frame: &'a [u8],
    action: u32,
    /// `None` for a floor.
    case: Option<&'a Case>,
}

/// Measures the floors that the cases need, then the cases, in the order of the result.
pub(crate) fn run(
    cases: &[Case],
    balancers: &mut Balancers,
    effort: Effort,
) -> Result<Vec<Samples>> {
    let (mut rows, mut samples) = (Vec::new(), Vec::new());
    let mut floors: Vec<(Frames, &str, usize)> = Vec::new();
    for case in cases {
        let wanted = |(frames, program, _): &&(Frames, &str, usize)| {
            *frames == case.frames && *program == case.path.floor()
        };
        if floors.iter().find(wanted).is_none() {
            floors.push((case.frames, case.path.floor(), rows.len()));
            let row = own(case, case.path.floor(), case.path.action())?;
            add(&mut rows, &mut samples, floor_name(case), None, row);
        }
    }
    if let Some(case) = cases
        .iter()
        .find(|case| case.path == Path::Known && !case.frames.v6)
    {
        let floor = floors.iter().find(|(frames, ..)| *frames == case.frames);
        let floor = floor.map(|&(.., index)| index);
        let row = own(case, "ipip", 3)?;
        add(
            &mut rows,
            &mut samples,
            "minimal_ipip_tx".into(),
            floor,
            row,
        );
        let row = own(case, "parse_and_drop", 1)?;
        add(&mut rows, &mut samples, "parse_and_drop".into(), floor, row);
    }
    for case in cases {
        let floor = floors
            .iter()
            .find(|(frames, program, _)| *frames == case.frames && *program == case.path.floor());
        let floor = floor.map(|&(.., index)| index);
        let mut wrapper = Wrapper::load(case.frames, 0)?;
        wrapper.test(balancers.of(case.state).program().fd()?)?;
        let row = Row {
            wrapper,
            frame: &case.frame,
            action: case.path.action(),
            case: Some(case),
        };
        add(&mut rows, &mut samples, case.name.to_owned(), floor, row);
    }

    // The first round warms up.
    for round in 0..=effort.rounds {
        for (row, samples) in rows.iter_mut().zip(&mut samples) {
            let ns = sample(row, balancers, effort.repeats, round)
                .with_context(|| samples.name.clone())?;
            if round > 0 {
                samples.ns.push(ns);
            }
        }
    }
    for case in cases.iter().filter(|case| case.path == Path::Known) {
        balancers
            .of(case.state)
            .check_flow(case.target, jiffies()?)?;
    }
    for case in cases.iter().filter(|case| case.state == State::Named) {
        let sent = u64::from(effort.repeats) * u64::from(effort.rounds + 1);
        let passed = balancers.of(case.state).exact_passed()?;
        ensure!(
            passed >= sent,
            "{}: {passed} of {sent} packets met an exact limit",
            case.name
        );
    }
    Ok(samples)
}

fn own<'a>(case: &'a Case, program: &str, action: u32) -> Result<Row<'a>> {
    let mut wrapper = Wrapper::load(case.frames, 0)?;
    wrapper.test_own(program)?;
    Ok(Row {
        wrapper,
        frame: &case.frame,
        action,
        case: None,
    })
}

fn add<'a>(
    rows: &mut Vec<Row<'a>>,
    samples: &mut Vec<Samples>,
    name: String,
    floor: Option<usize>,
    row: Row<'a>,
) {
    rows.push(row);
    samples.push(Samples {
        name,
        ns: Vec::new(),
        floor,
    });
}

fn floor_name(case: &Case) -> String {
    let flows = match case.frames.flow_mask {
        0 => "",
        0x3ff => "_1k_flows",
        0xffff => "_64k_flows",
        0xf_ffff => "_1m_flows",
        _ => "_new_flows",
    };
    let what = match case.frames.answered {
        Answered::No => "",
        Answered::Echo => "_echo",
        Answered::ToSyn => "_syn_ack",
    };
    let family = if case.frames.v6 { 6 } else { 4 };
    format!(
        "floor_{}_v{family}{what}_{}b{flows}",
        case.path.floor(),
        case.frames.bytes
    )
}

/// ns per packet. Fails if the packets did not go the way that the row is about.
fn sample(row: &mut Row<'_>, balancers: &mut Balancers, repeats: u32, round: u32) -> Result<f64> {
    let mut balancer = row.case.map(|case| balancers.of(case.state));
    if let (Some(case), Some(balancer)) = (row.case, &mut balancer) {
        balancer.set_exact(case.exact)?;
        if case.rules > 0 {
            balancer.set_rules(case.rules)?;
        }
        balancer.set_denied(case.denied)?;
        if case.watched {
            balancer.watch()?;
        }
        if case.path == Path::Challenge {
            balancer.forget_syns(round.into())?;
        }
    }
    let counters = |balancer: &Option<&mut Balancer>| match (row.case, balancer) {
        (Some(case), Some(balancer)) => balancer
            .counters(case.path.counted_at(case.target))
            .map(Some),
        _ => Ok(None),
    };
    let program = row.wrapper.program("wrap")?;
    let before = counters(&balancer)?;
    let ns = time(program, row.frame, row.action, repeats)?;
    if let (Some(case), Some(before), Some(after)) = (row.case, before, counters(&balancer)?) {
        let counted = after.since(&before);
        let taken = case.path.taken(&counted);
        // A few find their bucket full, or a cell that others filled.
        ensure!(
            taken >= u64::from(repeats) - u64::from(repeats) / 500,
            "{taken} of {repeats} packets went the way that this row is about: {counted:?}"
        );
    }
    Ok(ns)
}

/// ns per run, by the kernel's own clock: the whole call also waits for grace periods of RCU, which last jiffies.
fn time(program: &Xdp, frame: &[u8], action: u32, repeats: u32) -> Result<f64> {
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        repeat: repeats,
        ..TestRunOptions::default()
    })?;
    ensure!(
        result.return_value == action,
        "the program returned {}, not {action}",
        result.return_value
    );
    Ok(result.duration.as_secs_f64() * 1e9)
}
