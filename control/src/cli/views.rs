//! The listings as people see them. A table shows what one looks for first, within some 100
//! columns; what may be long stands last.

use std::cmp::Reverse;
use std::fmt::Display;

use super::figures::{bytes, count, duration, percent};
use super::table::Align::{Left, Right};
use super::table::Table;
use crate::doctor::Row;
use crate::report::{
    DropRow, FallbackAction, PodRow, PodState, PortRow, RouteRow, Status, UplinkRow, WorkerRow,
};

/// Longest name of an interface (IFNAMSIZ - 1): a longer word that names no pod is a container ID.
const DEVICE_NAME_MAX: usize = 15;

/// A short block, and the workers with both laws.
pub(super) fn status(status: &Status) -> String {
    let Status { version, ready, uptime_s, generation, routes, .. } = status;
    let state = if *ready { "ready" } else { "NOT READY" };
    let mut lines = vec![
        format!("viaduct {version}: {state}, up {}", duration(*uptime_s)),
        format!("  port mode  {}", port_mode(status)),
        format!("  node       {}", list(&status.node_addresses)),
        format!("  pods       {}", pod_numbers(status)),
        format!("  tables     generation {generation}, {routes} routes"),
        format!("  fallback   {}", fallback_numbers(status)),
    ];
    lines.extend(
        status.uplinks.iter().map(|uplink| format!("  uplink     {}", uplink_line(uplink))),
    );
    lines.extend(status.problems.iter().map(|problem| format!("  problem    {problem}")));
    let blocks = [lines.join("\n") + "\n", frames(&status.workers), packets(&status.workers)];
    blocks.join("\n")
}

fn port_mode(status: &Status) -> String {
    let named = status.features.named();
    let which = |wanted: bool| -> Vec<&str> {
        named.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect()
    };
    format!(
        "{}; with {}; without {}",
        status.port_mode.name(),
        list(&which(true)),
        list(&which(false))
    )
}

fn pod_numbers(status: &Status) -> String {
    let Status { pods, fallback_pods, pod_cidrs, .. } = status;
    format!("{pods}, of them {fallback_pods} on fallback; addresses from {}", list(pod_cidrs))
}

fn fallback_numbers(status: &Status) -> String {
    let counts = &status.fallback_packets;
    let refused = counts.refused().map(|(_, count)| count).sum();
    format!("packets passed to the kernel: {}, refused: {}", count(counts.passed()), count(refused))
}

fn uplink_line(row: &UplinkRow) -> String {
    let UplinkRow { device, queues, zero_copy, xdp, mtu, note } = row;
    let note = note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    match xdp {
        None => format!("{device}: left to the kernel{note}"),
        Some(xdp) => format!(
            "{device}: {queues} queues, {zero_copy} of them zero-copy, {xdp} XDP, MTU {mtu}{note}"
        ),
    }
}

fn frames(workers: &[WorkerRow]) -> String {
    let mut table = Table::new([
        (Right, "WORKER"),
        (Right, "CORE"),
        (Right, "BUSY"),
        (Right, "PORTS"),
        (Right, "GENERATION"),
        (Left, "HUGEPAGES"),
        (Right, "FRAMES"),
        (Right, "FREE"),
        (Right, "RX"),
        (Right, "TX"),
        (Right, "CROSSING"),
        (Right, "HELD"),
        (Left, "LAW"),
    ]);
    for worker in workers {
        let frames = &worker.frames;
        table.row([
            worker.id.to_string(),
            worker.core.to_string(),
            percent(worker.busy_ratio),
            worker.ports.to_string(),
            worker.generation.to_string(),
            if worker.hugepages { "yes" } else { "no" }.to_owned(),
            count(frames.total),
            count(frames.free),
            count(frames.rx),
            count(frames.tx),
            count(frames.crossing),
            count(frames.held),
            law(frames.conserved()),
        ]);
    }
    table.to_string()
}

fn packets(workers: &[WorkerRow]) -> String {
    let mut table = Table::new([
        (Right, "WORKER"),
        (Right, "RECEIVED"),
        (Right, "GENERATED"),
        (Right, "CROSSED IN"),
        (Right, "MERGED"),
        (Right, "HELD"),
        (Right, "SENT"),
        (Right, "DROPPED"),
        (Right, "CROSSED OUT"),
        (Left, "LAW"),
    ]);
    for worker in workers {
        let packets = &worker.packets;
        table.row([
            worker.id.to_string(),
            count(packets.received),
            count(packets.generated),
            count(packets.crossed_in),
            count(packets.merged),
            count(packets.held),
            count(packets.sent),
            count(packets.dropped),
            count(packets.crossed_out),
            law(packets.conserved()),
        ]);
    }
    table.to_string()
}

fn law(holds: bool) -> String {
    if holds { "holds" } else { "BROKEN" }.to_owned()
}

