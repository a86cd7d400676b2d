//! A row of the verdict table: a frame, what must become of it, and that no cut of it ever reaches a backend.

use anyhow::{Context as _, Result, bail, ensure};
use sluice_ebpf::abi::{Backend, DropReason, Forward, NO_VIP, maps};

use crate::{
    decode,
    packet::{Family, Packet},
    rig::{Action, Counted, Ran, Rig},
    world::INGRESS,
};

/// The shortest frame that the kernel's test run takes.
pub(crate) const LEAST_FRAME: usize = 14;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) packet: Packet,
    pub(crate) expect: Expect,
    frame: Vec<u8>,
    cut: Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The host gets it untouched, and it counts for no VIP.
    Pass,
    Drop(DropReason),
    /// The backend of this number gets it.
    Sent(u16),
    /// The sender gets an echo reply.
    EchoReply,
    /// The sender is told this MTU.
    TooBig(u16),
    /// The sender gets a TCP reset.
    Reset,
    /// The sender of a SYN gets an answer that acknowledges what it never sent.
    Challenge,
    /// The sender of a SYN gets the answer that a backend would send, with a cookie for its number.
    Cookie,
}

/// What becomes of a frame that ends inside its packet, but not inside the fixed IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The host gets it: it is not for a VIP, or its protocol is not ours.
    Passes,
    /// Dropped as truncated, or for the row's own reason.
    Drops,
    /// Dropped as truncated up to this offset, where the protocol is found not to be ours.
    PassesFrom(usize),
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, packet: Packet, expect: Expect) -> Self {
        let frame = packet.frame();
        let name = format!("{:?}: {}", packet.family(), name.into());
        let cut = match expect {
            Expect::Pass => Cut::Passes,
            _ => Cut::Drops,
        };
        Self {
            name,
            packet,
            expect,
            frame,
            cut,
        }
    }

    /// Passes as a whole, but is for a VIP's address and of a protocol that is ours.
    pub(crate) fn cut_is_dropped(mut self) -> Self {
        self.cut = Cut::Drops;
        self
    }

    /// Its protocol is known not to be ours only behind this many bytes of extension headers.
    pub(crate) fn cut_passes_behind(mut self, extension_bytes: usize) -> Self {
        let start = self.packet.ip_offset() + self.packet.family().header_bytes();
        self.cut = Cut::PassesFrom(start + extension_bytes);
        self
    }

    /// Changes bytes from the IP header on, without correcting anything else.
    pub(crate) fn patch(mut self, change: impl FnOnce(&mut [u8])) -> Self {
        change(&mut self.frame[self.packet.ip_offset()..]);
        self
    }

    /// Length from the IP header on, as the header has it.
    fn ip_length(&self) -> usize {
        let ip = &self.frame[self.packet.ip_offset()..];
        let field = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
        match self.packet.family() {
            Family::V4 => field(2),
            Family::V6 => 40 + field(4),
        }
    }
}

