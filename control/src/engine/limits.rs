//! Limits of pods while they run: changed, and listed with what workers say of them.

use cni_bridge::protocol::{Bandwidth, CallError, LimitsRequest, RateRequest};
use dataplane::shaper::{Limit, Limits};

use super::attach::FAILED;
use super::compile::{limits, port_of};
use super::{Engine, Record, call_error};
use crate::limits::changed;
use crate::report::{LimitDirection, LimitKey, LimitRow};
use crate::state::{Change, Effect, PodRecord, StateError};

impl Engine {
    /// `viaduct limits set`. When it returns, every worker that does not hang forwards by the new
    /// limits, and the journal has them; when it fails, those before stay.
    pub fn set_limits(&mut self, request: &LimitsRequest) -> Result<(), CallError> {
        let refused = |error: StateError| call_error(error.cni_code(), &error);
        let LimitsRequest { container_id, ifname, ingress, egress } = request;
        let before = self.state.find(container_id, ifname.as_deref()).map_err(refused)?.clone();
        let limits = changed(&before.limits, *ingress, *egress);
        let change = Change::SetLimits(before.attachment.clone(), limits);
        let pod = match self.state.apply(change).map_err(refused)? {
            Effect::Limited(pod) => pod,
            Effect::Unchanged => return Ok(()),
            other => unreachable!("new limits limit: {other:?}"),
        };
        let result = self.publish().map_err(anyhow::Error::from).and_then(|()| {
            let record = Record::Attached(Box::new(pod));
            self.journal.append(&record).map_err(anyhow::Error::from)
        });
        match result {
            Ok(()) => {
                let host_ifname = before.host_ifname;
                tracing::info!(host_ifname, ?limits, "a pod has other limits");
                Ok(())
            }
            Err(error) => {
                self.restore_limits(before);
                let msg = format!("{error:#}");
                Err(CallError { code: FAILED, msg, details: String::new() })
            }
        }
    }

    /// Undoes [`Engine::set_limits`].
    fn restore_limits(&mut self, before: PodRecord) {
        let change = Change::SetLimits(before.attachment, before.limits);
        if let Err(error) = self.state.apply(change) {
            unreachable!("limits that a pod had can be its again: {error}");
        }
        if let Err(error) = self.publish() {
            tracing::error!(%error, "undo a change of limits");
        }
    }

    /// `viaduct limits`, behind the row of this key: attachment by attachment, ingress first.
    pub(super) fn limit_rows(
        &self,
        after: Option<LimitKey>,
    ) -> impl Iterator<Item = (LimitKey, LimitRow)> {
        let last = after.as_ref().map(|(attachment, _)| attachment);
        let of_last = last.and_then(|attachment| self.state.pod(attachment));
        let pods = of_last.into_iter().chain(self.state.pods_after(last));
        let rows = pods.flat_map(|pod| self.limits_of(pod));
        rows.filter(move |(key, _)| after.as_ref() < Some(key))
    }

    /// The limits of a pod, ingress first.
    pub(super) fn limits_of(&self, pod: &PodRecord) -> impl Iterator<Item = (LimitKey, LimitRow)> {
        let Limits { from_pod, to_pod } = limits(self, pod);
        let counters = self.workers.counters(port_of(pod));
        let row = |direction, requested: Option<RateRequest>, applied: Option<Limit>, counters| {
            let row = LimitRow::new(pod, direction, requested?, applied?, counters);
            Some(((pod.attachment.clone(), direction), row))
        };
        let Bandwidth { ingress, egress } = pod.limits;
        let (sent, got) = (counters.map(|c| &c.from_pod), counters.map(|c| &c.to_pod));
        let rows = [
            row(LimitDirection::Ingress, ingress, to_pod, got),
            row(LimitDirection::Egress, egress, from_pod, sent),
        ];
        rows.into_iter().flatten()
    }
}
