//! `viaduct limits`: the limits of pods as people see them, and how they are changed.

use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use clap::{Args, Subcommand};
use cni_bridge::protocol::{Call, LimitChange, LimitsRequest, Listing, Reply};

use super::figures::{bytes, count};
use super::table::Align::{Left, Right};
use super::table::Table;
use super::views::whose;
use super::{CliError, Format, calls, fetch, list};
use crate::quantity::{Quantity, QuantityError};
use crate::report::{LimitRow, pod_name};

/// What `viaduct limits` shows or does.
#[derive(Args, Clone, Debug)]
pub(super) struct Limits {
    #[command(flatten)]
    pub(super) format: Format,
    #[command(subcommand)]
    pub(super) change: Option<LimitsCommand>,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum LimitsCommand {
    /// Changes the limits of a running pod
    ///
    /// Done when the pod's worker holds the new limits; they outlive viaductd, and end with the
    /// pod. A direction that is not named keeps its limit.
    #[command(verbatim_doc_comment)]
    Set(SetLimits),
}

/// New limits of one pod.
#[derive(Args, Clone, Debug)]
pub(super) struct SetLimits {
    /// The container's ID, or as much of its beginning as tells it from the others
    #[arg(value_name = "CONTAINER_ID")]
    pub(super) container_id: String,
    /// The pod's interface, if it has several
    #[arg(long, value_name = "IFNAME")]
    pub(super) ifname: Option<String>,
    /// Rate to the pod in bits per second, as 20M, or "none" for no limit
    #[arg(long, value_name = "RATE")]
    pub(super) ingress: Option<Rate>,
    /// Rate from the pod in bits per second, as 20M, or "none" for no limit
    #[arg(long, value_name = "RATE")]
    pub(super) egress: Option<Rate>,
    /// Most bits that pass at once after a pause, for the rates named; by default as before
    #[arg(long, value_name = "BITS")]
    pub(super) burst: Option<Quantity>,
}

/// What becomes of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rate {
    /// It is unlimited.
    None,
    /// It is so many bits per second.
    Bits(Quantity),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "none" {
            return Ok(Rate::None);
        }
        let bits: Result<Quantity, QuantityError> = text.parse();
        bits.map(Rate::Bits).map_err(|error| format!("{error}; for no limit write none"))
    }
}

/// Lists the limits, or changes some.
pub(super) fn run(socket: &Path, limits: Limits, out: &mut impl Write) -> Result<(), CliError> {
    let Limits { format, change } = limits;
    let Some(LimitsCommand::Set(wish)) = change else {
        return list(socket, calls(Listing::Limits), format, table, out);
    };
    match fetch(socket, Call::SetLimits(request(wish)?))? {
        Reply::Done => Ok(()),
        _ => Err(CliError::NotAListing { socket: socket.to_owned() }),
    }
}

/// What is asked of the daemon.
fn request(wish: SetLimits) -> Result<LimitsRequest, CliError> {
    let SetLimits { container_id, ifname, ingress, egress, burst } = wish;
    let burst_bits = burst.map(|Quantity(bits)| bits);
    if ingress.is_none() && egress.is_none() {
        return Err(CliError::NoRate { container_id });
    }
    let has_rate = [ingress, egress].iter().any(|rate| matches!(rate, Some(Rate::Bits(_))));
    if burst_bits.is_some() && !has_rate {
        return Err(CliError::BurstAlone { container_id });
    }
    let change = |rate| match rate {
        Rate::None => LimitChange::Lift,
        Rate::Bits(Quantity(rate_bps)) => LimitChange::Set { rate_bps, burst_bits },
    };
    let (ingress, egress) = (ingress.map(change), egress.map(change));
    Ok(LimitsRequest { container_id, ifname, ingress, egress })
}

/// Limits of pods.
pub(super) fn table(rows: &[LimitRow]) -> String {
    if rows.is_empty() {
        return "no pod has a limit\n".to_owned();
    }
    let mut table = Table::new([
        (Left, "CONTAINER"),
        (Left, "IFNAME"),
        (Left, "POD"),
        (Left, "DIRECTION"),
        (Right, "RATE"),
        (Right, "BURST"),
        (Right, "ASKED"),
        (Right, "TOKENS"),
        (Right, "QUEUED"),
        (Right, "DROPPED"),
        (Right, "MARKED"),
    ]);
    for row in rows {
        table.row([
            whose(&row.container_id),
            row.ifname.clone(),
            pod_name(&row.namespace, &row.name).unwrap_or_default(),
            row.direction.name().to_owned(),
            Quantity(row.applied_bps).to_string(),
            bytes(row.applied_burst_bytes),
            bytes(row.requested_burst_bits / 8),
            match u64::try_from(row.tokens_bytes) {
                Ok(tokens) => bytes(tokens),
                Err(_) => format!("-{}", bytes(row.tokens_bytes.unsigned_abs())),
            },
            bytes(row.queued_bytes),
            count(row.dropped),
            count(row.marked),
        ]);
    }
    table.to_string()
}
