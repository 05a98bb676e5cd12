//! Orders about flows that would take too long for one pass: they are carried out one after
//! another, a part of the first in each pass.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::conntrack::{Carried, Flow, FlowKey, FlowTable};
use crate::host_ports::HostPort;
use crate::port::PortId;

/// Flows taken over in one pass: some 50 µs of work, as restoring them takes.
const TAKEN_PER_PASS: usize = 128;

/// Places of the table looked at in one pass for what is to be forgotten: some 40 µs.
const SWEPT_PER_PASS: u32 = 1024;

enum Order {
    /// The flows of the kernel that are still to be taken over.
    TakeOver(Vec<Carried>),
    /// Host ports whose flows are to be forgotten, and where in the table the search for them goes
    /// on.
    Forget(Arc<[HostPort]>, u32),
}

/// What is still to be carried out.
#[derive(Default)]
pub(super) struct FlowOrders(VecDeque<Order>);

impl FlowOrders {
    /// Will go on with these flows of the kernel.
    pub fn take_over(&mut self, flows: Box<[Carried]>) {
        self.0.push_back(Order::TakeOver(flows.into_vec()));
    }

    /// Will forget what was asked at these host ports, of the flows above too.
    pub fn forget(&mut self, host_ports: Arc<[HostPort]>) {
        self.0.push_back(Order::Forget(host_ports, 0));
    }

    /// The pod of this port is gone: none of its flows is taken over for whoever gets the port.
    pub fn retire_owner(&mut self, owner: PortId) {
        for order in &mut self.0 {
            if let Order::TakeOver(flows) = order {
                flows.retain(|carried| carried.owner != owner);
            }
        }
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Carries out a part of the first order.
    pub fn proceed(&mut self, table: &mut FlowTable, now_ns: u64) {
        let is_done = match self.0.front_mut() {
            None => return,
            Some(Order::TakeOver(flows)) => {
                for carried in flows.drain(flows.len().saturating_sub(TAKEN_PER_PASS)..) {
                    // What has begun here meanwhile, or finds no room, is none to take over.
                    let _known = table.take_over(&carried, now_ns);
                }
                flows.is_empty()
            }
            Some(Order::Forget(host_ports, from)) => {
                let is_one = |flow: &Flow| {
                    let FlowKey { transport, dst, .. } = flow.original;
                    host_ports.iter().any(|host_port| host_port.covers(transport, dst))
                };
                let next = table.sweep(*from, SWEPT_PER_PASS, is_one);
                *from = next.unwrap_or(*from);
                next.is_none()
            }
        };
        if is_done {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::conntrack::{
        Endpoint, FlowCounters, HashSeed, Records, Replies, Stage, TableParts, Transport,
    };
    use crate::host_ports::HostAddress;
    use crate::xsk::words::Words;

    /// More than one pass takes over, and places for more than one pass sweeps.
    const FLOWS: u16 = 300;
    const ROOM: u32 = 2 * SWEPT_PER_PASS + 1;
    const ASKED: u16 = 8080;

    fn table(counters: &Arc<FlowCounters>) -> FlowTable {
        let words = Arc::new(Words::anonymous(Records::words(ROOM)).unwrap());
        let mut table = FlowTable::new(TableParts {
            records: Records::format(words, [1, 2]),
            flows_per_owner: ROOM,
            source_ports: 1024..=65_535,
            seed: HashSeed([3, 4]),
            counters: counters.clone(),
        });
        (1..=2).for_each(|owner| table.admit_owner(PortId(owner), 1));
        table
    }

    fn end(last: u8, port: u16) -> Endpoint {
        Endpoint { address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), port }
    }

    /// So many flows, of the pods 1 and 2 in turn.
    fn carried() -> Box<[Carried]> {
        let flow = |client: u16| {
            let owner = 1 + client % 2;
            let original =
                FlowKey { transport: Transport::Udp, src: end(9, client), dst: end(1, ASKED) };
            let translated = FlowKey { dst: end(100 + owner as u8, 80), ..original };
            let (replies, stage) = (Replies::ByRoute, Stage::Answered);
            Carried { owner: PortId(owner), original, translated, replies, stage }
        };
        (0..FLOWS).map(flow).collect()
    }

    fn host_port(port: u16) -> Arc<[HostPort]> {
        [HostPort { transport: Transport::Udp, address: HostAddress::AnyV4, port }].into()
    }

    /// How many flows there are after each pass until nothing is left to do.
    fn passes(orders: &mut FlowOrders, counters: &Arc<FlowCounters>) -> Vec<u64> {
        let mut table = table(counters);
        let mut flows = Vec::new();
        while !orders.is_empty() {
            orders.proceed(&mut table, 0);
            flows.push(counters.flows.get());
        }
        for Carried { original, .. } in carried() {
            let is_there = table.lookup(&original, 0).is_some();
            assert!(is_there || counters.flows.get() < FLOWS.into(), "{original:?}");
        }
        flows
    }

    #[test]
    fn flows_are_taken_over_some_in_each_pass() {
        let mut orders = FlowOrders::default();
        orders.take_over(carried());
        assert_eq!(passes(&mut orders, &Arc::default()), [128, 256, 300]);
    }

    #[test]
    fn what_is_to_be_forgotten_is_forgotten_of_flows_that_were_to_be_taken_over_before() {
        for (port, left) in [(ASKED, 0), (ASKED + 1, 300)] {
            let mut orders = FlowOrders::default();
            orders.take_over(carried());
            orders.forget(host_port(port));
            let flows = passes(&mut orders, &Arc::default());
            assert_eq!(flows, [128, 256, 300, left, left, left]);
        }
    }

    #[test]
    fn no_flow_is_taken_over_for_a_pod_that_went_before_its_turn() {
        let mut orders = FlowOrders::default();
        orders.take_over(carried());
        orders.retire_owner(PortId(2));
        assert_eq!(passes(&mut orders, &Arc::default()), [128, 150]);
    }
}
