//! `viaduct explain`: the words of its packet, and the table of stages.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use clap::Args;
use cni_bridge::protocol::{Call, ExplainRequest, ProbeContent, Reply};

use super::table::Align::Left;
use super::table::Table;
use super::{CliError, Format, fetch};
use crate::report::{Explanation, TCP_FLAGS};

/// Source port of a packet that names none: the first of those that are for anybody (RFC 6335 §6).
const SPORT: u16 = 49152;

/// The TCP flag that opens a connection.
const SYN: u8 = 0x02;

/// TTL and hop limit that kernels send with.
const TTL: u8 = 64;

/// Which packet is explained.
#[derive(Args, Clone, Debug)]
pub(super) struct Packet {
    #[command(flatten)]
    format: Format,
    /// Where it comes in: a container ID or its beginning, with or without /IFNAME; a pod's name,
    /// or namespace/name; node; or the name of an uplink
    #[arg(long, value_name = "FROM")]
    from: String,
    /// From whom, and to whom: ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT; the source may be left out
    /// where the packet comes from a pod or the node
    #[arg(value_names = ["SRC", "DST"], num_args = 1..=2, required = true, value_parser = end)]
    ends: Vec<End>,
    /// tcp, udp, sctp or icmp; tcp if DST has a port, else icmp, which is an echo request
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "sctp", "icmp"])]
    protocol: Option<String>,
    /// TCP: some of fin, syn, rst, psh, ack, urg. SCTP: syn stands for INIT, ack for DATA
    #[arg(long, value_name = "FLAGS", value_delimiter = ',', default_value = "syn",
        value_parser = flag)]
    flags: Vec<u8>,
    /// TTL or hop limit
    #[arg(long, value_name = "HOPS", default_value_t = TTL)]
    ttl: u8,
    /// Bytes of the whole IP packet; without it as few as it has
    #[arg(long, value_name = "BYTES")]
    bytes: Option<u16>,
    /// No router may fragment it; always so with IPv6
    #[arg(long)]
    dont_fragment: bool,
}

/// An end of a packet.
#[derive(Clone, Copy, Debug)]
struct End {
    address: IpAddr,
    port: Option<u16>,
}

