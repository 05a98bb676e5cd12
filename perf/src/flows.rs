//! `viaduct-perf flows`: the table of flows with as many as a node may have: memory, time of every
//! operation, and what a flood of SYNs to one pod leaves to the others. Needs neither root nor
//! namespaces: the table is the workers' own, filled by hand.

mod flood;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dataplane::conntrack::{
    Endpoint, FlowCounters, FlowKey, FlowTable, HashSeed, NewFlow, Records, Replies, Signal,
    Source, TableParts, TcpSegment, Transport,
};
use dataplane::port::PortId;
use dataplane::xsk::words::Words;
use serde::Serialize;
use serde_json::json;

use self::flood::Flood;
use crate::interrupt;
use crate::report::{Bound, Report, Table, Target, progress};
use crate::stats::median;

/// Pods that the flows are of, as many as a node usually has.
const PODS: u16 = 110;

/// Flows that packets come for over and over again.
const HOT_FLOWS: u32 = 1 << 10;

/// Ports of one client: more flows than that need another address.
const PORTS_PER_CLIENT: u32 = 50_000;

/// What a worker frees between packets at most, in one call.
const EXPIRE_WORK: usize = 64;

const SECOND_NS: u64 = 1_000_000_000;

/// Any boot will do.
const BOOT: [u64; 2] = [1, 2];

/// The least share of other pods' new connections that a flood may leave.
const NEW_SHARE: f64 = 0.95;

/// How many flows, and how often.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Flows in the table
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(2048..))]
    flows: u32,
    /// Times that every table is filled and emptied
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
    /// SYNs of the flood, each from another address or port
    #[arg(long, default_value_t = 1_000_000)]
    flood: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Family {
    Ipv4,
    Ipv6,
}

/// What one turn's operations took, in the order of the table of the report.
#[derive(Debug, Serialize)]
struct Turn {
    family: Family,
    /// Names of the operations, and nanoseconds of each.
    ns: Vec<(&'static str, f64)>,
}

/// Measures.
///
/// # Errors
/// When there is no memory for so many flows, and when it is interrupted.
pub fn measure(options: &Options) -> Result<Report> {
    let Options { flows, turns, flood } = *options;
    progress(&format!("memory of {flows} flows"));
    let bytes_per_flow = memory(flows)?;
    let mut all = Vec::new();
    for turn in 1..=turns {
        progress(&format!("turn {turn} of {turns}"));
        for family in [Family::Ipv4, Family::Ipv6] {
            all.push(Turn { family, ns: operations(flows, family)? });
        }
    }
    let mut floods = Vec::new();
    // By default a pod has a quarter of the table; without a quota eviction alone has to do it.
    for quota in [flows / 4, flows] {
        progress(&format!("{flood} SYNs to one pod that may have {quota} flows"));
        floods.push(flood::run(flows, quota, flood)?);
    }
    Ok(sum_up(flows, bytes_per_flow, &all, &floods))
}

/// Resident memory of a full table, for each flow.
fn memory(flows: u32) -> Result<f64> {
    let before = resident_bytes()?;
    let (mut table, _) = table(flows, flows)?;
    fill(&mut table, flows, Family::Ipv4)?;
    let after = resident_bytes()?;
    drop(table);
    Ok(after.saturating_sub(before) as f64 / f64::from(flows))
}

fn resident_bytes() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("read /proc/self/statm")?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.context("statm has resident pages")? * rustix::param::page_size() as u64)
}

/// An empty table whose pods are all admitted, and what it counts.
fn table(room: u32, quota: u32) -> Result<(FlowTable, Arc<FlowCounters>)> {
    let counters = Arc::new(FlowCounters::default());
    let words = Words::anonymous(Records::words(room)).context("memory for the flows")?;
    let mut table = FlowTable::new(TableParts {
        records: Records::format(Arc::new(words), BOOT),
        flows_per_owner: quota,
        source_ports: 1024..=u16::MAX,
        seed: HashSeed([0x0123_4567_89ab_cdef, 0x0f1e_2d3c_4b5a_6978]),
        counters: counters.clone(),
    });
    (0..PODS).for_each(|pod| table.admit_owner(PortId(pod), 1));
    Ok((table, counters))
}

