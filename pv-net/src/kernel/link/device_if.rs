//! The device's own interface beside the macvlan interfaces of containers.

use crate::kernel::netlink::{Net, NetError, add_with_alias};
use crate::plan::DeviceIf;
use rtnetlink::packet_route::link::MacVlanMode;
use rtnetlink::{LinkMacVlan, LinkMessageBuilder};

impl Net {
    /// Makes the interface, down. In the kernel's mode `vepa` it takes frames from no other macvlan but by the parent. The
    /// kernel gives it a random MAC: one that a container can guess, the container can take, and then the interface cannot be
    /// set up.
    ///
    /// # Errors
    /// When the kernel refuses, such as `EEXIST`; there is no new link then.
    pub async fn make_device_if(&self, own: &DeviceIf) -> Result<(), NetError> {
        let name = own.name.as_str();
        let message =
            LinkMessageBuilder::<LinkMacVlan>::new(name).link(own.parent).mode(MacVlanMode::Vepa).mtu(own.mtu).build();
        add_with_alias("make link", name, message, &own.alias).await
    }
}
