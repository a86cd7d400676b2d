//! The interfaces of this host.
use std::io;

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::kernel::{Kernel, KernelError};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// Absent unless it is an Ethernet device.
    pub mac: Option<[u8; 6]>,
    pub mtu_bytes: u32,
    /// Set up by the operator, and with a carrier.
    pub up: bool,
    /// Only VLAN devices have it.
    pub vlan: Option<VlanTag>,
}

/// What a VLAN device does: it puts this tag on, and sends by its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    pub id: u16,
    /// Index of the interface under it. 0 if that is in another namespace, where we can't use it.
    pub parent: u32,
}

/// Why the interfaces could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list this host's network interfaces")]
pub struct InterfacesError(#[from] InterfacesErrorKind);

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
enum InterfacesErrorKind {
    Open(#[from] io::Error),
    Read(#[from] KernelError),
}

/// Lists the interfaces in the calling thread's network namespace.
pub async fn interfaces() -> Result<Vec<Interface>, InterfacesError> {
    let kernel = Kernel::open().map_err(InterfacesErrorKind::Open)?;
    Ok(kernel.links().await.map_err(InterfacesErrorKind::Read)?)
}

/// The index of the interface with this name, in the calling thread's network namespace.
pub fn if_index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// The name of the interface with this index, or the index where it is gone.
pub fn if_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index).map_or_else(
        |_gone| index.to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

impl Interface {
    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu_bytes: 0,
            up: message
                .header
                .flags
                .contains(LinkFlags::Up | LinkFlags::Running),
            vlan: None,
        };
        let (mut id, mut parent, mut parent_is_elsewhere) = (None, 0, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Mtu(mtu_bytes) => interface.mtu_bytes = *mtu_bytes,
                LinkAttribute::Address(mac)
                    if message.header.link_layer_type == LinkLayerType::Ether =>
                {
                    interface.mac = mac.as_slice().try_into().ok();
                }
                LinkAttribute::Link(index) => parent = *index,
                LinkAttribute::LinkNetNsId(_) => parent_is_elsewhere = true,
                LinkAttribute::LinkInfo(infos) => id = vlan_id(infos),
                _ => {}
            }
        }
        if parent_is_elsewhere {
            parent = 0;
        }
        interface.vlan = id.map(|id| VlanTag { id, parent });
        interface
    }
}

fn vlan_id(infos: &[LinkInfo]) -> Option<u16> {
    if !infos
        .iter()
        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vlan)))
    {
        return None;
    }
    infos
        .iter()
        .filter_map(|info| match info {
            LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
            _ => None,
        })
        .flatten()
        .find_map(|attribute| match attribute {
            InfoVlan::Id(id) => Some(*id),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_device_names_its_tag_and_its_parent() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::Running;
        message.attributes = vec![
            LinkAttribute::IfName("eth0.100".into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(100)])),
            ]),
        ];
        let expected = Interface {
            index: 7,
            name: "eth0.100".into(),
            mac: Some([2, 0, 0, 0, 0, 7]),
            mtu_bytes: 1500,
            up: true,
            vlan: Some(VlanTag { id: 100, parent: 2 }),
        };
        assert_eq!(Interface::from_message(&message), expected);

        message.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(
            Interface::from_message(&message).vlan,
            Some(VlanTag { id: 100, parent: 0 })
        );
    }

    #[test]
    fn up_without_a_carrier_is_down_and_loopback_has_no_mac() {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.link_layer_type = LinkLayerType::Loopback;
        message.attributes = vec![LinkAttribute::Address(vec![0; 6]), LinkAttribute::Link(3)];
        let interface = Interface::from_message(&message);
        assert!(!interface.up);
        assert_eq!(interface.mac, None);
        assert_eq!(
            interface.vlan, None,
            "only VLAN devices have a tag, others may have a parent too"
        );
    }
}
