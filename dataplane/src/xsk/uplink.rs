//! Sockets on the queues of a NIC: in zero-copy mode where the driver has it, else by copying.
//!
//! Each registers its worker's memory again, as a UMEM of its own: sockets that share a UMEM share
//! its mode, and those of the pods can only copy. There is no TX metadata, whose checksum flag few
//! drivers know: what leaves by a wire has its checksum from the worker.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustix::net::xdp::{SocketAddrXdpFlags, XdpOptionsFlags};

use super::area::Area;
use super::program::AttachMode;
use super::socket::{
    Memory, Queue, RingSizes, Sends, Socket, SocketError, SocketFeatures, bind_until,
};
use crate::frame::{CHAIN_MAX, FRAME_BYTES, HEADROOM};

/// Descriptors of a packet that every driver takes which takes several: i40e and ice have eight
/// (`xdp-zc-max-segs` of Documentation/netlink/specs/netdev.yaml says it of a device). A frame of
/// 9018 bytes needs three.
const ZERO_COPY_SEGMENTS: usize = 8;

/// Largest MTU whose Ethernet frames fit into one of ours, behind the kernel's headroom.
pub const ONE_FRAME_MTU: u32 = FRAME_BYTES as u32 - HEADROOM as u32 - 14;

/// A queue to bind, and how.
#[derive(Clone, Copy, Debug)]
pub struct UplinkBind<'a> {
    /// The queue.
    pub queue: Queue<'a>,
    /// Memory of the worker that will own the port.
    pub area: &'a Arc<Area>,
    /// Sizes of the rings.
    pub sizes: RingSizes,
    /// What sockets can do here. `tx_checksum` is of no account.
    pub features: SocketFeatures,
    /// MTU of the interface: packets of several frames are not given up for zero-copy.
    pub mtu: u32,
    /// Where the XDP program of the interface runs; it is attached before.
    pub attached: AttachMode,
    /// How long a queue in use (`EBUSY`) is waited for, since the kernel releases a dead process's
    /// sockets some time after its death.
    pub deadline: Duration,
    /// Frames for the fill ring, from [`super::socket::lend`]: drivers misbehave when it is empty
    /// at the bind. They are the socket's if it is bound, else still the lender's.
    pub fill: &'a [u64],
}

/// How a queue and its socket exchange packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueMode {
    /// The NIC reads and writes the worker's memory; `XDP_OPTIONS` says so.
    pub zero_copy: bool,
    /// Packets of several frames come and go: wires with jumbo frames.
    pub multi_buffer: bool,
    /// Why it is not zero-copy, if it is not: the kernel's answer.
    pub refused: Option<String>,
}

impl fmt::Display for QueueMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.zero_copy { "zero-copy" } else { "copy" })?;
        f.write_str(if self.multi_buffer { "" } else { ", one frame per packet" })?;
        match &self.refused {
            Some(reason) => write!(f, " (no zero-copy: {reason})"),
            None => Ok(()),
        }
    }
}

/// One way to bind.
#[derive(Clone, Copy, Debug)]
struct Way {
    zero_copy: bool,
    multi_buffer: bool,
}

impl Way {
    /// From the best to the one that always works.
    const ALL: [Way; 4] = [
        Way { zero_copy: true, multi_buffer: true },
        Way { zero_copy: true, multi_buffer: false },
        Way { zero_copy: false, multi_buffer: true },
        Way { zero_copy: false, multi_buffer: false },
    ];

    /// Those to try here, and why others are not.
    fn of(bind: &UplinkBind<'_>) -> (Vec<Way>, Option<String>) {
        let UplinkBind { features, mtu, attached, .. } = *bind;
        let mut ways = Way::ALL.to_vec();
        ways.retain(|way| features.multi_buffer || !way.multi_buffer);
        if attached == AttachMode::Generic {
            ways.retain(|way| !way.zero_copy);
            return (ways, Some("the XDP program of the interface runs in generic mode".into()));
        }
        if mtu <= ONE_FRAME_MTU {
            return (ways, None);
        }
        // Drivers drop larger packets then, or hide them from the XDP program.
        ways.retain(|way| way.multi_buffer || !way.zero_copy);
        let reason = format!("packets of one frame end at MTU {ONE_FRAME_MTU}, and this is {mtu}");
        (ways, Some(reason))
    }

    fn flags(self) -> SocketAddrXdpFlags {
        let mode = if self.zero_copy {
            SocketAddrXdpFlags::XDP_ZEROCOPY
        } else {
            SocketAddrXdpFlags::XDP_COPY
        };
        let mut flags = mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        flags.set(SocketAddrXdpFlags::XDP_USE_SG, self.multi_buffer);
        flags
    }

    fn sends(self) -> Sends {
        let segments_max = match (self.multi_buffer, self.zero_copy) {
            (false, _) => 1,
            (true, true) => ZERO_COPY_SEGMENTS,
            (true, false) => CHAIN_MAX,
        };
        Sends { tx_metadata: false, segments_max, zero_copy: self.zero_copy }
    }
}

