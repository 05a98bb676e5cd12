//! Host ports and flows as people see them.

use std::net::{IpAddr, SocketAddr};

use super::figures::duration;
use super::table::Align::{Left, Right};
use super::table::Table;
use super::views::whose;
use crate::report::{FlowRow, HostPortRow};

/// Ports of the node that lead to pods.
pub(super) fn host_ports(rows: &[HostPortRow]) -> String {
    if rows.is_empty() {
        return "no port of the node leads to a pod\n".to_owned();
    }
    let mut table = Table::new([
        (Left, "PROTOCOL"),
        (Left, "HOST"),
        (Left, "POD"),
        (Left, "CONTAINER"),
        (Left, "IFNAME"),
    ]);
    for row in rows {
        table.row([
            row.protocol.clone(),
            match row.host_ip.is_unspecified() {
                // No address of the node is meant, but all of this family.
                true if row.host_ip.is_ipv4() => format!("any IPv4:{}", row.host_port),
                true => format!("any IPv6:{}", row.host_port),
                false => end(row.host_ip, row.host_port),
            },
            end(row.container_ip, row.container_port),
            whose(&row.container_id),
            row.ifname.clone(),
        ]);
    }
    table.to_string()
}

/// Flows that workers follow.
pub(super) fn flows(rows: &[FlowRow]) -> String {
    if rows.is_empty() {
        return "there are no flows\n".to_owned();
    }
    let mut table = Table::new([
        (Right, "WORKER"),
        (Left, "PROTOCOL"),
        (Left, "STATE"),
        (Right, "IDLE"),
        (Left, "CLIENT"),
        (Left, "ASKED"),
        (Left, "POD"),
        (Left, "POD SEES"),
        (Left, "REPLIES BY"),
    ]);
    for row in rows {
        let client = end(row.src, row.sport);
        let seen = end(row.nat_src, row.nat_sport);
        table.row([
            row.worker.to_string(),
            row.protocol.clone(),
            row.state.clone(),
            duration(row.idle_s.into()),
            client.clone(),
            end(row.dst, row.dport),
            end(row.nat_dst, row.nat_dport),
            // As most pods see their clients as they are, only what differs is shown.
            if seen == client { String::new() } else { seen },
            row.replies.clone(),
        ]);
    }
    table.to_string()
}

/// An address and port: `10.244.1.5:80`, `[fd00::5]:80`.
fn end(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}
