//! Reads a policy's `syn`: whether SYNs are answered, with what, and what cookies say of the backends.

use std::time::Duration;

use sluice_ebpf::cookie::MAX_SCALE;

use super::{
    keys,
    model::{Defence, Policy, Pop, Syn, SynAnswer, SynMode},
    read_policy::PPS_MAX,
    section::{Field, Section},
};

/// What becomes of SYNs.
pub(super) fn syn(field: &Field<'_>) -> Option<Syn> {
    let table = field.table(&keys::SYN)?;
    let default = Syn::default();
    let mode = table
        .required("mode", "\"auto\"")
        .and_then(|field| field.word(MODES));
    let defence = table.or("defence", default.defence, |field| field.word(DEFENCES));
    let monitor = table.or("monitor", default.monitor, |field| field.boolean());
    let pps = |key, default| table.or(key, default, |field| field.integer(1..=PPS_MAX));
    let (above_pps, again_pps) = (
        pps("above_pps", default.above_pps),
        pps("again_pps", default.again_pps),
    );
    let hold = table.or("hold", default.hold, |field| {
        field.duration(HOLD_MIN..=HOLD_MAX)
    });
    let answer = answer(&table);
    let defence = defence?;
    let (others, why): (&[&'static str], _) = match defence {
        Defence::Challenge => (
            &keys::SYN_COOKIE,
            "is about answers with cookies; it goes with `defence = \"cookie\"`",
        ),
        Defence::Cookie => (
            &keys::SYN_CHALLENGE,
            "is about challenges; with cookies, the policy's `out_of_state` says how much is let in without one",
        ),
    };
    for key in others {
        if let Some(field) = table.get(key) {
            field.error(|| format!("`{key}` {why}"));
        }
    }
    Some(Syn {
        mode: mode?,
        defence,
        monitor: monitor?,
        above_pps: above_pps?,
        hold: hold?,
        again_pps: again_pps?,
        answer: answer?,
    })
}

fn answer(table: &Section<'_>) -> Option<SynAnswer> {
    let default = SynAnswer::default();
    let switch = |key, default| table.or(key, default, |field| field.boolean());
    let mss = table.optional("mss", |field| field.integer(MSS_LEAST..=u16::MAX));
    let window_scale = table.or("window_scale", default.window_scale, |field| {
        field.integer(0..=MAX_SCALE)
    });
    let window = table.or("window", default.window, |field| {
        field.integer(1..=u16::MAX)
    });
    let (sack, timestamps) = (
        switch("sack", default.sack),
        switch("timestamps", default.timestamps),
    );
    let ecn = switch("ecn", default.ecn);
    Some(SynAnswer {
        mss: mss?,
        window_scale: window_scale?,
        window: window?,
        sack: sack?,
        timestamps: timestamps?,
        ecn: ecn?,
    })
}

/// Backends can check cookies only with the secret that they were made with.
pub(super) fn secret(policies: &[Policy], tables: &[Section<'_>], pop: Option<&Pop>) {
    if pop.is_none_or(|pop| pop.secret_file.is_some()) {
        return;
    }
    let with_cookies = policies
        .iter()
        .filter(|policy| policy.syn.defence == Defence::Cookie);
    for policy in with_cookies {
        let named = |table: &&Section<'_>| {
            table.get("name").and_then(|field| field.text()) == Some(&*policy.name)
        };
        let table = tables.iter().find(named);
        if let Some(field) = table.and_then(|table| table.get("syn")) {
            field.error(|| {
                "cookies need the secret that the backends check them with; write `secret_file = \"/etc/sluice/secret\"` in `[pop]`".into()
            });
        }
    }
}

const MODES: &[(&str, SynMode)] = &[
    ("off", SynMode::Off),
    ("auto", SynMode::Auto),
    ("always", SynMode::Always),
];
const DEFENCES: &[(&str, Defence)] = &[
    ("challenge", Defence::Challenge),
    ("cookie", Defence::Cookie),
];
const HOLD_MIN: Duration = Duration::from_secs(1);
const HOLD_MAX: Duration = Duration::from_secs(60 * 60);
/// What every host takes (RFC 9293, 3.7.1).
const MSS_LEAST: u16 = 536;
