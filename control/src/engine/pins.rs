//! Pins that somebody removes. An XDP link lives by its pin, so a removed one leaves its interface
//! to the kernel, without the check of sources: it is attached again by the next look, once a
//! second.

use std::collections::BTreeSet;

use super::Engine;
use crate::node::WORKER_IFNAME;
use crate::state::PodRecord;

impl Engine {
    /// Attaches again what has lost its link. One listing of a folder when nothing has.
    pub(super) fn look_after_pins(&mut self) {
        let names = match self.restored_links() {
            Ok(names) => names,
            Err(error) => return tracing::error!("look after pinned links: {error:#}"),
        };
        if !names.contains(WORKER_IFNAME) {
            let attached = self.programs.attach(self.node.worker_index, WORKER_IFNAME);
            say(WORKER_IFNAME, attached.map_err(Into::into));
        }
        let bare = |pod: &&PodRecord| {
            !names.contains(&pod.host_ifname) && !self.lost.contains_key(&pod.attachment)
        };
        let bare: Vec<PodRecord> = self.state.pods().filter(bare).cloned().collect();
        for pod in bare {
            say(&pod.host_ifname, self.guard(&pod));
        }
    }

    fn restored_links(&mut self) -> anyhow::Result<BTreeSet<String>> {
        if self.programs.restore_pins()? {
            tracing::warn!("somebody removed what is pinned in bpf_dir: pinned again");
        }
        Ok(self.programs.links()?.into_iter().collect())
    }
}

fn say(name: &str, attached: anyhow::Result<()>) {
    match attached {
        Ok(()) => tracing::warn!(name, "its XDP program was gone: attached again"),
        Err(error) => tracing::error!(name, "attach its XDP program again: {error:#}"),
    }
}
