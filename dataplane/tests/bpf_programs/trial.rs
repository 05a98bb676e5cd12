//! A trial of a real NIC, for a machine or a guest that has one: what a veth cannot show.
//!
//! `VIADUCT_TEST_INTERFACE=eth1 bpf_programs --ignored --nocapture --exact
//! trial::a_named_interface_is_tried` binds every queue of the interface in the best mode there is,
//! takes all IP that comes to its MAC for `VIADUCT_TEST_SECONDS` (5), sends some broadcast frames
//! of a type for experiments by every queue, and prints modes and counts.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::frame::FramePool;
use dataplane::port::PacketIo;
use dataplane::tables::Prefix;
use dataplane::xsk::area::Area;
use dataplane::xsk::port::{UPLINK_RINGS, UPLINK_SHARE, XskPort};
use dataplane::xsk::program::{AttachMode, Programs, Steering, UplinkEntry};
use dataplane::xsk::socket::{Queue, Socket, lend, probe};
use dataplane::xsk::uplink::UplinkBind;

use crate::copy::xsk;
use crate::machine::BpfDir;

/// Frames that every queue sends.
const SENT: usize = 64;

/// A file of the interface in sysfs.
fn read(interface: &str, file: &str) -> String {
    let path = format!("/sys/class/net/{interface}/{file}");
    fs::read_to_string(&path).expect("the interface is there").trim().to_owned()
}

fn all(address: &str) -> Prefix {
    Prefix { address: address.parse().expect("an address"), len: 0 }
}

#[test]
#[ignore = "needs root, and an interface to try"]
fn a_named_interface_is_tried() {
    let Ok(interface) = std::env::var("VIADUCT_TEST_INTERFACE") else {
        println!("VIADUCT_TEST_INTERFACE names no interface: nothing is tried");
        return;
    };
    let seconds = std::env::var("VIADUCT_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let ifindex = read(&interface, "ifindex").parse().expect("a number");
    let mtu = read(&interface, "mtu").parse().expect("a number");
    let mac: Vec<u8> = read(&interface, "address")
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("hex"))
        .collect();
    let mac: [u8; 6] = mac.try_into().expect("a MAC has six bytes");
    let queues = fs::read_dir(format!("/sys/class/net/{interface}/queues")).expect("queues");
    let queues = queues.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().starts_with("rx-")
    });
    let queues = u16::try_from(queues.count()).expect("a number of queues");

    let dir = BpfDir::new();
    let programs = Programs::load(dir.path()).expect("loads");
    let attached = programs.attach_uplink(ifindex, &interface, AttachMode::Native);
    let attached = attached.expect("attaches");
    println!("{interface}: {queues} queues, program {attached:?}");
    let features = probe().expect("AF_XDP");
    let area = Arc::new(Area::map(u32::from(queues) * 4096).expect("memory"));
    let mut pool = FramePool::new(area.clone());
    let mut ports = Vec::new();
    for queue in 0..queues {
        let slot = 1 + queue;
        let fill = lend(&mut pool, slot, UPLINK_SHARE.frames());
        let (socket, mode) = Socket::bind_uplink(UplinkBind {
            queue: Queue { device: &interface, ifindex, queue: u32::from(queue) },
            area: &area,
            sizes: UPLINK_RINGS,
            features,
            mtu,
            attached: attached.mode,
            deadline: Duration::from_secs(5),
            fill: &fill,
        })
        .expect("binds");
        println!("{interface} queue {queue}: {mode}");
        programs.set_socket(u32::from(slot), socket.fd()).expect("set");
        ports.push(XskPort::new(socket, slot, UPLINK_RINGS));
    }
    let entry = UplinkEntry { first_slot: 1, queues, workers: 1, mac };
    programs.set_uplink(ifindex, &entry).expect("room");
    let every = [all("0.0.0.0"), all("::")];
    let wish = Steering { pods: &every, direct: &every, kernel: &[] };
    programs.set_steering(&wish).expect("room");
    let (low, high) = (xsk(), xsk());
    programs.set_sentinels(0, low.as_fd(), high.as_fd()).expect("set");

    let frame = [&[0xff; 6][..], &mac, &[0x88, 0xb5], &[0; 46]].concat();
    let mut refused = 0;
    for port in &mut ports {
        for _ in 0..SENT {
            let packet = pool.packet_from([&frame[..]].into_iter()).expect("frames are free");
            port.transmit(&mut pool, packet, None).expect("the ring has room");
        }
        refused += port.kick().refused;
    }
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(5));
    let mut counts = vec![(0, 0, 0); ports.len()];
    while Instant::now() < end {
        for (port, (packets, bytes, bad)) in ports.iter_mut().zip(&mut counts) {
            port.reclaim(&mut pool);
            port.refill(&mut pool, UPLINK_SHARE.frames());
            let mut batch = Vec::new();
            *bad += port.receive(&mut pool, &mut batch, 64);
            for packet in batch {
                *packets += 1;
                *bytes += packet.len();
                pool.release(packet);
            }
            refused += port.kick().refused;
        }
    }
    for (queue, ((packets, bytes, bad), port)) in counts.iter().zip(&ports).enumerate() {
        let drops = port.kernel_drops();
        println!("queue {queue}: {packets} packets, {bytes} bytes, {bad} bad, {drops:?}");
    }
    let count = pool.count();
    println!("sent {} frames, refused {refused}; {count:?}", SENT * ports.len());
    println!("passed to the kernel: {:?}", programs.uplink_counts().expect("read"));
    programs.detach_uplink(&interface).expect("detaches");
    assert!(count.conserved(), "{count:?}");
    assert_eq!(count.tx, 0, "all that was sent is completed");
}
