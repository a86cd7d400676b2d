//! What makes no sense is dropped or counted, as the VIP's policy says of each check.

use core::hint::cold_path;

use aya_ebpf::bindings::xdp_md;

use super::{Verdict, count, maps::settings, pipeline::skip_options, vips};
use crate::{
    abi::{Check, Settings, Step, Vip},
    context::frame,
    packet::{self, Fragment, Ip, L4, Transport},
    sanity,
};

/// What is wrong with a packet, a bit for each check that needs nothing but the packet.
#[inline(always)]
pub fn look(context: *mut xdp_md, ip: &Ip, l4: &L4, transport: &Transport) -> u32 {
    if sanity::is_suspicious(ip, l4, transport) {
        cold_path();
        sluice_wrong(context, ip.offset as u32, ip.v6)
    } else {
        0
    }
}

/// Reads the packet anew, and says what is wrong.
///
/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_wrong(context: *mut xdp_md, ip_offset: u32, v6: bool) -> u32 {
    let (frame, offset) = (frame(context), ip_offset as usize & 31);
    let ip = if v6 {
        packet::ipv6(&frame, offset)
    } else {
        packet::ipv4(&frame, offset)
    };
    let Some(ip) = ip else {
        return 0;
    };
    let Ok(l4) = skip_options(context, &ip) else {
        return 0;
    };
    let Ok(transport) = packet::transport(&frame, &ip, &l4) else {
        return 0;
    };
    let found = sanity::of_packet(&ip, &l4, &transport);
    if matches!(l4.fragment, Fragment::Whole) {
        return found;
    }
    match frame.read::<u16>(sanity::fragment_field(&ip, &l4)) {
        Some(field) => found | sanity::of_fragment(&ip, &l4, &transport, u16::from_be(field)),
        None => found,
    }
}

/// Ends a packet with which something is wrong that the VIP drops for. If nothing is, no word of the VIP is read.
#[inline(always)]
pub fn check(found: u32, ip: &Ip, vip: &Vip, vip_index: u16) -> Result<(), Verdict> {
    if found == 0 {
        return Ok(());
    }
    cold_path();
    judge(found, ip, vip, vip_index)
}

/// The check that looks the source up: not for proven flows, which no forger has.
#[inline(always)]
pub fn check_source(
    settings: &Settings,
    ip: &Ip,
    vip: &Vip,
    vip_index: u16,
) -> Result<(), Verdict> {
    if settings.vip_networks >> sanity::network_bit(ip.v6, ip.source) & 1 == 0
        || !sluice_is_vip(ip.source[0], ip.source[1], ip.v6)
    {
        return Ok(());
    }
    cold_path();
    judge(Check::SourceVip.bit(), ip, vip, vip_index)
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_is_vip(high: u64, low: u64, v6: bool) -> bool {
    settings().is_some_and(|settings| vips::find_address(settings, [high, low], v6).is_some())
}

#[inline(always)]
fn judge(found: u32, ip: &Ip, vip: &Vip, vip_index: u16) -> Result<(), Verdict> {
    let enforced = found & vip.sanity_enforce;
    if enforced != 0 {
        count::note(Step::Sanity);
        return Err(Verdict::Drop(Check::reason(enforced)));
    }
    let monitored = found & vip.sanity_monitor;
    if monitored != 0 {
        count::note(Step::Sanity);
        count::monitored(vip_index, Check::reason(monitored), ip.length);
    }
    Ok(())
}
