//! Frames as a pod would send them, good and forged.

/// The pod's assigned MAC.
pub const MAC: [u8; 6] = [0xaa, 0x01, 0x02, 0x03, 0x04, 0x05];
/// Somebody else's, different in one byte only.
pub const OTHER_MAC: [u8; 6] = [0xaa, 0x01, 0x02, 0x03, 0x04, 0x06];
/// A marker of a TCP super-packet.
pub const MARKED: [u8; 6] = [0x02, 34, 16, 1, 0x05, 0xa8];

pub const IPV4: [u8; 4] = [10, 9, 0, 2];
pub const OTHER_IPV4: [u8; 4] = [10, 9, 0, 3];
pub const IPV6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub const OTHER_IPV6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];

pub const ICMPV6: u8 = 58;
pub const UDP: u8 = 17;

pub fn ethernet(source: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let destination = [0xee, 0, 0, 0, 0, 1];
    [&destination, &source, &ether_type.to_be_bytes()[..], payload].concat()
}

/// A UDP packet of ten bytes, its header left zero: nobody looks at it.
pub fn ipv4(mac: [u8; 6], source: [u8; 4]) -> Vec<u8> {
    let mut packet = [0; 38];
    packet[0] = 0x45;
    packet[3] = 38;
    packet[8] = 64;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&[10, 9, 0, 1]);
    ethernet(mac, 0x0800, &packet)
}

pub fn ipv6(mac: [u8; 6], source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a test's payload is short");
    let head = [0x60, 0, 0, 0, length.to_be_bytes()[0], length.to_be_bytes()[1], next, 255];
    let mut destination = IPV6;
    destination[15] = 1;
    ethernet(mac, 0x86dd, &[&head[..], &source, &destination, payload].concat())
}

/// The fields of an ARP request that matter.
#[derive(Clone, Copy)]
pub struct Arp {
    pub ethernet: [u8; 6],
    pub head: [u8; 8],
    pub sender_mac: [u8; 6],
    pub sender_ip: [u8; 4],
}

impl Arp {
    /// The pod's honest request.
    pub const HONEST: Arp =
        Arp { ethernet: MAC, head: [0, 1, 8, 0, 6, 4, 0, 1], sender_mac: MAC, sender_ip: IPV4 };

    pub fn frame(self) -> Vec<u8> {
        let target = [0, 0, 0, 0, 0, 0, 10, 9, 0, 1];
        let payload = [&self.head[..], &self.sender_mac, &self.sender_ip, &target].concat();
        ethernet(self.ethernet, 0x0806, &payload)
    }
}

/// A neighbour discovery message: type, target, options.
pub fn nd(kind: u8, target: [u8; 16], options: &[&[u8]]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target, &options.concat()].concat()
}

/// A link-layer address option; one unit is eight bytes.
pub fn mac_option(kind: u8, units: u8, mac: [u8; 6]) -> Vec<u8> {
    let mut option = vec![0; usize::from(units.max(1)) * 8];
    option[0] = kind;
    option[1] = units;
    option[2..8].copy_from_slice(&mac);
    option
}

/// An IPv6 extension header of eight bytes.
pub fn extension(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

/// An IPv6 fragment header; `offset` in eight bytes.
pub fn fragment(next: u8, offset: u16, more: bool) -> [u8; 8] {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    [next, 0, high, low, 0, 0, 0, 1]
}
