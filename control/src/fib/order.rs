//! The order of tables: which of the kernel's tables are looked into, as its rules say. Rules that
//! ask more of a packet than where it goes cannot be followed; `viaduct doctor` names them.

use crate::netlink::{Policy, Verdict};

/// The tables of each family in their order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Order {
    v4: Vec<u32>,
    v6: Vec<u32>,
}

impl Order {
    /// By the rules of both families; those of one family in the order of their priorities.
    pub(super) fn of(policies: &[Policy]) -> Order {
        let family = |ipv6| policies.iter().filter(|policy| policy.ipv6 == ipv6).collect();
        Order { v4: tables(family(false)), v6: tables(family(true)) }
    }

    /// How many tables there are in the longer order.
    pub(super) fn len(&self) -> usize {
        self.v4.len().max(self.v6.len())
    }

    /// The place of a table; `None` if it is not looked into.
    pub(super) fn place(&self, ipv6: bool, table: u32) -> Option<usize> {
        let tables = if ipv6 { &self.v6 } else { &self.v4 };
        tables.iter().position(|followed| *followed == table)
    }
}

fn tables(policies: Vec<&Policy>) -> Vec<u32> {
    let mut tables = Vec::new();
    let mut rest = policies.as_slice();
    while let Some((policy, behind)) = rest.split_first() {
        rest = behind;
        if !policy.conditions.is_empty() {
            continue;
        }
        match policy.verdict {
            // To look again into a table that had no route, or threw, changes nothing.
            Verdict::Lookup(table) if tables.contains(&table) => {}
            Verdict::Lookup(table) => tables.push(table),
            Verdict::Goto(target) => {
                // Without its target the kernel passes the rule over.
                if let Some(at) = behind.iter().position(|policy| policy.priority == target) {
                    rest = &behind[at..];
                }
            }
            Verdict::Nop => {}
            // What no table before has a route for is refused, which the kernel does.
            Verdict::Refuse => break,
        }
    }
    tables
}

#[cfg(test)]
mod tests;
