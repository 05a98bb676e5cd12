//! A tap on a wire: looks at every frame as a receiver would that trusts nobody. Is it longer than
//! the wire's MTU, is a checksum wrong, is a packet in pieces that must not be?

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::forge::checksum;
use super::wait_until_idle;
use crate::netns::Namespace;

/// tcpdump listens some 100 ms after it was started.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// Frames that may wait for tcpdump: more than all of a transfer of 4 MB, there and back.
const WAITING_MAX: usize = 12_288;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// What is wrong is told of so many frames; one is enough to fail.
const TOLD_MAX: usize = 5;

/// IP protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Extension headers of IPv6 (RFC 8200 §4).
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// What passed a tap.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// IP packets, of which the fragments count singly.
    pub packets: u64,
    /// Length of the longest IP packet, in bytes.
    pub longest: usize,
    /// TCP segments that carry payload.
    pub tcp_segments: u64,
    /// Most payload of one of them, in bytes.
    pub longest_tcp_payload: usize,
    /// UDP datagrams, after reassembly.
    pub datagrams: u64,
    /// Fragments of either family.
    pub fragments: u64,
    /// How many frames were wrong.
    pub wrong: u64,
    /// What was wrong with the first of them.
    pub told: Vec<String>,
    /// Frames that tcpdump had no room for, and that nobody looked at.
    pub missed: u64,
}

impl Seen {
    /// Nothing was wrong, and at least half of everything was looked at.
    ///
    /// # Errors
    /// When something was.
    pub fn all_right(&self) -> Result<()> {
        ensure!(self.wrong == 0, "{} of {} packets: {:#?}", self.wrong, self.packets, self.told);
        ensure!(self.missed <= self.packets, "{} were missed: {self:?}", self.missed);
        Ok(())
    }

    fn tell(&mut self, sentence: String) {
        self.wrong += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(sentence);
        }
    }
}

/// A tap at work. Dropped, it ends.
#[derive(Debug)]
pub struct Tap {
    tcpdump: Child,
    frames: Option<JoinHandle<Result<Seen>>>,
    words: Option<JoinHandle<String>>,
}

impl Tap {
    /// Starts to look at what an interface receives that the filter of tcpdump (pcap-filter(7))
    /// lets through; returns when it looks. On a wire with this MTU, in bytes.
    ///
    /// # Errors
    /// When tcpdump cannot be started there.
    pub fn start(namespace: &Namespace, ifname: &str, mtu: usize, filter: &str) -> Result<Tap> {
        let mut command = Command::new("tcpdump");
        // A slot of the buffer is as long as the longest frame that is looked at whole.
        let snap = mtu + 64;
        let buffer = (WAITING_MAX * (snap + 128).next_power_of_two() / 1024).to_string();
        let snap = snap.to_string();
        command.args(["-i", ifname, "-Q", "in", "-s", &snap, "-B", &buffer, "-w", "-", "-U"]);
        command.args(["--immediate-mode", "-n", "-Z", "root", filter]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tcpdump = namespace.within(|| command.spawn())?.context("start tcpdump")?;
        let stdout = tcpdump.stdout.take().context("stdout is piped")?;
        let mut stderr = BufReader::new(tcpdump.stderr.take().context("stderr is piped")?);
        let frames = thread::spawn(move || look_at_all(BufReader::new(stdout), mtu));
        let (sender, listens) = channel();
        let words = thread::spawn(move || {
            let mut said = String::new();
            while stderr.read_line(&mut said).is_ok_and(|len| len > 0) {
                if said.contains("listening on") {
                    let _ = sender.send(()); // nobody waits after a failure
                }
            }
            said
        });
        let tap = Tap { tcpdump, frames: Some(frames), words: Some(words) };
        listens.recv_timeout(LISTENS_WITHIN).with_context(|| format!("tap {ifname}"))?;
        Ok(tap)
    }

    /// Ends it and returns what passed before.
    ///
    /// # Errors
    /// When tcpdump does not end, or wrote something that it should not.
    pub fn stop(mut self) -> Result<Seen> {
        // On a signal it leaves what it has not read yet.
        wait_until_idle(&self.tcpdump)?;
        kill_process(Pid::from_child(&self.tcpdump), Signal::INT).context("stop tcpdump")?;
        self.tcpdump.wait().context("wait for tcpdump")?;
        let join = "threads that read what tcpdump writes do not panic";
        let words = self.words.take().context("stopped once")?.join().expect(join);
        let mut seen = self.frames.take().context("stopped once")?.join().expect(join)?;
        let missed = words.lines().find_map(|line| line.strip_suffix(" packets dropped by kernel"));
        seen.missed = missed.and_then(|count| count.trim().parse().ok()).unwrap_or_default();
        Ok(seen)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill(); // It may have ended.
        let _ = self.tcpdump.wait();
    }
}

/// Reads a file in pcap's format to its end (pcap-savefile(5)), in the byte order of this machine.
fn look_at_all(mut file: impl Read, mtu: usize) -> Result<Seen> {
    file.read_exact(&mut [0; 24]).context("the header of a capture")?;
    let mut wire = Wire { mtu, seen: Seen::default(), pieces: BTreeMap::new() };
    let mut record = [0; 16];
    while file.read_exact(&mut record).is_ok() {
        let word = |at: usize| {
            let bytes = record.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_ne_bytes).expect("a record has four words") as usize
        };
        let (captured, len) = (word(8), word(12));
        let mut frame = vec![0; captured];
        if file.read_exact(&mut frame).is_err() {
            break; // tcpdump was killed
        }
        if let Err(problem) = wire.look_at(&frame, len) {
            let head: Vec<String> = frame.iter().take(64).map(|b| format!("{b:02x}")).collect();
            wire.seen.tell(format!("{problem:#}, {len} bytes: {}", head.join("")));
        }
    }
    Ok(wire.seen)
}

