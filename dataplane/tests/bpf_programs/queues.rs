//! Sockets on the queues of an uplink, and frames that really come in by it: a veth of several
//! queues between two namespaces. The far end sends by XSKs too, so that it chooses the queue.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::frame::{FramePool, Packet};
use dataplane::port::{Kicked, PacketIo, Partial};
use dataplane::tables::Prefix;
use dataplane::xsk::area::Area;
use dataplane::xsk::port::XskPort;
use dataplane::xsk::program::{AttachMode, Programs, Steering, UplinkEntry};
use dataplane::xsk::socket::{
    Memory, Queue, RingSizes, Socket, SocketError, SocketFeatures, lend, probe,
};
use dataplane::xsk::uplink::{QueueMode, UplinkBind};

use crate::copy::xsk;
use crate::machine::{BpfDir, Netns, close};

const FIRST_SLOT: u16 = 1;
const RINGS: RingSizes = RingSizes { fill: 256, completion: 256, rx: 256, tx: 256 };
/// Nothing here takes longer on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);

pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A port and its frames.
#[derive(Debug)]
pub struct End {
    pool: FramePool,
    port: XskPort,
    slot: u16,
}

impl End {
    fn packet(&mut self, bytes: &[u8]) -> Packet {
        self.pool.packet_from([bytes].into_iter()).expect("frames are free")
    }

    fn queue(&mut self, bytes: &[u8]) {
        let packet = self.packet(bytes);
        self.port.transmit(&mut self.pool, packet, None).expect("the ring has room");
    }

    /// Sends frames and waits until the kernel has taken them.
    pub fn send(&mut self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.queue(frame));
        wait("all is sent", || {
            let kicked = self.port.kick();
            assert_eq!(kicked.refused, 0);
            self.port.reclaim(&mut self.pool);
            self.pool.count().tx == 0
        });
    }

    /// Frames of the packets that have arrived, and their bytes.
    pub fn received(&mut self) -> Vec<(usize, Vec<u8>)> {
        let mut batch = Vec::new();
        let bad = self.port.receive(&mut self.pool, &mut batch, 64);
        assert_eq!(bad, 0, "no bad descriptor");
        self.port.refill(&mut self.pool, 128);
        let bytes = |packet: Packet| {
            let bytes = self.pool.pieces(&packet).flatten().copied().collect();
            let frames = packet.frames();
            self.pool.release(packet);
            (frames, bytes)
        };
        batch.into_iter().map(bytes).collect()
    }
}

/// Binds a socket to a queue of a device of the namespace.
fn bind(
    netns: &Netns,
    device: &str,
    queue: u32,
    features: SocketFeatures,
    attached: AttachMode,
) -> Result<(End, QueueMode), SocketError> {
    let area = Arc::new(Area::map(512).expect("memory"));
    let mut pool = FramePool::new(area.clone());
    let slot = FIRST_SLOT + queue as u16;
    let fill = lend(&mut pool, slot, 128);
    assert_eq!(fill.len(), 128);
    let (socket, mode) = netns.enter(|| {
        Socket::bind_uplink(UplinkBind {
            queue: Queue { device, ifindex: netns.ifindex(device), queue },
            area: &area,
            sizes: RINGS,
            features,
            mtu: 1500,
            attached,
            deadline: DEADLINE,
            fill: &fill,
        })
    })?;
    Ok((End { pool, port: XskPort::new(socket, slot, RINGS), slot }, mode))
}

/// A node with an uplink whose queues are bound and steered, and a peer that sends by as many.
pub struct Bench {
    pub programs: Programs,
    pub queues: Vec<Option<End>>,
    pub senders: Vec<End>,
    pub peer: Netns,
    pub node: Netns,
    sentinels: [OwnedFd; 2],
    _dir: BpfDir,
}

const QUEUES: u16 = 4;
const WORKERS: u16 = 2;

