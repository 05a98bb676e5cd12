//! What pods are called: by people who mean one of them, and in messages about one.

use cni_bridge::protocol::Attachment;

use super::{PodRecord, State, StateError};
use crate::report::pod_name;

#[cfg(test)]
mod tests;

impl PodRecord {
    /// Its name in Kubernetes, `namespace/name`; see [`pod_name`].
    #[must_use]
    pub fn name(&self) -> Option<String> {
        pod_name(&self.pod_namespace, &self.pod_name)
    }

    /// Whether `text` may mean it: its name, with its namespace or without, or the beginning of its
    /// container ID.
    #[must_use]
    pub fn is_called(&self, text: &str) -> bool {
        let is_name = |name: String| name == text || self.pod_name == text;
        self.has_id(text) || self.name().is_some_and(is_name)
    }

    /// Whether its container ID begins so, with a character at least.
    fn has_id(&self, beginning: &str) -> bool {
        !beginning.is_empty() && self.attachment.container_id.starts_with(beginning)
    }

    /// Who it is, for a message: its name where it has one, and its interface.
    pub(super) fn who(&self) -> String {
        let Attachment { container_id, ifname, .. } = &self.attachment;
        let interface = format!("interface {ifname} of container {container_id}");
        match self.name() {
            Some(name) => format!("pod {name}, {interface}"),
            None => interface,
        }
    }
}

impl State {
    /// The pods that `text` may mean: as [`PodRecord::is_called`] says, or by their interface, as
    /// `CONTAINER/IFNAME`. A whole container ID goes before longer ones that begin so.
    #[must_use]
    pub fn called(&self, text: &str) -> Vec<&PodRecord> {
        let interface = text.rsplit_once('/');
        let is_meant = |pod: &&PodRecord| {
            let is_own = |(id, ifname)| pod.has_id(id) && pod.attachment.ifname == ifname;
            pod.is_called(text) || interface.is_some_and(is_own)
        };
        let container_id = interface.map_or(text, |(id, _)| id);
        whole_first(self.pods().filter(is_meant).collect(), container_id)
    }

    /// The one pod whose container ID begins with `container_id`, which is not empty, and which has
    /// the interface `ifname`, if one is named. A whole ID goes before longer ones that begin so.
    ///
    /// # Errors
    /// There is no such pod, or there are several.
    pub fn find(&self, container_id: &str, ifname: Option<&str>) -> Result<&PodRecord, StateError> {
        let fits = |pod: &&PodRecord| {
            pod.has_id(container_id) && ifname.is_none_or(|ifname| pod.attachment.ifname == ifname)
        };
        let found = whole_first(self.pods().filter(fits).collect(), container_id);
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
}

/// Of these pods those whose whole container ID this is, if there are such.
fn whole_first<'pods>(mut found: Vec<&'pods PodRecord>, id: &str) -> Vec<&'pods PodRecord> {
    let is_whole = |pod: &&PodRecord| pod.attachment.container_id == id;
    if found.iter().any(is_whole) {
        found.retain(is_whole);
    }
    found
}
