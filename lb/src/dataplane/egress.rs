//! Packets that leave by another interface than they came in by: whether the kernel can send them there.
//!
//! A program in the driver hands such packets to the other driver, and that drops in silence what it does not take.

use std::collections::BTreeSet;

use super::{Attached, Mode};
use crate::net::{self, XdpFeatures};

/// For each of these interfaces by which backends are reached, what does not get there: a sentence for the operator.
pub fn lost_redirects(attached: &[Attached], egresses: &BTreeSet<u32>) -> Vec<String> {
    let lost = egresses.iter().filter_map(|&index| {
        let from = senders(attached, index);
        if from.is_empty() {
            return None;
        }
        let sends = net::xdp_features(index)
            .map(|features| features.contains(XdpFeatures::SENDS_REDIRECTED))
            .ok();
        let is_named = attached.iter().any(|attached| attached.index == index);
        sentence(&from, &net::if_name(index), is_named, sends)
    });
    lost.collect()
}

/// Interfaces that hand packets to this one driver to driver. In generic mode any interface takes them.
fn senders(attached: &[Attached], egress: u32) -> Vec<&str> {
    let others = attached
        .iter()
        .filter(|attached| attached.index != egress && attached.mode == Mode::Native);
    others.map(|attached| attached.name.as_str()).collect()
}

/// `sends` is what the driver says of itself, which it does since Linux 6.3.
fn sentence(from: &[&str], egress: &str, is_named: bool, sends: Option<bool>) -> Option<String> {
    let are = match sends {
        Some(true) => return None,
        Some(false) => "are",
        // Most drivers do while they have a program.
        None if is_named => return None,
        None => "may be",
    };
    let cure = if is_named {
        "use another card, or `mode = \"generic\"`; of a veth, give the other end an XDP program or GRO".to_owned()
    } else {
        format!("name {egress} in `interfaces` too")
    };
    let from = from.join(", ");
    Some(format!(
        "packets that come in by {from} for backends behind {egress} {are} lost: {egress} does not send what XDP redirects to it; {cure}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(name: &str, index: u32, mode: Mode) -> Attached {
        Attached {
            name: name.to_owned(),
            index,
            mode,
        }
    }

    #[test]
    fn packets_that_leave_where_they_came_in_are_not_redirected() {
        let native = [attached("eth0", 2, Mode::Native)];
        assert_eq!(senders(&native, 3), ["eth0"]);
        assert!(senders(&native, 2).is_empty());
        assert!(senders(&[attached("eth0", 2, Mode::Generic)], 3).is_empty());
    }

    #[test]
    fn what_is_lost_is_told_with_what_to_do() {
        let told = |is_named, sends| sentence(&["eth0"], "eth1", is_named, sends);
        assert_eq!(told(false, Some(true)), None, "its driver says so");
        assert_eq!(told(true, None), None);
        let lost = told(false, Some(false)).unwrap();
        assert!(lost.contains("eth0 for backends behind eth1 are lost"));
        assert!(lost.ends_with("; name eth1 in `interfaces` too"), "{lost}");
        assert!(told(false, None).unwrap().contains("may be lost"));
        assert!(told(true, Some(false)).unwrap().contains("generic"));
    }
}