/// A packet's addresses as they stand in its header, and its protocol: what its checksum covers
/// beside its payload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Covered {
    addresses: Vec<u8>,
    protocol: u8,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    offset: usize,
    more: bool,
}

/// What has come of a packet in pieces: payloads by offset, and the length of all.
#[derive(Debug, Default)]
struct Pieces {
    came: BTreeMap<usize, Vec<u8>>,
    len: Option<usize>,
}

impl Pieces {
    /// The payload, when there is no gap in it.
    fn whole(&self) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        for (offset, piece) in &self.came {
            if *offset != whole.len() {
                return None;
            }
            whole.extend(piece);
        }
        (self.len == Some(whole.len())).then_some(whole)
    }
}

struct Wire {
    mtu: usize,
    seen: Seen,
    pieces: BTreeMap<(Covered, u32), Pieces>,
}

impl Wire {
    fn look_at(&mut self, frame: &[u8], len: usize) -> Result<()> {
        ensure!(len <= self.mtu + ETHERNET, "longer than the MTU");
        let packet = frame.get(ETHERNET..).context("no Ethernet header")?;
        match frame[12..ETHERNET] {
            [0x08, 0x00] => self.ipv4(packet),
            [0x86, 0xdd] => self.ipv6(packet),
            _ => Ok(()),
        }
    }

    fn ipv4(&mut self, packet: &[u8]) -> Result<()> {
        let header = packet.first().map(|byte| usize::from(byte & 15) * 4).context("no header")?;
        let header = packet.get(..header).filter(|h| h.len() >= 20).context("a short header")?;
        ensure!(checksum(header) == 0, "a wrong header checksum");
        let packet = packet.get(..usize::from(be16(header, 2)?)).context("a short packet")?;
        self.count(packet);
        let field = be16(header, 6)?;
        let (more, offset) = (field & 0x2000 != 0, usize::from(field & 0x1fff) * 8);
        let payload = packet.get(header.len()..).context("shorter than its header")?;
        let covered = Covered { addresses: header[12..20].to_vec(), protocol: header[9] };
        if !more && offset == 0 {
            return self.payload(&covered, payload);
        }
        ensure!(field & 0x4000 == 0, "a fragment of what may not be fragmented");
        let id = be16(header, 4)?.into();
        self.fragment(covered, Piece { id, offset, more }, payload)
    }

    fn ipv6(&mut self, packet: &[u8]) -> Result<()> {
        let header = packet.get(..40).context("a short header")?;
        let end = 40 + usize::from(be16(header, 4)?);
        let packet = packet.get(..end).context("a short packet")?;
        self.count(packet);
        let mut covered = Covered { addresses: header[8..40].to_vec(), protocol: header[6] };
        let payload = &packet[40..];
        match covered.protocol {
            HOP_BY_HOP => Ok(()), // reports of multicast groups
            FRAGMENT => {
                let head = payload.get(..8).context("a short fragment header")?;
                covered.protocol = head[0];
                let field = be16(head, 2)?;
                let id = u32::from(be16(head, 4)?) << 16 | u32::from(be16(head, 6)?);
                let piece = Piece { id, offset: usize::from(field & !7), more: field & 1 == 1 };
                self.fragment(covered, piece, &payload[8..])
            }
            _ => self.payload(&covered, payload),
        }
    }

    fn count(&mut self, packet: &[u8]) {
        self.seen.packets += 1;
        self.seen.longest = self.seen.longest.max(packet.len());
    }

    fn fragment(&mut self, covered: Covered, piece: Piece, payload: &[u8]) -> Result<()> {
        self.seen.fragments += 1;
        ensure!(
            !piece.more || payload.len().is_multiple_of(8),
            "a fragment of {} bytes",
            payload.len()
        );
        let key = (covered, piece.id);
        let pieces = self.pieces.entry(key.clone()).or_default();
        pieces.came.insert(piece.offset, payload.to_vec());
        if !piece.more {
            pieces.len = Some(piece.offset + payload.len());
        }
        let Some(whole) = pieces.whole() else { return Ok(()) };
        self.pieces.remove(&key);
        self.payload(&key.0, &whole).context("put together again")
    }

