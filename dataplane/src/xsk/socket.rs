//! Sockets: made, given memory and rings, bound to a queue. The order is the kernel's
//! (Documentation/networking/af_xdp.rst): memory, ring sizes, mapping, fill, bind.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use thiserror::Error;

use super::area::Area;
use super::ring::{CompletionRing, FillRing, RxRing, TxRing};
use crate::frame::{CHAIN_MAX, FRAME_BYTES, FramePool};

/// Bytes before a packet that hold its TX metadata: `struct xsk_tx_metadata` (flags, csum_start,
/// csum_offset, launch_time) is 24 bytes; Documentation/networking/xsk-tx-metadata.rst.
pub const TX_METADATA_BYTES: u32 = 24;

/// `XDP_UMEM_TX_METADATA_LEN`: without it kernels since 6.11 ignore the length.
const UMEM_TX_METADATA_LEN: u32 = 1 << 2;

/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): packets per wake-up in copy mode, 32 without it.
const MAX_TX_SKB_BUDGET: i32 = 9;

/// The least that the kernel takes as budget, and its default.
const TX_SKB_BUDGET_MIN: u32 = 32;

/// Bytes of packets in flight to one interface. The default of 208 KiB is three super-packets;
/// 8 MiB is what the experiments of the design ran with.
const SEND_BUFFER_BYTES: i32 = 8 << 20;

/// Sizes of the rings of a port, in entries; powers of two.
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    /// Fill ring; also the most frames that a port may hold in it.
    pub fill: u32,
    /// Completion ring: at least as large as `tx`, or completions stop transmission.
    pub completion: u32,
    /// Rx ring.
    pub rx: u32,
    /// Tx ring.
    pub tx: u32,
}

/// What sockets of a node can do, found out at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFeatures {
    /// Packets of several descriptors (`XDP_USE_SG`, Linux 6.6) that generic XDP passes on
    /// (Linux 6.9).
    pub multi_buffer: bool,
    /// Checksums by TX metadata (Linux 6.8).
    pub tx_checksum: bool,
    /// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17).
    pub tx_budget: bool,
}

/// Why a socket could not be made: the step that failed.
#[derive(Debug, Error)]
#[error("{step} for {device} queue {queue}: {source}{}", mend(.source))]
pub struct SocketError {
    /// What was done.
    pub step: &'static str,
    /// Name of the interface.
    pub device: String,
    /// Queue of it.
    pub queue: u32,
    /// The kernel's answer.
    pub source: io::Error,
}

fn mend(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (needs CAP_NET_RAW and CAP_BPF)",
        Some(libc::ENOBUFS | libc::ENOMEM) => " (raise the locked-memory limit or lower frames)",
        Some(libc::EBUSY) => " (another process owns this queue's AF_XDP socket)",
        Some(libc::EAFNOSUPPORT) => " (the kernel lacks CONFIG_XDP_SOCKETS)",
        _ => "",
    }
}

/// Where a socket's memory comes from.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// Register the area: the first socket of a worker.
    Own,
    /// Share what this bound socket has registered.
    Shared(BorrowedFd<'a>),
}

/// Names the queue to bind to.
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    /// Interface name, for messages.
    pub device: &'a str,
    /// Interface index.
    pub ifindex: u32,
    /// Queue.
    pub queue: u32,
}

impl Queue<'_> {
    pub(super) fn step<T, E: Into<io::Error>>(
        &self,
        step: &'static str,
        result: Result<T, E>,
    ) -> Result<T, SocketError> {
        result.map_err(|source| SocketError {
            step,
            device: self.device.to_owned(),
            queue: self.queue,
            source: source.into(),
        })
    }
}

/// What a socket can send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sends {
    /// Checksums are completed by TX metadata.
    pub tx_metadata: bool,
    /// Descriptors of the longest packet.
    pub segments_max: usize,
    /// The NIC takes the frames, when it comes to it.
    pub zero_copy: bool,
}

/// A bound socket with its four rings.
#[derive(Debug)]
pub struct Socket {
    pub(super) fd: OwnedFd,
    pub(super) fill: FillRing,
    pub(super) completion: CompletionRing,
    pub(super) rx: RxRing,
    pub(super) tx: TxRing,
    pub(super) sends: Sends,
    /// Interface and queue.
    pub(super) place: (u32, u32),
    // The memory the kernel writes to lives at least as long as the socket.
    _area: Arc<Area>,
}