impl Bench {
    pub fn new(mode: AttachMode, mtu: u32, features: SocketFeatures) -> Bench {
        let (dir, (peer, node)) = (BpfDir::new(), Netns::peer_and_node(u32::from(QUEUES), mtu));
        let programs = Programs::load(dir.path()).expect("loads");
        let ifindex = node.ifindex("nic");
        let attached = node.enter(|| programs.attach_uplink(ifindex, "nic", mode));
        assert_eq!(attached.expect("attaches").mode, mode);
        let mac = node.mac("nic");
        let entry = UplinkEntry { first_slot: FIRST_SLOT, queues: QUEUES, workers: WORKERS, mac };
        programs.set_uplink(ifindex, &entry).expect("room");
        let prefix = |a, len| Prefix { address: [10, 244, a, 0].into(), len };
        let (pods, direct) = ([prefix(1, 24)], [prefix(0, 16)]);
        let wish = Steering { pods: &pods, direct: &direct, kernel: &[] };
        programs.set_steering(&wish).expect("room");
        let queues = (0..u32::from(QUEUES)).map(|queue| {
            let (end, mode) = bind(&node, "nic", queue, features, mode).expect("binds");
            assert_eq!((mode.zero_copy, mode.multi_buffer), (false, features.multi_buffer));
            assert!(mode.refused.is_some(), "a veth has no zero-copy, and says so");
            programs.set_socket(u32::from(end.slot), end.port.fd()).expect("set");
            Some(end)
        });
        let queues = queues.collect();
        let all = probe().expect("AF_XDP");
        let sender = |queue| bind(&peer, "eth0", queue, all, AttachMode::Generic).expect("binds").0;
        let senders = (0..u32::from(QUEUES)).map(sender).collect();
        let sentinels = [xsk(), xsk()];
        let bench = Bench { programs, queues, senders, peer, node, sentinels, _dir: dir };
        (0..u32::from(WORKERS)).for_each(|worker| bench.guard(worker));
        bench
    }

    fn guard(&self, worker: u32) {
        let [low, high] = self.sentinels.each_ref().map(AsFd::as_fd);
        self.programs.set_sentinels(worker, low, high).expect("set");
    }

    /// A UDP packet to a pod, without checksum, in a frame of so many bytes.
    fn frame(&self, bytes: usize) -> Vec<u8> {
        let macs = [self.node.mac("nic"), self.peer.mac("eth0")].concat();
        let [high, low] = u16::try_from(bytes - 14).expect("a frame").to_be_bytes();
        let head = [8, 0, 0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0];
        let mut frame = [&macs[..], &head, &[10, 244, 2, 9], &[10, 244, 1, 9]].concat();
        frame.resize(bytes, 0x5a);
        frame
    }

    pub fn fallback(&self) -> usize {
        let counts = self.programs.uplink_counts().expect("read");
        let found = counts.into_iter().find(|(name, _)| *name == "fallback");
        usize::try_from(found.expect("it is counted").1).expect("few")
    }

    /// Sends so many packets by each queue; how many each socket received, and how many passed.
    fn exchange(&mut self, each: usize) -> ([usize; QUEUES as usize], usize) {
        let before = self.fallback();
        let frames = vec![self.frame(60); each];
        self.senders.iter_mut().for_each(|sender| sender.send(&frames));
        let mut counts = [0; QUEUES as usize];
        wait("all is received or has passed", || {
            for (end, count) in self.queues.iter_mut().zip(&mut counts) {
                *count += end.as_mut().map_or(0, |end| end.received().len());
            }
            let passed = self.fallback() - before;
            counts.iter().sum::<usize>() + passed == each * usize::from(QUEUES)
        });
        (counts, self.fallback() - before)
    }
}

#[test]
#[ignore = "needs root"]
fn every_queue_has_its_socket_and_the_node_keeps_its_network() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let mut bench = Bench::new(mode, 1500, probe().expect("AF_XDP"));
        let (counts, passed) = bench.exchange(50);
        assert_eq!((counts.iter().sum::<usize>(), passed), (200, 0), "{mode:?}");
        // A veth in generic mode takes the sender's queue for one more than it is
        // (include/linux/skbuff.h, skb_get_rx_queue).
        if mode == AttachMode::Native {
            assert_eq!(counts, [50; 4]);
        }
        assert!(bench.peer.succeeds("ping -q -c 1 -W 1 192.0.2.1"), "{mode:?}");
        let drops = bench.queues.iter().flatten().map(|end| end.port.kernel_drops());
        assert!(drops.into_iter().all(|drops| drops == Default::default()), "{mode:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_worker_that_is_gone_leaves_its_queues_to_the_kernel_and_no_others() {
    let mut bench = Bench::new(AttachMode::Native, 1500, probe().expect("AF_XDP"));
    bench.programs.clear_sentinels(1).expect("cleared");
    assert_eq!(bench.exchange(20), ([20, 0, 20, 0], 40));
    bench.guard(1);
    assert_eq!(bench.exchange(20), ([20; 4], 0));
    // Closed: the kernel takes it out of the map.
    close(bench.queues[2].take());
    assert_eq!(bench.exchange(20), ([20, 20, 0, 20], 20));
    close(std::mem::replace(&mut bench.sentinels, [xsk(), xsk()]));
    assert_eq!(bench.exchange(20), ([0; 4], 80));
}

