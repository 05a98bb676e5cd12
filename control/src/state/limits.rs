//! Limits of pods, as the state knows them: what was asked for, and of whom it is asked anew.

use cni_bridge::protocol::{Attachment, Bandwidth, RateRequest};

use super::{Effect, PodRecord, State, StateError};

#[cfg(test)]
mod tests;

impl State {
    /// The one pod whose container ID begins with `container_id`, which is not empty, and which has
    /// the interface `ifname`, if one is named. A whole ID goes before longer ones that begin so.
    ///
    /// # Errors
    /// There is no such pod, or there are several.
    pub fn find(&self, container_id: &str, ifname: Option<&str>) -> Result<&PodRecord, StateError> {
        let fits = |pod: &&PodRecord| {
            let Attachment { container_id: whole, ifname: own, .. } = &pod.attachment;
            let is_begun = !container_id.is_empty() && whole.starts_with(container_id);
            is_begun && ifname.is_none_or(|ifname| own == ifname)
        };
        let mut found: Vec<&PodRecord> = self.pods().filter(fits).collect();
        let is_whole = |pod: &&PodRecord| pod.attachment.container_id == container_id;
        if found.iter().any(is_whole) {
            found.retain(is_whole);
        }
        let (container_id, ifname) = (container_id.to_owned(), ifname.map(str::to_owned));
        match found[..] {
            [pod] => Ok(pod),
            [] => Err(StateError::NoSuchPod { container_id, ifname }),
            [one, other, ..] => {
                let [one, other] = [one, other].map(|pod| {
                    let Attachment { container_id, ifname, .. } = &pod.attachment;
                    format!("{ifname} of {container_id}")
                });
                let such_as = format!("{one} and {other}");
                Err(StateError::SeveralPods { container_id, found: found.len(), such_as })
            }
        }
    }

    pub(super) fn set_limits(
        &mut self,
        attachment: &Attachment,
        limits: Bandwidth,
    ) -> Result<Effect, StateError> {
        let Some(pod) = self.pods.get_mut(attachment) else {
            let Attachment { container_id, ifname, .. } = attachment.clone();
            return Err(StateError::NoSuchPod { container_id, ifname: Some(ifname) });
        };
        if pod.limits == limits {
            return Ok(Effect::Unchanged);
        }
        let limited = PodRecord { limits, ..pod.clone() };
        limited.check_limits()?;
        *pod = limited.clone();
        self.generation += 1;
        Ok(Effect::Limited(limited))
    }
}

impl PodRecord {
    /// That its limits are some: a request or a journal may say anything.
    pub(super) fn check_limits(&self) -> Result<(), StateError> {
        let Bandwidth { ingress, egress } = self.limits;
        let can_be = |limit: &RateRequest| {
            limit.rate_bps > 0 && (1..=RateRequest::BURST_BITS_MAX).contains(&limit.burst_bits)
        };
        match [ingress, egress].into_iter().flatten().find(|limit| !can_be(limit)) {
            None => Ok(()),
            Some(limit) => {
                let attachment = self.attachment.clone();
                Err(StateError::LimitUnusable { limit, attachment })
            }
        }
    }
}
