//! Host ports over a real veth, in native and generic mode: whole packets reach the worker's
//! socket, and everything else reaches the node's kernel, which is also there while the worker is
//! not. A UDP server in the node's namespace stands for what the kernel's table does with them.

use std::net::UdpSocket;
use std::time::Duration;

use dataplane::conntrack::Transport;
use dataplane::xsk::program::AttachMode;
use dataplane::xsk::socket::probe;

use crate::host_ports::host_port;
use crate::machine::close;
use crate::queues::{Bench, wait};

const NODE: &str = "192.0.2.1";
/// A host port, and a port that is none.
const MAPPED: u16 = 8080;
const OWN: u16 = 8081;

/// A node with host port 8080, a server of its kernel's at that port and one at the next, and a
/// client on the other side.
struct Node {
    bench: Bench,
    mapped: UdpSocket,
    own: UdpSocket,
    client: UdpSocket,
}

impl Node {
    fn new(mode: AttachMode) -> Node {
        let mut bench = Bench::new(mode, 1500, probe().expect("AF_XDP"));
        bench.programs.set_node_addresses(&[NODE.parse().expect("an address")]).expect("room");
        let wish = [host_port(Transport::Udp, "0.0.0.0", MAPPED)];
        bench.programs.add_host_ports(&wish).expect("room");
        let server = |port| {
            let server = bench.node.enter(|| UdpSocket::bind((NODE, port)).expect("it is free"));
            server.set_nonblocking(true).expect("set");
            server
        };
        let (mapped, own) = (server(MAPPED), server(OWN));
        let client = bench.peer.enter(|| UdpSocket::bind("192.0.2.2:0").expect("it is free"));
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        Node { bench, mapped, own, client }
    }

    fn send(&self, bytes: usize, port: u16) {
        let sent = self.client.send_to(&vec![0x5a; bytes], (NODE, port));
        assert_eq!(sent.expect("sent"), bytes);
    }

    /// UDP datagrams that the workers' sockets have now, by what they carry.
    fn worker_has(&mut self) -> Vec<usize> {
        let ends = self.bench.queues.iter_mut().flatten();
        // Without Ethernet, IPv4 and UDP headers.
        ends.flat_map(|end| end.received()).map(|(_, bytes)| bytes.len() - 42).collect()
    }

    /// Waits until a worker has one datagram of so many bytes.
    fn worker_gets(&mut self, bytes: usize) {
        let mut received = Vec::new();
        wait("a worker gets it", || {
            received.extend(self.worker_has());
            !received.is_empty()
        });
        assert_eq!(received, [bytes]);
    }
}

/// Waits until a server of the kernel has one datagram of so many bytes.
fn kernel_gets(server: &UdpSocket, bytes: usize) {
    let mut buffer = [0; 8192];
    wait("the kernel gets it", || match server.recv(&mut buffer) {
        Ok(length) => {
            assert_eq!(length, bytes);
            true
        }
        Err(_) => false,
    });
}

#[test]
#[ignore = "needs root"]
fn whole_packets_are_a_workers_and_fragments_and_other_ports_the_kernels() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let mut node = Node::new(mode);
        node.send(100, MAPPED);
        node.worker_gets(100);
        // 4 kB in three fragments: the kernel puts them together.
        node.send(4096, MAPPED);
        kernel_gets(&node.mapped, 4096);
        node.send(1000, OWN);
        kernel_gets(&node.own, 1000);
        assert!(node.bench.peer.succeeds("ping -q -c 1 -W 1 192.0.2.1"), "{mode:?}");
        assert_eq!(node.worker_has(), [], "{mode:?}");
        let nothing = node.mapped.recv(&mut [0; 1]).expect_err("nothing else came");
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "{mode:?}");

        let wish = [host_port(Transport::Udp, "0.0.0.0", MAPPED)];
        node.bench.programs.remove_host_ports(&wish).expect("removed");
        node.send(101, MAPPED);
        kernel_gets(&node.mapped, 101);
        assert_eq!(node.bench.fallback(), 0, "{mode:?}: none was left by a worker");
    }
}

#[test]
#[ignore = "needs root"]
fn while_the_worker_is_dead_the_kernel_gets_what_is_for_host_ports() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let mut node = Node::new(mode);
        node.send(100, MAPPED);
        node.worker_gets(100);
        // Its sockets close, as when the process dies: each leaves the map by itself.
        close(std::mem::take(&mut node.bench.queues));
        for bytes in [200, 1400, 4096] {
            node.send(bytes, MAPPED);
            kernel_gets(&node.mapped, bytes);
        }
        // The fragments were the kernel's anyway.
        assert_eq!(node.bench.fallback(), 2, "{mode:?}");

        // The kernel's server answers, and the client hears it.
        let client = node.client.local_addr().expect("bound");
        assert_eq!(node.mapped.send_to(&[1; 7], client).expect("sent"), 7);
        assert_eq!(node.client.recv(&mut [0; 16]).expect("an answer"), 7, "{mode:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_hung_worker_can_be_taken_away_from_its_host_ports() {
    let mut node = Node::new(AttachMode::Native);
    for worker in [0, 1] {
        node.bench.programs.clear_sentinels(worker).expect("cleared");
    }
    node.send(300, MAPPED);
    kernel_gets(&node.mapped, 300);
    assert_eq!(node.worker_has(), []);
}