/// Runs all rows on one program, whole and cut, and tells all that is wrong.
#[track_caller]
pub(crate) fn check_all(rig: &mut Rig, rows: &[Row]) {
    assert!(!rows.is_empty());
    let mut wrong = vec![];
    for row in rows {
        if let Err(error) = check(rig, row).and_then(|()| check_cuts(rig, row)) {
            wrong.push(format!("{}: {error:#}", row.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
}

/// Runs a row twice: verdict, counters and every byte that leaves; both times the same.
pub(crate) fn check(rig: &mut Rig, row: &Row) -> Result<()> {
    let first = check_once(rig, row)?;
    let second = check_once(rig, row).context("the second time")?;
    ensure!(first == second, "one flow left in two ways");
    Ok(())
}

/// Runs a row, and checks all that is to be seen of it.
pub(crate) fn check_once(rig: &mut Rig, row: &Row) -> Result<Ran> {
    let before = rig.counts(row.packet.to);
    let ran = rig.run(&row.frame);
    let counted = (rig.counts(row.packet.to) - before).packets();
    check_verdict(rig, row, &ran)?;
    check_counters(rig, row, &ran, &counted)?;
    Ok(ran)
}

fn check_verdict(rig: &Rig, row: &Row, ran: &Ran) -> Result<()> {
    let (expected, out) = match row.expect {
        Expect::Pass => (Action::Pass, decode::same(&row.frame, &ran.frame)),
        Expect::Drop(_) => (Action::Drop, Ok(())),
        Expect::EchoReply => (Action::Tx, decode::echo_reply(&row.packet, &ran.frame)),
        Expect::TooBig(mtu) => (Action::Tx, decode::too_big(&row.packet, mtu, &ran.frame)),
        Expect::Challenge => (Action::Tx, decode::challenge(&row.packet, &ran.frame)),
        Expect::Cookie => (Action::Tx, decode::cookie(&row.packet, &ran.frame)),
        Expect::Reset => (Action::Tx, decode::reset(&row.packet, &ran.frame)),
        Expect::Sent(number) => {
            let backend: Backend = rig.get(maps::BACKENDS, number.into());
            (
                exit(&backend),
                decode::sent(&row.packet, &backend, &ran.frame),
            )
        }
    };
    if ran.action != expected {
        bail!("{:?} instead of {expected:?}", ran.action);
    }
    out
}

fn exit(backend: &Backend) -> Action {
    if backend.forward == Forward::Local as u8 {
        Action::Pass
    } else if backend.ifindex == INGRESS {
        Action::Tx
    } else {
        Action::Redirect
    }
}

/// A packet is counted once, with its bytes, for a VIP of its destination; and once for its backend.
fn check_counters(rig: &Rig, row: &Row, ran: &Ran, counted: &[(Counted, u64, u64)]) -> Result<()> {
    let once = |what| (what, 1, row.ip_length() as u64);
    let Some((first, _, _)) = counted.first() else {
        bail!("not counted");
    };
    let (Counted::Dropped(vip, _)
    | Counted::Passed(vip)
    | Counted::Transmitted(vip)
    | Counted::Redirected(vip)) = *first
    else {
        bail!("counted {counted:?}");
    };
    let left = match ran.action {
        Action::Pass => Counted::Passed(vip),
        Action::Tx => Counted::Transmitted(vip),
        _ => Counted::Redirected(vip),
    };
    let expected = match row.expect {
        Expect::Drop(reason) => vec![once(Counted::Dropped(vip, reason))],
        Expect::Sent(backend) => vec![once(left), once(Counted::ToBackend(backend))],
        _ => vec![once(left)],
    };
    ensure!(
        counted == expected,
        "counted {counted:?} instead of {expected:?}"
    );
    if row.expect == Expect::Pass {
        ensure!(vip == NO_VIP, "counted for VIP {vip}");
    } else {
        let service = vip.checked_sub(1).map(|at| &rig.services[usize::from(at)]);
        ensure!(
            service.is_some_and(|service| service.prefix.contains(&row.packet.to)),
            "counted for VIP {vip}"
        );
    }
    Ok(())
}

/// Runs every shorter part of the frame: a packet that is not whole never goes to a backend or back to its sender.
pub(crate) fn check_cuts(rig: &mut Rig, row: &Row) -> Result<()> {
    let ip_offset = row.packet.ip_offset();
    let packet_end = ip_offset + row.ip_length();
    let fixed_end = ip_offset + row.packet.family().header_bytes();
    let whole = rig.run(&row.frame).action;
    let before = rig.counts(row.packet.to);
    let mut drops = 0;
    for length in LEAST_FRAME..row.frame.len() {
        let ran = rig.run(&row.frame[..length]);
        let passes = match row.cut {
            Cut::Passes => true,
            Cut::Drops => false,
            Cut::PassesFrom(offset) => length >= offset,
        };
        let expected = if length >= packet_end {
            whole
        } else if length < fixed_end || passes {
            Action::Pass
        } else {
            Action::Drop
        };
        ensure!(
            ran.action == expected,
            "cut to {length}: {:?} instead of {expected:?}",
            ran.action
        );
        if ran.action == Action::Pass {
            decode::same(&row.frame[..length], &ran.frame)?;
        }
        drops += u64::from(ran.action == Action::Drop);
    }
    let counted = (rig.counts(row.packet.to) - before).packets();
    let counted_drops: u64 = counted
        .iter()
        .filter_map(|(what, packets, _)| match what {
            Counted::Dropped(_, reason)
                if *reason == DropReason::Truncated || row.expect == Expect::Drop(*reason) =>
            {
                Some(packets)
            }
            _ => None,
        })
        .sum();
    ensure!(
        counted_drops == drops,
        "{drops} cuts dropped, but counted {counted:?}"
    );
    Ok(())
}