#[test]
#[ignore = "needs root"]
fn queues_that_go_need_their_sockets_closed_and_the_others_go_on() {
    let mut bench = Bench::new(AttachMode::Native, 1500, probe().expect("AF_XDP"));
    let fewer = |netns: &Netns, line: &str| netns.succeeds(&format!("ethtool -L {line} 2"));
    assert!(!fewer(&bench.node, "nic rx"), "queues 2 and 3 have sockets");
    bench.senders.truncate(2);
    bench.queues.truncate(2);
    wait("the peer's queues are gone", || fewer(&bench.peer, "eth0 tx"));
    wait("the node's queues are gone", || fewer(&bench.node, "nic rx"));
    let frames = vec![bench.frame(60); 10];
    for (sender, end) in bench.senders.iter_mut().zip(&mut bench.queues) {
        sender.send(&frames);
        let end = end.as_mut().expect("open");
        let mut count = 0;
        wait("all is received", || {
            count += end.received().len();
            count == frames.len()
        });
    }
    assert_eq!(bench.fallback(), 0);
    // They come back: without sockets the kernel has their packets, with new ones a worker.
    wait("the node's queues are back", || bench.node.succeeds("ethtool -L nic rx 4"));
    wait("the peer's queues are back", || bench.peer.succeeds("ethtool -L eth0 tx 4"));
    let features = probe().expect("AF_XDP");
    for queue in [2, 3] {
        let sender = bind(&bench.peer, "eth0", queue, features, AttachMode::Generic);
        bench.senders.push(sender.expect("binds").0);
    }
    assert_eq!(bench.exchange(10), ([10, 10, 0, 0], 20));
    for queue in [2, 3] {
        let end = bind(&bench.node, "nic", queue, features, AttachMode::Native).expect("binds").0;
        bench.programs.set_socket(u32::from(end.slot), end.port.fd()).expect("set");
        bench.queues.push(Some(end));
    }
    assert_eq!(bench.exchange(10), ([10; 4], 0));
}

#[test]
#[ignore = "needs root"]
fn jumbo_frames_arrive_in_pieces_or_not_at_all() {
    let all = probe().expect("AF_XDP");
    assert!(all.multi_buffer, "this kernel has XDP_USE_SG");
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let mut bench = Bench::new(mode, 9000, all);
        let frames = [bench.frame(9014), bench.frame(60), bench.frame(3900)];
        bench.senders[0].send(&frames);
        let mut received = Vec::new();
        let queue = bench.queues[0].as_mut().expect("open");
        wait("all is received", || {
            received.extend(queue.received());
            received.len() == frames.len()
        });
        for ((pieces, bytes), (frame, expected)) in
            received.iter().zip(frames.iter().zip([3, 1, 2]))
        {
            assert_eq!((bytes == frame, *pieces), (true, expected), "{mode:?}");
        }

        let basic = SocketFeatures { multi_buffer: false, ..all };
        let mut bench = Bench::new(mode, 9000, basic);
        let frames = vec![bench.frame(9014); 3];
        bench.senders[0].send(&frames);
        let end = bench.queues[0].as_mut().expect("open");
        wait("they are dropped and counted", || end.port.kernel_drops().rx_dropped == 3);
        assert!(end.received().is_empty());
    }
}

#[test]
#[ignore = "needs root"]
fn what_the_interface_cannot_send_is_copied_together_or_refused() {
    let (peer, _node) = Netns::peer_and_node(1, 9000);
    let all = probe().expect("AF_XDP");
    let basic = SocketFeatures { multi_buffer: false, ..all };
    let (mut end, mode) = bind(&peer, "eth0", 0, basic, AttachMode::Generic).expect("binds");
    assert!(!mode.multi_buffer);
    let free = end.pool.count().free;
    let mut chain = end.packet(&[0xff; 100]);
    for _ in 0..3 {
        let piece = end.packet(&[0x88; 200]);
        end.pool.append(&mut chain, piece).expect("a short chain");
    }
    let (socket_takes, partial) = (end.packet(&[0xff; 60]), Partial { start: 34, offset: 6 });
    let too_long = end.packet(&[0xff; 5000]);
    for (packet, partial) in [(chain, None), (too_long, None), (socket_takes, Some(partial))] {
        end.port.transmit(&mut end.pool, packet, partial).expect("the ring has room");
    }
    assert_eq!(end.port.kick(), Kicked { refused: 2, pending: false });
    wait("all frames are back", || {
        end.port.reclaim(&mut end.pool);
        end.pool.count().free == free
    });
    // Nothing before: nobody else sends here.
    assert_eq!(peer.bytes("eth0"), [0, 700]);
    assert!(end.pool.count().conserved());
}

