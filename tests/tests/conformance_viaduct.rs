//! The conformance kit against our own plugin, with a daemon behind it, in both port modes.

use e2e::conformance::{self, Plugin};
use e2e::daemon::{Setup, binary, on_each};
use serde_json::json;

#[test]
#[ignore = "needs root"]
fn the_plugin_conforms_in_every_case() {
    on_each(Setup::modes(), |node| {
        let conf = json!({
            "cniVersion": "1.0.0",
            "name": "viaduct",
            "type": "viaduct-cni",
            "socket": node.socket(),
            "capabilities": {
                "ips": true, "mac": true, "ipRanges": true, "portMappings": true,
                "bandwidth": true,
            },
        });
        let mut plugin = Plugin::new(binary("viaduct-cni"), &conf)?;
        plugin.node = Some(node.namespace().path().into());
        plugin.delegates_ipam = true;
        let report = conformance::run(&plugin);
        anyhow::ensure!(report.counts().fail == 0, "{report}");
        Ok(())
    });
}
