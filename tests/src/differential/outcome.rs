//! What became of one injected frame: the frames that arrived somewhere because of it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use super::facts::{self, ETHERNET, Ip, ones_complement, protocol, upper_sum};
use super::plan::{Link, Place, Plan, is_router};

/// IP version and number of an injected frame: what it is known by wherever it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u8, u32);

/// What arrived.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arrival {
    /// The packet, or a part of it: all bytes of the frame.
    Packet(Place, Vec<u8>),
    /// An ICMP error about it.
    Error(IcmpError),
}

/// An ICMP error, as far as two routers have to agree on it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IcmpError {
    /// Where it arrived.
    pub place: Place,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four bytes after the checksum: MTU or pointer.
    pub rest: u32,
    /// What is quoted.
    pub quote: Vec<u8>,
    /// What is wrong with the error itself.
    pub fault: Option<&'static str>,
}

/// Everything that arrived because of one frame, in the order of places and bytes.
pub type Outcome = Vec<Arrival>;

/// All outcomes of a batch, and what cannot be laid to any of its frames.
#[derive(Debug, Default)]
pub struct Outcomes {
    by_key: BTreeMap<Key, Outcome>,
    /// Whose frames arrived at a place, in their order.
    order: Vec<(Place, Key)>,
    /// From nowhere.
    pub strangers: Vec<Arrival>,
}

impl Outcomes {
    /// What came of an injected frame.
    #[must_use]
    pub fn take(&mut self, frame: &[u8]) -> Outcome {
        key(frame).and_then(|key| self.by_key.remove(&key)).unwrap_or_default()
    }

    /// Whose frames arrived at `place`, in their order; twice where there are fragments.
    pub fn order(&self, place: Place) -> impl Iterator<Item = Key> {
        let at = self.order.iter().filter(move |(at, _)| *at == place);
        at.map(|(_, key)| *key)
    }
}

/// The number of a frame, from where the generator writes it; `None` for what is no IP.
#[must_use]
pub fn key(frame: &[u8]) -> Option<Key> {
    match facts::word(frame, 12)? {
        0x8100 => key_of_packet(frame.get(ETHERNET + 4..)?),
        _ => key_of_packet(frame.get(ETHERNET..)?),
    }
}

fn key_of_packet(packet: &[u8]) -> Option<Key> {
    match packet.first()? >> 4 {
        4 => Some(Key(4, facts::word(packet, 4)?.into())),
        6 => Some(Key(6, facts::word(packet, 2)?.into())),
        _ => None,
    }
}

/// Lays arrivals to the frames they come from.
#[must_use]
pub fn sort(plan: &Plan, arrivals: Vec<(Place, Vec<u8>)>, injected: &HashSet<Key>) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for (place, frame) in arrivals {
        let (key, arrival) = match error(plan, place, &frame) {
            Some((quoted, error)) => (quoted, Arrival::Error(error)),
            None => (key(&frame), Arrival::Packet(place, frame)),
        };
        match (key.filter(|key| injected.contains(key)), &arrival) {
            (Some(key), _) => {
                if matches!(arrival, Arrival::Packet(..)) {
                    outcomes.order.push((place, key));
                }
                outcomes.by_key.entry(key).or_default().push(arrival);
            }
            (None, Arrival::Packet(_, frame)) if is_link_control(frame) => {}
            (None, _) => outcomes.strangers.push(arrival),
        }
    }
    for outcome in outcomes.by_key.values_mut() {
        outcome.sort();
    }
    outcomes
}

/// What the ends of a link say to each other, unasked: ARP, neighbour discovery, MLD.
fn is_link_control(frame: &[u8]) -> bool {
    let Some(facts) = facts::of(frame) else { return false };
    let icmp_type = facts.ip.and_then(|ip| ip.icmp_type());
    facts.ether_type == 0x0806
        || facts.ip.is_some_and(|ip| ip.version == 6) && matches!(icmp_type, Some(130..=137 | 143))
}

/// Reads an ICMP error of a router, and the number of the frame it is about.
fn error(plan: &Plan, place: Place, frame: &[u8]) -> Option<(Option<Key>, IcmpError)> {
    let facts = facts::of(frame)?;
    let ip = facts.ip.filter(|ip| is_router(ip.source))?;
    let kind = ip.icmp_type()?;
    let is_error = match ip.version {
        4 => matches!(kind, 3 | 4 | 5 | 11 | 12),
        _ => kind < 128 || kind == 137,
    };
    let (head, quote) = ip.upper.split_first_chunk::<8>()?;
    if !is_error {
        return None;
    }
    let error = IcmpError {
        place,
        kind,
        code: head[1],
        rest: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
        quote: quote.to_vec(),
        fault: fault(plan.link(place), facts.to, facts.from, &ip, quote),
    };
    Some((key_of_packet(quote), error))
}

impl IcmpError {
    /// Version of the IP packet it quotes.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.quote.first().map_or(0, |byte| byte >> 4)
    }
}

/// What is wrong with an ICMP error: RFC 1812 §4.3.2, RFC 4443 §2.
fn fault(
    link: Link,
    to: [u8; 6],
    from: [u8; 6],
    ip: &Ip<'_>,
    quote: &[u8],
) -> Option<&'static str> {
    let sum = match ip.version {
        4 => ones_complement(ip.upper),
        _ => upper_sum(ip.source, ip.destination, protocol::ICMPV6, ip.upper),
    };
    let sender = match (ip.version, quote) {
        (4, quote) => {
            quote.get(12..16).map(|v4| IpAddr::from(<[u8; 4]>::try_from(v4).unwrap_or_default()))
        }
        (_, quote) => {
            quote.get(8..24).map(|v6| IpAddr::from(<[u8; 16]>::try_from(v6).unwrap_or_default()))
        }
    };
    if sum != 0xffff {
        Some("its checksum is wrong")
    } else if sender != Some(ip.destination) {
        Some("it does not go to the sender of the packet it quotes")
    } else if (to, from) != (link.far, link.near) {
        Some("its MAC addresses are not those of the link")
    } else if ip.bytes.len() > if ip.version == 4 { 576 } else { 1280 } {
        Some("it is longer than an error may be")
    } else {
        None
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arrival::Packet(place, frame) => write!(f, "at {place:?}, {}", hex(frame)),
            Arrival::Error(error) => write!(f, "{error:?}"),
        }
    }
}

impl fmt::Debug for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IcmpError { place, kind, code, rest, quote, fault } = self;
        write!(f, "at {place:?}, ICMP error {kind}/{code} ({rest}), fault: {fault:?}, quotes ")?;
        write!(f, "{}", hex(quote))
    }
}

/// Bytes as a reader of packets wants them; the middle of long ones is left out.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 128;
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let lines = shown.chunks(16).map(|line| {
        let words: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\n      {}", words.join(" "))
    });
    let more = if bytes.len() > SHOWN { "\n      …" } else { "" };
    format!("{} bytes{}{more}", bytes.len(), lines.collect::<String>())
}