#[test]
#[ignore = "needs root"]
fn an_interface_that_was_down_sends_again_when_it_is_up() {
    let (peer, node) = Netns::peer_and_node(1, 1500);
    let features = probe().expect("AF_XDP");
    let (mut end, _) = bind(&node, "nic", 0, features, AttachMode::Native).expect("binds");
    // As many as the ring holds: then nothing that is sent later can set it going again.
    (0..RINGS.tx).for_each(|_| end.queue(&[0xff; 60]));
    node.ip("link set nic down");
    assert_eq!(end.port.kick(), Kicked { refused: 0, pending: false }, "nothing to hurry for");
    // What comes now would be old when the interface is up.
    end.queue(&[0xff; 60]);
    end.port.reclaim(&mut end.pool);
    assert_eq!(end.port.kick(), Kicked { refused: 1, pending: false });
    assert_eq!(end.pool.count().tx, RINGS.tx);

    node.ip("link set nic up");
    wait("what waited is sent", || {
        end.port.reclaim(&mut end.pool);
        end.pool.count().tx == 0
    });
    end.queue(&[0xff; 60]);
    let Kicked { refused, pending } = end.port.kick();
    assert!(!pending && refused < u64::from(RINGS.tx), "{refused} of {} refused", RINGS.tx);
    let arrived = u64::from(RINGS.tx) + 1 - refused;
    assert_eq!(peer.bytes("eth0"), [60 * arrived, 0]);
    wait("all frames are back", || {
        end.port.reclaim(&mut end.pool);
        end.pool.count().tx == 0
    });
    assert!(end.pool.count().conserved());
    drop(peer);
    // Gone for good.
    end.queue(&[0xff; 60]);
    wait("the kernel says so", || !end.port.kick().pending);
}

#[test]
#[ignore = "needs root"]
fn a_queue_that_is_not_there_or_in_use_is_refused_by_name() {
    let (_peer, node) = Netns::peer_and_node(2, 1500);
    let features = probe().expect("AF_XDP");
    let binds = |queue| bind(&node, "nic", queue, features, AttachMode::Native);
    let error = binds(2).expect_err("there are two queues");
    assert!(error.to_string().starts_with("bind for nic queue 2: Invalid argument"), "{error}");

    let (first, _) = binds(1).expect("binds");
    let area = Arc::new(Area::map(16).expect("memory"));
    let mut bind = UplinkBind {
        queue: Queue { device: "nic", ifindex: node.ifindex("nic"), queue: 1 },
        area: &area,
        sizes: RINGS,
        features,
        mtu: 1500,
        attached: AttachMode::Generic,
        deadline: Duration::ZERO,
        fill: &[],
    };
    let error = node.enter(|| Socket::bind_uplink(bind)).expect_err("in use");
    let text = error.to_string();
    assert!(text.contains("nic queue 1") && text.contains("another process"), "{text}");
    // A dead process's sockets take a while.
    bind.deadline = DEADLINE;
    let (socket, mode) = node.enter(|| {
        std::thread::spawn(|| drop(first));
        Socket::bind_uplink(bind).expect("waits for it")
    });
    assert_eq!(socket.fd().as_fd().as_raw_fd() >= 0, !mode.zero_copy);
    let refused = mode.refused.expect("a reason");
    assert!(refused.contains("generic mode"), "{refused}");
}

/// A worker's memory is registered once for its pods and once for each queue of an uplink: a frame
/// goes from one to the other without being copied.
#[test]
#[ignore = "needs root"]
fn frames_go_between_a_pods_socket_and_an_uplinks() {
    let mut bench = Bench::new(AttachMode::Native, 1500, probe().expect("AF_XDP"));
    let features = probe().expect("AF_XDP");
    let frame = bench.frame(60);
    let uplink = bench.queues[0].as_mut().expect("open");
    let pod = Netns::new();
    pod.ip("link add host type veth peer name eth0");
    pod.ip("link set eth0 up");
    pod.ip("link set host up");
    let queue = Queue { device: "host", ifindex: pod.ifindex("host"), queue: 0 };
    let area = uplink.pool.area().clone();
    let socket = pod.enter(|| {
        Socket::bind(queue, &area, Memory::Own, RINGS, features, DEADLINE, |_| {}).expect("binds")
    });
    let mut port = XskPort::new(socket, 0, RINGS);
    bench.senders[0].send(std::slice::from_ref(&frame));
    let mut batch = Vec::new();
    wait("it arrives", || {
        uplink.port.receive(&mut uplink.pool, &mut batch, 1);
        !batch.is_empty()
    });
    let packet = batch.pop().expect("it has arrived");
    port.transmit(&mut uplink.pool, packet, None).expect("the ring has room");
    assert_eq!(port.kick(), Kicked::default());
    wait("it is sent", || {
        port.reclaim(&mut uplink.pool);
        uplink.pool.count().tx == 0
    });
    assert_eq!(pod.bytes("eth0"), [60, 0]);
}
