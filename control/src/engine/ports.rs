//! What ports can be here: everything the kernel has (`full`), or what kernel 6.1 has (`basic`).
//!
//! A pod's mode is chosen at its ADD and stays as long as the attachment: its device MTU, offloads
//! and marker are inside of its namespace, which only a request brings along. So after a restart
//! with another `port_mode` pods of both modes live side by side, and the sockets and the node port
//! are as full as the fullest of them.

use dataplane::xsk::socket::{SocketFeatures, probe};

use crate::config::{Config, MTU_MAX, PortMode};
use crate::endpoint::Offloads;
use crate::state::PodRecord;

/// Largest route MTU without multi-buffer frames: a page less XDP's headroom and the kernel's
/// bookkeeping at its end (drivers/net/veth.c, `veth_xdp_set`).
pub(super) const ROUTE_MTU_BASIC_MAX: u32 = 3498;

/// How ports are made, found out at start.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// What sockets may use.
    pub features: SocketFeatures,
    /// What the kernels of new pods may leave to us.
    pub offloads: Offloads,
}

impl Ports {
    /// Asks the kernel and the configuration, and looks at the pods that are there.
    pub(super) fn choose<'a>(
        config: &Config,
        mut pods: impl Iterator<Item = &'a PodRecord>,
    ) -> anyhow::Result<Ports> {
        let kernel = probe()?;
        let can = kernel.multi_buffer && kernel.tx_checksum;
        if can && config.workers.port_mode == PortMode::Auto {
            return Ok(Ports { features: kernel, offloads: Offloads::Full });
        }
        if let Some(mtu) = config.node.mtu {
            anyhow::ensure!(
                mtu <= ROUTE_MTU_BASIC_MAX,
                "[node] mtu = {mtu} needs multi-buffer AF_XDP, which this kernel or port_mode = \
                 \"basic\" does not have; set it to {ROUTE_MTU_BASIC_MAX} or less"
            );
        }
        let none = SocketFeatures { multi_buffer: false, tx_checksum: false, tx_budget: false };
        let stays_full = can && pods.any(|pod| pod.offloads == Offloads::Full);
        let features = if stays_full { kernel } else { none };
        Ok(Ports { features, offloads: Offloads::Basic })
    }

    /// What the node's kernel may leave to us at the node port.
    pub(super) fn node(&self) -> Offloads {
        if self.features.multi_buffer { Offloads::Full } else { Offloads::Basic }
    }

    /// Largest route MTU in bytes that is possible here.
    pub(super) fn route_mtu_max(&self) -> u32 {
        match self.offloads {
            Offloads::Full => MTU_MAX,
            Offloads::Basic => ROUTE_MTU_BASIC_MAX,
        }
    }

    /// Device MTU of the node port. In basic mode it takes what pods of any network send.
    pub(super) fn node_device_mtu(&self) -> u32 {
        self.node().device_mtu(ROUTE_MTU_BASIC_MAX)
    }
}