impl Socket {
    /// Makes and binds a socket on a queue of an uplink: by zero-copy if the driver lets it, with
    /// packets of several frames if that goes; else by copying.
    ///
    /// # Errors
    /// What the kernel said to the last way.
    pub fn bind_uplink(bind: UplinkBind<'_>) -> Result<(Socket, QueueMode), SocketError> {
        let end = Instant::now() + bind.deadline;
        let (mut ways, ruled_out) = Way::of(&bind);
        let mut denied = None;
        let last = ways.pop().expect("copying is never ruled out");
        for way in ways {
            match try_bind(&bind, way, end) {
                Ok(socket) => {
                    return answer(bind.queue, socket, way, because(denied, ruled_out));
                }
                Err(SocketError { source, .. }) if way.zero_copy => {
                    denied = Some(source.to_string());
                }
                Err(_) => {}
            }
        }
        let socket = try_bind(&bind, last, end)?;
        answer(bind.queue, socket, last, because(denied, ruled_out))
    }
}

/// Why there is no zero-copy: what the driver said, and what was not asked of it.
fn because(denied: Option<String>, ruled_out: Option<String>) -> Option<String> {
    match (denied, ruled_out) {
        (Some(denied), Some(ruled_out)) => Some(format!("{denied}; {ruled_out}")),
        (denied, ruled_out) => denied.or(ruled_out),
    }
}

/// A socket of its own for each way: the kernel remembers of memory once registered that packets of
/// several frames were asked for (net/xdp/xsk_buff_pool.c, xp_assign_dev).
fn try_bind(bind: &UplinkBind<'_>, way: Way, end: Instant) -> Result<Socket, SocketError> {
    let UplinkBind { queue, area, sizes, features, fill, .. } = *bind;
    let mut socket = Socket::prepare(queue, area, Some(0), sizes, features, way.sends())?;
    let room = socket.fill.room(sizes.fill) as usize;
    assert!(fill.len() <= room, "no more frames are lent than the fill ring has room for");
    fill.iter().for_each(|address| socket.fill.push(*address));
    socket.fill.commit();
    let bound = bind_until(&socket.fd, queue, Memory::Own, way.flags(), end);
    queue.step("bind", bound)?;
    Ok(socket)
}

/// Asks the bound socket what it is.
fn answer(
    queue: Queue<'_>,
    socket: Socket,
    way: Way,
    refused: Option<String>,
) -> Result<(Socket, QueueMode), SocketError> {
    let zero_copy = queue.step("read mode", is_zero_copy(socket.fd.as_fd()))?;
    let refused = refused.filter(|_| !zero_copy);
    Ok((socket, QueueMode { zero_copy, multi_buffer: way.multi_buffer, refused }))
}

/// Whether a bound socket is in zero-copy mode (`XDP_OPTIONS`).
fn is_zero_copy(socket: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let options = sockopt::xdp_options(socket)?;
    Ok(options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(multi_buffer: bool, mtu: u32, attached: AttachMode) -> (Vec<(bool, bool)>, bool) {
        let area = Arc::new(Area::map(1).expect("memory"));
        let bind = UplinkBind {
            queue: Queue { device: "nic", ifindex: 1, queue: 0 },
            area: &area,
            sizes: RingSizes { fill: 2, completion: 2, rx: 2, tx: 2 },
            features: SocketFeatures { multi_buffer, tx_checksum: true, tx_budget: true },
            mtu,
            attached,
            deadline: Duration::ZERO,
            fill: &[],
        };
        let (ways, reason) = Way::of(&bind);
        let ways = ways.iter().map(|way| (way.zero_copy, way.multi_buffer));
        (ways.collect(), reason.is_some())
    }

    #[test]
    fn zero_copy_comes_first_unless_it_would_cost_packets() {
        use AttachMode::{Generic, Native};
        let all = vec![(true, true), (true, false), (false, true), (false, false)];
        assert_eq!(ways(true, 1500, Native), (all.clone(), false));
        assert_eq!(ways(true, 3826, Native), (all, false));
        let several = vec![(true, true), (false, true), (false, false)];
        assert_eq!(ways(true, 3827, Native), (several, true));
        assert_eq!(ways(false, 1500, Native), (vec![(true, false), (false, false)], false));
        assert_eq!(ways(true, 1500, Generic), (vec![(false, true), (false, false)], true));
        assert_eq!(ways(false, 9000, Generic), (vec![(false, false)], true));
    }

    #[test]
    fn a_mode_says_what_it_lacks() {
        let best = QueueMode { zero_copy: true, multi_buffer: true, refused: None };
        assert_eq!(best.to_string(), "zero-copy");
        let refused = because(Some("no driver".into()), Some("MTU".into()));
        let copy = QueueMode { zero_copy: false, multi_buffer: false, refused };
        assert_eq!(copy.to_string(), "copy, one frame per packet (no zero-copy: no driver; MTU)");
    }
}