fn end(text: &str) -> Result<End, String> {
    if let Ok(end) = text.parse::<SocketAddr>() {
        return Ok(End { address: end.ip(), port: Some(end.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare.parse() {
        Ok(address) => Ok(End { address, port: None }),
        Err(_) => Err("write an address, with a port as 10.244.1.5:80 or [fd00::5]:80".to_owned()),
    }
}

fn flag(text: &str) -> Result<u8, String> {
    let known = TCP_FLAGS.iter().find(|(name, _)| *name == text);
    known.map(|(_, bit)| *bit).ok_or_else(|| {
        let names = TCP_FLAGS.map(|(name, _)| name).join(", ");
        format!("write some of {names}, with commas between them")
    })
}

impl Packet {
    fn request(self) -> Result<ExplainRequest, CliError> {
        let Packet { format: _, from, ends, protocol, flags, ttl, bytes, dont_fragment } = self;
        let (src, dst) = match ends[..] {
            [src, dst] => (Some(src), dst),
            [dst] => (None, dst),
            _ => return Err(CliError::NoDestination),
        };
        let flags = flags.into_iter().fold(0, |all, bit| all | bit);
        let implied = if dst.port.is_some() { "tcp" } else { "icmp" };
        let protocol = protocol.as_deref().unwrap_or(implied);
        let content = match protocol {
            "tcp" => ProbeContent::Tcp { flags },
            "udp" => ProbeContent::Udp,
            "sctp" => ProbeContent::Sctp { opens: flags == SYN },
            _ => ProbeContent::Icmp,
        };
        if dst.port.is_none() && content != ProbeContent::Icmp {
            let (protocol, address) = (protocol.to_owned(), dst.address);
            return Err(CliError::NoPort { protocol, dst: SocketAddr::new(address, 80) });
        }
        Ok(ExplainRequest {
            from,
            src: src.map(|src| src.address),
            sport: src.and_then(|src| src.port).unwrap_or(SPORT),
            dst: dst.address,
            dport: dst.port.unwrap_or(0),
            content,
            ttl,
            bytes,
            dont_fragment,
        })
    }
}

/// Asks what becomes of a packet, and prints it.
pub(super) fn explain(socket: &Path, packet: Packet, out: &mut impl Write) -> Result<(), CliError> {
    let format = packet.format;
    let Reply::Listing(value) = fetch(socket, Call::Explain(Box::new(packet.request()?)))? else {
        return Err(CliError::NotAListing { socket: socket.to_owned() });
    };
    if format.json {
        writeln!(out, "{value:#}")?;
    } else {
        let explanation: Explanation = serde_json::from_value(value)?;
        out.write_all(view(&explanation).as_bytes())?;
    }
    Ok(out.flush()?)
}

/// The stages, and the verdict below them.
pub(super) fn view(explanation: &Explanation) -> String {
    let Explanation { from, packet, verdict, reason, answer, stages } = explanation;
    let mut table = Table::new([(Left, "STAGE"), (Left, "VERDICT"), (Left, "DETAIL")]);
    for row in stages {
        table.row([row.stage.clone(), row.verdict.clone(), row.detail.clone()]);
    }
    let why = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let answer = answer.as_ref().map_or_else(String::new, |told| format!("; told: {told}"));
    let clean = |text: &str| text.replace(char::is_control, "?");
    format!("from {}: {packet}\n\n{table}\n{verdict}{why}{answer}\n", clean(from))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Arguments, Command};
    use super::*;
    use crate::report::StageRow;

    #[test]
    fn ends_have_a_port_or_none_in_either_family() {
        let read = |text: &str| end(text).map(|end| (end.address.to_string(), end.port));
        let ok = |address: &str, port| Ok((address.to_owned(), port));
        assert_eq!(read("10.244.1.5"), ok("10.244.1.5", None));
        assert_eq!(read("10.244.1.5:80"), ok("10.244.1.5", Some(80)));
        assert_eq!(read("fd00::5"), ok("fd00::5", None));
        assert_eq!(read("[fd00::5]"), ok("fd00::5", None));
        assert_eq!(read("[fd00::5]:80"), ok("fd00::5", Some(80)));
        for text in ["", "pod", "10.244.1.5:", "10.244.1.5:70000", "10.244.1.0/24", "[fd00::5"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    /// What a line asks for, or why not.
    fn request(line: &str) -> Result<ExplainRequest, String> {
        let words = ["viaduct", "explain"].into_iter().chain(line.split_whitespace());
        let arguments = Arguments::try_parse_from(words).map_err(|error| error.to_string())?;
        match arguments.command {
            Command::Explain(packet) => packet.request().map_err(|error| error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_is_a_packet_with_what_it_does_not_say() {
        let syn = ExplainRequest {
            from: "cart".to_owned(),
            src: None,
            sport: SPORT,
            dst: [10, 244, 1, 5].into(),
            dport: 80,
            content: ProbeContent::Tcp { flags: SYN },
            ttl: 64,
            bytes: None,
            dont_fragment: false,
        };
        assert_eq!(request("--from cart 10.244.1.5:80"), Ok(syn.clone()));
        let rest = "--protocol udp --ttl 3 --bytes 900 --dont-fragment";
        let all = ExplainRequest {
            src: Some([10, 244, 1, 9].into()),
            sport: 4000,
            content: ProbeContent::Udp,
            ttl: 3,
            bytes: Some(900),
            dont_fragment: true,
            ..syn.clone()
        };
        assert_eq!(request(&format!("--from cart 10.244.1.9:4000 10.244.1.5:80 {rest}")), Ok(all));
        let content = |line: &str| request(&format!("--from cart {line}")).map(|r| r.content);
        assert_eq!(content("10.244.1.5"), Ok(ProbeContent::Icmp));
        assert_eq!(content("10.244.1.5:80 --protocol icmp"), Ok(ProbeContent::Icmp));
        let port = "[fd00::5]:80";
        let both = content(&format!("{port} --flags syn,ack"));
        assert_eq!(both, Ok(ProbeContent::Tcp { flags: 0x12 }));
        for (flags, opens) in [("syn", true), ("ack", false)] {
            let sctp = content(&format!("{port} --protocol sctp --flags {flags}"));
            assert_eq!(sctp, Ok(ProbeContent::Sctp { opens }));
        }
        let refused = content("10.244.1.5 --protocol tcp").unwrap_err();
        assert!(refused.contains("needs a port") && refused.contains("10.244.1.5:80"), "{refused}");
        for line in ["10.244.1.5:80 --flags urgent", "", "a b c", "10.244.1.5 --protocol gre"] {
            assert!(content(line).is_err(), "{line}");
        }
    }

    #[test]
    fn people_read_the_stages_and_the_verdict_below_them() {
        let row = |stage: &str, verdict: &str, detail: &str| StageRow {
            stage: stage.to_owned(),
            verdict: verdict.to_owned(),
            detail: detail.to_owned(),
        };
        let explanation = Explanation {
            from: "cart\u{1b}/eth0".to_owned(),
            packet: "icmp echo 10.244.1.5 -> 10.244.1.9".to_owned(),
            verdict: "dropped".to_owned(),
            reason: Some("no_pod".to_owned()),
            answer: Some("ICMP host unreachable".to_owned()),
            stages: vec![row("xdp", "worker", "a worker gets it"), row("route", "drop", "no pod")],
        };
        let expected = "\
from cart?/eth0: icmp echo 10.244.1.5 -> 10.244.1.9

STAGE  VERDICT  DETAIL
xdp    worker   a worker gets it
route  drop     no pod

dropped: no_pod; told: ICMP host unreachable
";
        assert_eq!(view(&explanation), expected);
    }

    #[test]
    fn flags_are_read_by_name() {
        assert_eq!(flag("syn"), Ok(SYN));
        assert_eq!(flag("ack"), Ok(0x10));
        assert!(flag("SYN").is_err() && flag("syn+ack").is_err());
    }
}