/// Attached pods.
pub(super) fn pods(rows: &[PodRow]) -> String {
    if rows.is_empty() {
        return "no pods are attached\n".to_owned();
    }
    let mut table = Table::new([
        (Left, "POD"),
        (Left, "IFNAME"),
        (Right, "WORKER"),
        (Left, "STATE"),
        (Right, "FROM POD"),
        (Right, "TO POD"),
        (Right, "DROPS"),
        (Left, "ADDRESSES"),
    ]);
    for row in rows {
        table.row([
            row.title(),
            row.ifname.clone(),
            row.worker.to_string(),
            state(row).to_owned(),
            bytes(row.from_pod.bytes),
            bytes(row.to_pod.bytes),
            count(row.from_pod.dropped() + row.to_pod.dropped()),
            list(&row.ips),
        ]);
    }
    table.to_string()
}

fn state(row: &PodRow) -> &'static str {
    match (row.state, row.fallback) {
        (PodState::Userspace, _) => "userspace",
        (PodState::Fallback, FallbackAction::Pass) => "fallback: pass",
        (PodState::Fallback, FallbackAction::Drop) => "fallback: drop",
    }
}

/// Ports.
pub(super) fn ports(rows: &[PortRow]) -> String {
    if rows.is_empty() {
        return "there are no ports\n".to_owned();
    }
    let mut table = Table::new([
        (Right, "PORT"),
        (Left, "KIND"),
        (Left, "MODE"),
        (Left, "DEVICE"),
        (Right, "WORKER"),
        (Right, "MTU"),
        (Right, "PACKETS FROM"),
        (Right, "BYTES"),
        (Right, "PACKETS TO"),
        (Right, "BYTES"),
        (Right, "DROPS"),
    ]);
    for row in rows {
        table.row([
            row.port.to_string(),
            row.kind.name().to_owned(),
            row.mode.name().to_owned(),
            row.device.clone(),
            row.worker.to_string(),
            row.mtu.to_string(),
            count(row.from_pod.packets),
            bytes(row.from_pod.bytes),
            count(row.to_pod.packets),
            bytes(row.to_pod.bytes),
            count(row.from_pod.dropped() + row.to_pod.dropped()),
        ]);
    }
    table.to_string()
}

/// Routes.
pub(super) fn routes(rows: &[RouteRow]) -> String {
    if rows.is_empty() {
        return "there are no routes\n".to_owned();
    }
    let mut table = Table::new([
        (Left, "DESTINATION"),
        (Left, "VIA"),
        (Left, "DEVICE"),
        (Right, "PORT"),
        (Left, "SOURCE"),
    ]);
    for row in rows {
        table.row([
            row.dst.to_string(),
            row.via.map_or_else(String::new, |via| via.to_string()),
            row.dev.clone(),
            row.port.map_or_else(String::new, |port| port.to_string()),
            row.source.clone(),
        ]);
    }
    table.to_string()
}

/// Drops, each with its sentence, most packets first.
pub(super) fn drops(rows: &[DropRow]) -> String {
    if rows.is_empty() {
        return "no packet was dropped\n".to_owned();
    }
    let mut table = Table::new([
        (Right, "PACKETS"),
        (Left, "POD"),
        (Left, "DIRECTION"),
        (Left, "REASON"),
        (Left, "MEANING"),
    ]);
    let mut rows: Vec<&DropRow> = rows.iter().collect();
    rows.sort_by_key(|row| Reverse(row.count));
    for row in rows {
        table.row([
            count(row.count),
            whose(&row.pod),
            row.direction.name().to_owned(),
            row.reason.clone(),
            row.sentence.clone(),
        ]);
    }
    table.to_string()
}

/// What the doctor found, and below it what to do: sentences of that length would tear columns.
pub(super) fn doctor(rows: &[Row]) -> String {
    let mut table = Table::new([(Left, "CHECK"), (Left, "RESULT"), (Left, "FOUND")]);
    for row in rows {
        table.row([row.check.clone(), result(row).to_owned(), row.found.clone()]);
    }
    let amiss = |row: &&Row| row.ok == Some(false);
    let mends = [
        ("To mend:", rows.iter().filter(amiss).collect::<Vec<_>>()),
        ("Could be better:", rows.iter().filter(|row| !amiss(row)).collect()),
    ];
    let mut blocks = vec![table.to_string()];
    for (title, rows) in mends {
        let lines = rows.iter().filter(|row| !row.mend.is_empty());
        let lines: Vec<String> =
            lines.map(|row| format!("  {}: {}\n", row.check, row.mend)).collect();
        if !lines.is_empty() {
            let lines = lines.concat().replace(|c: char| c.is_control() && c != '\n', "?");
            blocks.push(format!("{title}\n{lines}"));
        }
    }
    blocks.join("\n")
}

fn result(row: &Row) -> &'static str {
    match row.ok {
        Some(true) => "ok",
        Some(false) => "amiss",
        None => "unknown",
    }
}

/// A container ID as container tools print it; names of pods and devices as they are.
pub(super) fn whose(pod: &str) -> String {
    if pod.len() > DEVICE_NAME_MAX && pod.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        pod.chars().take(12).collect()
    } else {
        pod.to_owned()
    }
}

fn list<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