impl Socket {
    /// Makes and binds a socket. `prefill` is called with the fill ring before the bind: drivers
    /// misbehave when it is empty. An address in use (`EBUSY`) is retried until `deadline`: the
    /// kernel releases a dead process's sockets some time after its death.
    pub fn bind(
        queue: Queue<'_>,
        area: &Arc<Area>,
        memory: Memory<'_>,
        sizes: RingSizes,
        features: SocketFeatures,
        deadline: Duration,
        prefill: impl FnOnce(&mut FillRing),
    ) -> Result<Socket, SocketError> {
        let tx_metadata = features.tx_checksum;
        let metadata_bytes = if tx_metadata { TX_METADATA_BYTES } else { 0 };
        let registered = matches!(memory, Memory::Own).then_some(metadata_bytes);
        let segments_max = if features.multi_buffer { CHAIN_MAX } else { 1 };
        let sends = Sends { tx_metadata, segments_max, zero_copy: false };
        let mut socket = Socket::prepare(queue, area, registered, sizes, features, sends)?;
        prefill(&mut socket.fill);
        let (flags, end) = (bind_flags(features), Instant::now() + deadline);
        queue.step("bind", bind_until(&socket.fd, queue, memory, flags, end))?;
        Ok(socket)
    }

    /// A socket with its rings, unbound. `registered`: register the area as memory of its own, with
    /// so many bytes of TX metadata.
    pub(super) fn prepare(
        queue: Queue<'_>,
        area: &Arc<Area>,
        registered: Option<u32>,
        sizes: RingSizes,
        features: SocketFeatures,
        sends: Sends,
    ) -> Result<Socket, SocketError> {
        let fd = queue.step("open AF_XDP socket", open())?;
        if let Some(metadata_bytes) = registered {
            queue.step("register memory", register(&fd, area, metadata_bytes))?;
        }
        queue.step("size rings", size_rings(&fd, sizes))?;
        queue.step("set send buffer", tune(&fd, sizes, features))?;
        let at = queue.step("read ring offsets", sockopt::xdp_mmap_offsets(&fd))?;
        let completion = CompletionRing::map(fd.as_fd(), at.cr, sizes.completion);
        Ok(Socket {
            fill: queue.step("map fill ring", FillRing::map(fd.as_fd(), at.fr, sizes.fill))?,
            completion: queue.step("map completion ring", completion)?,
            rx: queue.step("map rx ring", RxRing::map(fd.as_fd(), at.rx, sizes.rx))?,
            tx: queue.step("map tx ring", TxRing::map(fd.as_fd(), at.tx, sizes.tx))?,
            sends,
            place: (queue.ifindex, queue.queue),
            fd,
            _area: area.clone(),
        })
    }

    /// The descriptor: for the socket map, and for sharing the memory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A second socket on the queue of `first`, with an rx ring only: it exists to be closed.
    /// See `Sentinel`.
    pub(super) fn bind_beside(
        queue: Queue<'_>,
        first: BorrowedFd<'_>,
    ) -> Result<OwnedFd, SocketError> {
        let fd = queue.step("open AF_XDP socket", open())?;
        queue.step("size rx ring", sockopt::set_xdp_rx_ring_size(&fd, SENTINEL_RING))?;
        let memory = Memory::Shared(first);
        queue.step("bind", bind_once(&fd, queue, memory, SocketAddrXdpFlags::empty()))?;
        Ok(fd)
    }
}

/// Entries of a sentinel's rx ring: nothing ever arrives there.
const SENTINEL_RING: u32 = 2;

fn open() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)
}

fn register(fd: &OwnedFd, area: &Area, tx_metadata_len: u32) -> rustix::io::Result<()> {
    let flags = if tx_metadata_len > 0 { UMEM_TX_METADATA_LEN } else { 0 };
    let registration = XdpUmemReg {
        addr: area.address(),
        len: area.len() as u64,
        chunk_size: FRAME_BYTES as u32,
        headroom: 0,
        flags: XdpUmemRegFlags::from_bits_retain(flags),
        tx_metadata_len,
    };
    sockopt::set_xdp_umem_reg(fd, registration)
}

