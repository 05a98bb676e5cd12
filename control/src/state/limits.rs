//! Limits of pods, as the state knows them: what was last asked for.

use cni_bridge::protocol::{Attachment, Bandwidth, RateRequest};

use super::{Effect, PodRecord, State, StateError};

#[cfg(test)]
mod tests;

impl State {
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
        match [ingress, egress].into_iter().flatten().find(|limit| !can_be(limit)) {
            None => Ok(()),
            Some(limit) => {
                let attachment = self.attachment.clone();
                Err(StateError::LimitUnusable { limit, attachment })
            }
        }
    }

    /// Takes the limits away that cannot be, and returns those.
    pub fn take_unusable_limits(&mut self) -> Bandwidth {
        let Bandwidth { ingress, egress } = &mut self.limits;
        let [ingress, egress] = [ingress, egress].map(|limit| limit.take_if(|it| !can_be(it)));
        Bandwidth { ingress, egress }
    }
}

/// Whether something can pass by the limit, and its burst is within bounds.
fn can_be(limit: &RateRequest) -> bool {
    limit.rate_bps > 0 && (1..=RateRequest::BURST_BITS_MAX).contains(&limit.burst_bits)
}
