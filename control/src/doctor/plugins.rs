//! Checks of those around us: other plugins of the container runtime, and systemd-networkd.

use super::Row;
use super::facts::Facts;

/// The type of our plugin in CNI configurations.
const OURS: &str = "viaduct-cni";

/// Plugins that work on the kernel's path: what becomes of it when workers carry the pods, and what
/// to do beside taking it out.
const BYPASSED: [(&str, &str, &str); 2] = [
    (
        "portmap",
        "its translations are not seen by workers",
        ", and \"portMappings\": true into the capabilities of viaduct-cni",
    ),
    (
        "bandwidth",
        "its limits are on queues that packets of workers do not pass",
        ", and \"bandwidth\": true into the capabilities of viaduct-cni",
    ),
];

/// No plugin after ours relies on the kernel's path.
pub(super) fn chained(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "chained_plugins";
    let folder = facts.cni.conf_dir.display();
    let lists = match &facts.cni.lists {
        Ok(lists) => lists,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let mut rows = Vec::new();
    let mut named = Vec::new();
    for list in lists {
        let path = list.path.display();
        let types = match &list.types {
            Ok(types) => types,
            Err(why) => {
                let mend = format!("correct or remove {path}");
                rows.push(Row::unknown(CHECK, format!("{path} cannot be read: {why}"), mend));
                continue;
            }
        };
        let Some(place) = types.iter().position(|kind| kind == OURS) else { continue };
        named.push(path.to_string());
        for kind in types.iter().skip(place + 1) {
            let known = BYPASSED.iter().find(|(name, ..)| name == kind);
            let Some((_, why, instead)) = known else { continue };
            let found = format!("{path} calls {kind} after {OURS}: {why}");
            let mend = format!("take {kind} out of {path}{instead}");
            rows.push(Row::amiss(CHECK, found, mend));
        }
    }
    Row::all_or(rows, || match named.is_empty() {
        true => Row::well(CHECK, format!("no list of plugins in {folder} calls {OURS}")),
        false => Row::well(CHECK, format!("{} calls nothing that is bypassed", named.join(", "))),
    })
}

/// The loopback plugin is there: without it containerd makes no pod.
pub(super) fn loopback(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "loopback_plugin";
    let path = facts.cni.bin_dir.join("loopback");
    let path = path.display();
    vec![match &facts.cni.loopback {
        Ok(true) => Row::well(CHECK, format!("{path} is there")),
        Ok(false) => Row::amiss(
            CHECK,
            format!("{path} is missing or cannot be executed: the runtime may make no pod"),
            format!("ln -s {OURS} {path}"),
        ),
        Err(why) => Row::unknown(CHECK, why, ""),
    }]
}

/// systemd-networkd leaves routes and rules of others alone.
pub(super) fn networkd(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "networkd";
    let Some(networkd) = facts.networkd else {
        return vec![Row::well(CHECK, "systemd-networkd does not look after this network")];
    };
    let keys = [
        ("ManageForeignRoutes", networkd.removes_routes, "routes"),
        ("ManageForeignRoutingPolicyRules", networkd.removes_rules, "rules"),
    ];
    let wrong = keys.into_iter().filter(|(_, removes, _)| *removes).map(|(key, _, what)| {
        let found = format!("systemd-networkd removes our {what} when it restarts ({key} is yes)");
        let mend = format!(
            "write [Network] and {key}=no, on two lines, to \
             /etc/systemd/networkd.conf.d/10-viaduct.conf and restart systemd-networkd"
        );
        Row::amiss(CHECK, found, mend)
    });
    Row::all_or(wrong.collect(), || {
        Row::well(CHECK, "systemd-networkd leaves routes and rules of others alone")
    })
}