/// The flow with this number: of a client to a host port of the pod whose turn it is.
fn flow(number: u32, family: Family) -> NewFlow {
    flow_of((number % u32::from(PODS)) as u16, number, family)
}

fn flow_of(pod: u16, number: u32, family: Family) -> NewFlow {
    let client = number / PORTS_PER_CLIENT;
    let address = |v4: u32, net: u16, host: u32| match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::from(v4 + host)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::from(
            (0x2001_0db8 << 96) | u128::from(net) << 64 | u128::from(host),
        )),
    };
    let port = (number % PORTS_PER_CLIENT) as u16 + 1024;
    let src = Endpoint { address: address(0x0a00_0000, 1, client), port };
    let dst = Endpoint { address: address(0xc000_0201, 2, 0), port: 8000 + pod };
    let serving = Endpoint { address: address(0x0af4_0100, 3, u32::from(pod)), port: 80 };
    let original = FlowKey { transport: Transport::Tcp, src, dst };
    let (source, replies) = (Source::Client, Replies::ByRoute);
    NewFlow { owner: PortId(pod), original, serving, source, replies }
}

fn segment(flags: u8, sequence: u32, acknowledgment: u32) -> Signal {
    Signal::Tcp(TcpSegment { flags, sequence, acknowledgment, payload_bytes: 0 })
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn fill(table: &mut FlowTable, flows: u32, family: Family) -> Result<()> {
    let syn = segment(SYN, 100, 0);
    for number in 0..flows {
        table.open(&flow(number, family), &syn, SECOND_NS).context("a table with room")?;
    }
    Ok(())
}

/// Numbers below `flows`, each once, far from each other.
fn scattered(flows: u32) -> impl Iterator<Item = u32> {
    let divides = |a: u32, b: u32| {
        let (mut a, mut b) = (a, b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    // The golden ratio: no two of many steps in a row come close.
    let golden = (f64::from(flows) * 0.618_034) as u32;
    let step = (golden..).find(|step| divides(*step, flows)).unwrap_or(1);
    (0..u64::from(flows)).map(move |n| (n * u64::from(step) % u64::from(flows)) as u32)
}

/// Fills a table, uses it, and empties it.
fn operations(flows: u32, family: Family) -> Result<Vec<(&'static str, f64)>> {
    let (mut table, _) = table(flows, flows)?;
    let mut ns = Vec::new();
    let mut note = |name, started: Instant, count: u32| {
        ns.push((name, started.elapsed().as_nanos() as f64 / f64::from(count.max(1))));
    };
    let started = Instant::now();
    fill(&mut table, flows, family)?;
    note("open", started, flows);

    for (name, hot) in [("find, hot", true), ("find, random", false)] {
        let started = Instant::now();
        for number in scattered(flows) {
            let number = if hot { number % HOT_FLOWS } else { number };
            black_box(table.lookup(&flow(number, family).original, SECOND_NS));
        }
        note(name, started, flows);
    }
    // What a packet costs: its flow is found, followed, and says what the packet becomes.
    let ack = segment(ACK, 101, 1);
    for (name, hot, now_ns) in [
        ("packet, hot", true, SECOND_NS),
        ("packet, random", false, SECOND_NS),
        ("packet, random, another second", false, 2 * SECOND_NS),
    ] {
        let started = Instant::now();
        for number in scattered(flows) {
            let number = if hot { number % HOT_FLOWS } else { number };
            let found = table.lookup(&flow(number, family).original, now_ns);
            let found = found.context("every flow was opened")?;
            black_box(table.sent(found));
            table.observe(found, &ack, now_ns);
        }
        note(name, started, flows);
    }
    let started = Instant::now();
    for number in scattered(flows) {
        black_box(table.lookup(&flow(flows + number, family).original, 2 * SECOND_NS));
    }
    note("miss", started, flows);
    interrupt::check()?;

    let started = Instant::now();
    let syn = segment(SYN, 100, 0);
    for number in 0..flows {
        let new = flow(flows + number, family);
        table.open(&new, &syn, 3 * SECOND_NS).context("embryonic flows give way")?;
    }
    note("open, one gives way", started, flows);

    let started = Instant::now();
    for _ in 0..flows {
        black_box(table.expire(3 * SECOND_NS, EXPIRE_WORK));
    }
    note("look for expired, none", started, flows);
    finish(table, flows, &mut note)?;
    Ok(ns)
}

/// What ends flows: a crash, a pod that goes, time.
fn finish(
    mut table: FlowTable,
    flows: u32,
    note: &mut impl FnMut(&'static str, Instant, u32),
) -> Result<()> {
    let (mut next, _) = self::table(flows, flows)?;
    let started = Instant::now();
    let restored = next.restore(table.records(), 4 * SECOND_NS);
    note("restore", started, flows);
    ensure!(restored.restored == flows, "a process that starts finds every flow: {restored:?}");
    drop(next);

    let started = Instant::now();
    table.retire_owner(PortId(0));
    note("retire a pod, in all", started, 1);

    let started = Instant::now();
    let mut freed = 0;
    while freed < flows as usize {
        let done = table.expire(100 * SECOND_NS, EXPIRE_WORK);
        freed += done;
        // Sixteen pods are looked at in a call, and all of them have flows.
        ensure!(done > 0 || freed == flows as usize, "{freed} of {flows} flows expired");
    }
    note("expire", started, flows);
    Ok(())
}

fn sum_up(flows: u32, bytes_per_flow: f64, turns: &[Turn], floods: &[Flood]) -> Report {
    let title = format!("{flows} flows, {bytes_per_flow:.0} bytes each; ns, medians");
    let mut times = Table::new(title, &["", "IPv4", "turns", "IPv6", "turns"]);
    let names = turns.first().map(|turn| turn.ns.iter().map(|(name, _)| *name));
    for name in names.into_iter().flatten() {
        let mut row = vec![name.to_owned()];
        for family in [Family::Ipv4, Family::Ipv6] {
            let of_family = turns.iter().filter(|turn| turn.family == family);
            let of_name = of_family.flat_map(|turn| turn.ns.iter().filter(|(n, _)| *n == name));
            let ns: Vec<f64> = of_name.map(|(_, ns)| *ns).collect();
            let each: Vec<String> = ns.iter().map(|ns| format!("{ns:.0}")).collect();
            row.extend([format!("{:.0}", median(&ns)), each.join(" ")]);
        }
        times.row(row);
    }
    let heads = ["quota", "SYNs", "ns each", "evicted", "others alive", "new ones served"];
    let mut table = Table::new("a flood of SYNs to one pod", &heads);
    let mut targets = Vec::new();
    for flood in floods {
        let Flood { quota, syns, ns_per_syn, evicted, .. } = flood;
        table.row([
            quota.to_string(),
            syns.to_string(),
            format!("{ns_per_syn:.0}"),
            evicted.to_string(),
            format!("{} of {}", flood.alive, flood.established),
            format!("{} of {}", flood.served, flood.asked),
        ]);
        let alive = f64::from(flood.alive) / f64::from(flood.established.max(1));
        let what = format!("established flows alive, quota {quota}");
        targets.push(Target::new(what, alive, Bound::AtLeast(1.0)));
        let served = f64::from(flood.served) / f64::from(flood.asked.max(1));
        let what = format!("new flows of others served, quota {quota}");
        targets.push(Target::new(what, served, Bound::AtLeast(NEW_SHARE)));
    }
    let figures = json!({
        "flows": flows, "bytes_per_flow": bytes_per_flow, "turns": turns, "floods": floods,
    });
    Report::new("flows", vec![times, table], targets, figures)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn scattered_numbers_are_all_there_once() {
        for flows in [2048, 2049, 3000, 4093] {
            let numbers: HashSet<u32> = scattered(flows).collect();
            assert_eq!(numbers.len(), flows as usize);
            assert!(numbers.iter().all(|number| *number < flows));
        }
    }

    #[test]
    fn every_flow_has_a_key_of_its_own_and_every_operation_is_timed() {
        let keys: HashSet<FlowKey> = (0..200_000).map(|n| flow(n, Family::Ipv4).original).collect();
        assert_eq!(keys.len(), 200_000);
        for family in [Family::Ipv4, Family::Ipv6] {
            let ns = operations(4096, family).expect("a small table");
            assert_eq!(ns.len(), 12);
            assert!(ns.iter().all(|(_, ns)| *ns > 0.0), "{ns:?}");
        }
    }
}
