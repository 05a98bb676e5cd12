//! The limits' part of the metrics page. Rates are bytes per second here, as the page counts bytes
//! everywhere.

use super::Exposition;
use crate::report::LimitRow;

/// One figure of a limit: its name, its type, its help, and how to read it.
type Figure = (&'static str, &'static str, &'static str, fn(&LimitRow) -> f64);

const FIGURES: [Figure; 7] = [
    ("rate_bytes_per_second", "gauge", "Rate that the pod is held to.", |row| {
        row.applied_bps as f64 / 8.0
    }),
    ("burst_bytes", "gauge", "Bytes that may pass at once after a pause.", |row| {
        row.applied_burst_bytes as f64
    }),
    ("requested_burst_bytes", "gauge", "Burst that was asked for.", |row| {
        row.requested_burst_bits as f64 / 8.0
    }),
    ("tokens_bytes", "gauge", "Bytes that may pass now; negative is a debt.", |row| {
        row.tokens_bytes as f64
    }),
    ("queued_bytes", "gauge", "Bytes that wait now.", |row| row.queued_bytes as f64),
    (
        "dropped_packets_total",
        "counter",
        "Packets that would have waited too long or held too much memory.",
        |row| row.dropped as f64,
    ),
    (
        "marked_packets_total",
        "counter",
        "Packets marked with CE, so that their senders slow down.",
        |row| row.marked as f64,
    ),
];

impl Exposition {
    /// What pods are held to, and what came of it.
    pub(super) fn limits(&mut self, limits: &[LimitRow]) {
        for (figure, kind, help, read) in FIGURES {
            let name = format!("viaduct_limit_{figure}");
            self.family(&name, kind, help);
            for row in limits {
                let labels = [
                    ("network", row.network.as_str()),
                    ("namespace", &row.namespace),
                    ("pod", &row.name),
                    ("container_id", &row.container_id),
                    ("ifname", &row.ifname),
                    ("direction", row.direction.name()),
                ];
                self.sample(&name, &labels, read(row));
            }
        }
    }
}
