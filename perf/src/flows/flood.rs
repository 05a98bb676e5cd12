//! SYNs to one pod, each from another address or port, while other pods have connections and open
//! new ones.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Result, ensure};
use dataplane::conntrack::{FlowKey, FlowState, FlowTable, NewFlow};
use serde::Serialize;

use super::{ACK, Family, PODS, SECOND_NS, SYN, flow_of, segment, table};
use crate::interrupt;

/// The pod that is flooded.
const FLOODED: u16 = 0;

/// Of the table, what the other pods have established before: half.
const ESTABLISHED_PART: u32 = 2;

/// SYNs between two connections that clients of other pods open.
const SYNS_PER_CONNECTION: u32 = 500;

/// SYNs between a client's SYN and the pod's answer, and then the client's: 1.3 ms of a flood that
/// fills a link of a gigabit, which is more than pods and clients on one network take.
const SYNS_PER_ANSWER: u32 = 2000;

/// SYNs in a second, as many as a link of a gigabit carries.
const SYNS_PER_SECOND: u64 = 1_488_095;

/// When the flood begins.
const FLOOD_NS: u64 = 2 * SECOND_NS;

/// What a flood did.
#[derive(Debug, Serialize)]
pub struct Flood {
    /// Flows that a pod may have.
    pub quota: u32,
    /// SYNs that were sent.
    pub syns: u32,
    /// Nanoseconds that one took, the other pods' connections included.
    pub ns_per_syn: f64,
    /// Flows that gave way to others.
    pub evicted: u64,
    /// Flows of the other pods that were established before.
    pub established: u32,
    /// Of these, what was there in the end.
    pub alive: u32,
    /// Connections that clients of other pods asked for meanwhile.
    pub asked: u32,
    /// Of these, what was established.
    pub served: u32,
}

/// Floods a table with room for so many flows.
///
/// # Errors
/// When there is no memory for it, and when it is interrupted.
pub fn run(room: u32, quota: u32, syns: u32) -> Result<Flood> {
    let (mut table, counters) = table(room, quota)?;
    let others = room / ESTABLISHED_PART;
    let established: Vec<NewFlow> = (0..others).map(other).collect();
    for new in &established {
        let is_open = ask(&mut table, new, SECOND_NS);
        let is_open = is_open && answer(&mut table, new, SECOND_NS);
        ensure!(is_open && acknowledge(&mut table, new, SECOND_NS), "a table with room has room");
    }
    let (mut asked, mut served) = (0, 0);
    // By when they are due: the pods' answers, and what the clients say then.
    let (mut answers, mut last) = (VecDeque::new(), VecDeque::new());
    let mut now_ns = FLOOD_NS;
    let started = Instant::now();
    for number in 0..syns {
        if number % (1 << 16) == 0 {
            interrupt::check()?;
        }
        now_ns = FLOOD_NS + u64::from(number) * SECOND_NS / SYNS_PER_SECOND;
        // A refused one is dropped, as a worker does.
        let _opened = ask(&mut table, &flow_of(FLOODED, number, Family::Ipv4), now_ns);
        // Only those that have the time to get there.
        if number % SYNS_PER_CONNECTION == 0 && number + 2 * SYNS_PER_ANSWER < syns {
            let new = other(others + asked);
            asked += 1;
            if ask(&mut table, &new, now_ns) {
                answers.push_back((number + SYNS_PER_ANSWER, new));
            }
        }
        if let Some((_, new)) = answers.pop_front_if(|(due, _)| *due == number)
            && answer(&mut table, &new, now_ns)
        {
            last.push_back((number + SYNS_PER_ANSWER, new));
        }
        if let Some((_, new)) = last.pop_front_if(|(due, _)| *due == number) {
            served += u32::from(acknowledge(&mut table, &new, now_ns));
        }
    }
    let ns_per_syn = started.elapsed().as_nanos() as f64 / f64::from(syns.max(1));
    let lives = |new: &&NewFlow| table.lookup(&new.original, now_ns).is_some();
    let alive = established.iter().filter(lives).count() as u32;
    let evicted = counters.evicted.get();
    Ok(Flood { quota, syns, ns_per_syn, evicted, established: others, alive, asked, served })
}

/// The connection with this number to a pod that is not flooded.
fn other(number: u32) -> NewFlow {
    let pods = u32::from(PODS) - 1;
    flow_of(FLOODED + 1 + (number % pods) as u16, number, Family::Ipv4)
}

/// A client's SYN. Whether it gets to the pod.
fn ask(table: &mut FlowTable, new: &NewFlow, now_ns: u64) -> bool {
    table.open(new, &segment(SYN, 100, 0), now_ns).is_ok()
}

/// The pod's SYN and ACK. Whether it gets to the client.
fn answer(table: &mut FlowTable, new: &NewFlow, now_ns: u64) -> bool {
    let reply = FlowKey { dst: new.serving, ..new.original }.inverse();
    let Some(found) = table.lookup(&reply, now_ns) else { return false };
    table.observe(found, &segment(SYN | ACK, 500, 101), now_ns);
    true
}

/// The client's ACK. Whether the connection is established then.
fn acknowledge(table: &mut FlowTable, new: &NewFlow, now_ns: u64) -> bool {
    let Some(found) = table.lookup(&new.original, now_ns) else { return false };
    table.observe(found, &segment(ACK, 101, 501), now_ns);
    table.flow(found).state == FlowState::Established
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_the_others_what_they_have_and_what_they_ask_for() {
        for quota in [4096, 16_384] {
            let flood = run(16_384, quota, 200_000).expect("memory");
            assert_eq!((flood.established, flood.alive), (8192, 8192), "quota {quota}");
            assert_eq!((flood.asked, flood.served), (392, 392), "quota {quota}");
            // The pod's own flows, or those of the table, gave way to nearly every SYN.
            assert!(flood.evicted > 180_000, "quota {quota}: {}", flood.evicted);
        }
    }
}