    /// A whole payload: its checksum.
    fn payload(&mut self, covered: &Covered, payload: &[u8]) -> Result<()> {
        let Covered { addresses, protocol } = covered;
        match *protocol {
            TCP => {
                let header = payload.get(12).context("a short TCP header")? >> 4;
                let carried = payload.len().saturating_sub(usize::from(header) * 4);
                self.seen.tcp_segments += u64::from(carried > 0);
                self.seen.longest_tcp_payload = self.seen.longest_tcp_payload.max(carried);
            }
            UDP => {
                self.seen.datagrams += 1;
                if be16(payload, 6)? == 0 {
                    // None at all: IPv4 allows it (RFC 768), IPv6 does not (RFC 8200 §8.1).
                    ensure!(addresses.len() == 8, "no UDP checksum over IPv6");
                    return Ok(());
                }
            }
            ICMP => {
                ensure!(checksum(payload) == 0, "a wrong ICMP checksum");
                return Ok(());
            }
            ICMPV6 => {}
            _ => return Ok(()),
        }
        let len = (payload.len() as u32).to_be_bytes();
        let pseudo = [addresses.as_slice(), &len, &[0, 0, 0, *protocol], payload].concat();
        ensure!(checksum(&pseudo) == 0, "a wrong checksum of protocol {protocol}");
        Ok(())
    }
}

fn be16(bytes: &[u8], at: usize) -> Result<u16> {
    let pair = bytes.get(at..at + 2).with_context(|| format!("no byte {at} in a header"))?;
    Ok(u16::from_be_bytes([pair[0], pair[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{Frame, Macs};

    const MACS: Macs = Macs { src: [2; 6], dst: [4; 6] };

    fn seen(frames: &[&[u8]], mtu: usize) -> Seen {
        let mut file = vec![0; 24];
        for frame in frames {
            let len = (frame.len() as u32).to_ne_bytes();
            file.extend([&[0; 8][..], &len, &len, frame].concat());
        }
        look_at_all(&file[..], mtu).expect("a capture")
    }

    fn udp_v6() -> Vec<u8> {
        let [src, dst] = ["fd00::1", "fd00::2"].map(|text| text.parse().expect("an address"));
        Frame::udp_v6(MACS, src, dst).bytes().to_vec()
    }

    fn udp_v4() -> Vec<u8> {
        Frame::udp_v4(MACS, [10, 0, 0, 1].into(), [10, 0, 0, 2].into()).bytes().to_vec()
    }

    /// The same packet in two pieces of IPv4, with the flags of the header's byte 6.
    fn pieces(flags: u8) -> Vec<Vec<u8>> {
        let whole = udp_v4();
        let piece = |offset: usize, payload: &[u8], more: bool| {
            let mut ip = whole[ETHERNET..ETHERNET + 20].to_vec();
            ip[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            ip[6] = flags | if more { 0x20 } else { 0 };
            ip[7] = (offset / 8) as u8;
            ip[10..12].fill(0);
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            [&whole[..ETHERNET], &ip, payload].concat()
        };
        let payload = &whole[ETHERNET + 20..];
        vec![piece(8, &payload[8..], false), piece(0, &payload[..8], true)]
    }

    #[test]
    fn whole_packets_with_right_checksums_are_all_right() {
        let seen = seen(&[&udp_v4(), &udp_v6()], 1500);
        seen.all_right().expect("all right");
        assert_eq!((seen.packets, seen.datagrams, seen.fragments), (2, 2, 0));
    }

    #[test]
    fn a_bit_that_is_flipped_in_what_a_checksum_covers_is_told() {
        let frame = udp_v6();
        for byte in ETHERNET + 8..frame.len() {
            let mut frame = frame.clone();
            frame[byte] ^= 0x10;
            assert_eq!(seen(&[&frame], 1500).wrong, 1, "byte {byte}");
        }
    }

    #[test]
    fn what_is_longer_than_the_mtu_is_told() {
        let frame = udp_v4();
        assert_eq!(seen(&[&frame], frame.len() - ETHERNET).wrong, 0);
        assert_eq!(seen(&[&frame], frame.len() - ETHERNET - 1).wrong, 1);
    }

    #[test]
    fn fragments_are_put_together_unless_they_must_not_be() {
        let pieces_of = |flags| pieces(flags);
        let may = pieces_of(0);
        let seen_may = seen(&[&may[0], &may[1]], 1500);
        seen_may.all_right().expect("all right");
        assert_eq!((seen_may.fragments, seen_may.datagrams), (2, 1));
        let must_not = pieces_of(0x40);
        assert_eq!(seen(&[&must_not[0], &must_not[1]], 1500).wrong, 2);
    }
}