fn size_rings(fd: &OwnedFd, sizes: RingSizes) -> rustix::io::Result<()> {
    sockopt::set_xdp_umem_fill_ring_size(fd, sizes.fill)?;
    sockopt::set_xdp_umem_completion_ring_size(fd, sizes.completion)?;
    sockopt::set_xdp_rx_ring_size(fd, sizes.rx)?;
    sockopt::set_xdp_tx_ring_size(fd, sizes.tx)
}

fn tune(fd: &OwnedFd, sizes: RingSizes, features: SocketFeatures) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)?;
    // A budget below the default of 32 is refused; such a ring is no bottleneck.
    if features.tx_budget && sizes.tx >= TX_SKB_BUDGET_MIN {
        set_option(fd, libc::SOL_XDP, MAX_TX_SKB_BUDGET, sizes.tx as i32)?;
    }
    Ok(())
}

fn bind_flags(features: SocketFeatures) -> SocketAddrXdpFlags {
    let mut flags = SocketAddrXdpFlags::XDP_COPY | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    flags.set(SocketAddrXdpFlags::XDP_USE_SG, features.multi_buffer);
    flags
}

fn bind_once(
    fd: &OwnedFd,
    queue: Queue<'_>,
    memory: Memory<'_>,
    flags: SocketAddrXdpFlags,
) -> rustix::io::Result<()> {
    match memory {
        Memory::Own => {
            rustix::net::bind(fd, &SocketAddrXdp::new(flags, queue.ifindex, queue.queue))
        }
        // A sharing socket inherits every mode; any other flag is EINVAL.
        Memory::Shared(owner) => {
            let shared = SocketAddrXdpFlags::XDP_SHARED_UMEM;
            let addr = SocketAddrXdp::new(shared, queue.ifindex, queue.queue);
            rustix::net::bind(fd, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: owner })
        }
    }
}

/// Binds; an address in use (`EBUSY`) is retried until `end`.
pub(super) fn bind_until(
    fd: &OwnedFd,
    queue: Queue<'_>,
    memory: Memory<'_>,
    flags: SocketAddrXdpFlags,
    end: Instant,
) -> rustix::io::Result<()> {
    /// Between tries; a release takes some 12 ms.
    const RETRY: Duration = Duration::from_millis(5);
    loop {
        match bind_once(fd, queue, memory, flags) {
            Err(Errno::BUSY) if Instant::now() < end => std::thread::sleep(RETRY),
            result => return result,
        }
    }
}

/// Sets an `int` option that rustix has no name for.
fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: value is a live int of the length given; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Finds out what sockets can do here, by asking a socket that is never bound.
pub fn probe() -> Result<SocketFeatures, SocketError> {
    let queue = Queue { device: "(probe)", ifindex: 0, queue: 0 };
    let fd = queue.step("open AF_XDP socket", open())?;
    let area = Arc::new(queue.step("map memory", Area::map(1))?);
    let tx_checksum = register(&fd, &area, TX_METADATA_BYTES).is_ok();
    queue.step("size tx ring", sockopt::set_xdp_tx_ring_size(&fd, 64))?;
    let tx_budget = set_option(&fd, libc::SOL_XDP, MAX_TX_SKB_BUDGET, 64).is_ok();
    // Generic XDP passes fragments on since 6.9, checksum metadata exists since 6.8 and its flag
    // since 6.11: a kernel that takes the flag has both.
    Ok(SocketFeatures { multi_buffer: tx_checksum, tx_checksum, tx_budget })
}

/// Hands out at most `max` frames of the pool, for the fill ring of a socket in `slot` that is
/// bound elsewhere. If it is not, [`FramePool::reclaim_port`] takes them back.
#[must_use]
pub fn lend(pool: &mut FramePool, slot: u16, max: u32) -> Vec<u64> {
    let mut lent = Vec::with_capacity(max as usize);
    while lent.len() < max as usize {
        let Some(frame) = pool.take() else { break };
        lent.push(pool.to_rx(frame, slot));
    }
    lent
}

/// Fills a fresh fill ring with up to `max` frames of the pool.
pub fn prefill(fill: &mut FillRing, pool: &mut FramePool, slot: u16, max: u32) {
    for _ in 0..fill.room(max) {
        let Some(frame) = pool.take() else { break };
        fill.push(pool.to_rx(frame, slot));
    }
    fill.commit();
}
