//! The world of one case: a node namespace, containers, a network of its own name, a scratch
//! directory, and the verbs as a runtime calls them. All of it goes away with the trial, and every
//! attachment is deleted first, so that a plugin with a daemon is left as it was found.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::Plugin;
use super::answer;
use super::attached::SETTLE;
use super::case::Checked;
use crate::netns::{Namespace, wait_until};
use crate::plugin::{Invocation, Outcome};

/// A network configuration as a plugin reads it from stdin.
pub type Conf = Map<String, Value>;

/// In a configuration: replaced by the case's scratch directory.
const SCRATCH: &str = "{scratch}";

/// Numbers networks and containers, so that no two cases of a process share a name.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A container: an id and a namespace that has nothing but `lo`.
#[derive(Debug)]
pub struct Container {
    /// CNI_CONTAINERID.
    pub id: String,
    /// Its network namespace.
    pub netns: Namespace,
    /// CNI_IFNAME.
    pub ifname: String,
}

impl Container {
    /// CNI_NETNS.
    pub fn netns_path(&self) -> String {
        self.netns.path().display().to_string()
    }
}

/// An attachment to delete when the trial ends.
struct Attachment {
    process_netns: Namespace,
    invocation: Invocation,
}

/// The world of one case.
pub struct Trial<'a> {
    /// The plugin that is asked.
    pub plugin: &'a Plugin,
    /// The versions it lists.
    pub supported: &'a [String],
    /// The version configurations name.
    pub version: &'static str,
    /// Where the plugin runs and host ends appear.
    pub node: Namespace,
    /// Removed after the case.
    pub scratch: TempDir,
    /// Name of the network.
    pub network: String,
    notes: Mutex<Vec<String>>,
    attachments: Mutex<Vec<Attachment>>,
    /// Kept until the attachments are deleted.
    containers: Mutex<Vec<Arc<Container>>>,
    /// Links of a node that outlives the trial, as they were before it.
    links_before: Option<Value>,
}

impl<'a> Trial<'a> {
    /// Makes the world.
    pub fn start(
        plugin: &'a Plugin,
        supported: &'a [String],
        version: &'static str,
    ) -> anyhow::Result<Self> {
        let node = node_of(plugin)?;
        let links_before = plugin.node.as_ref().map(|_| link_names(&node)).transpose()?;
        Ok(Self {
            plugin,
            supported,
            version,
            node,
            links_before,
            scratch: tempfile::tempdir()?,
            network: unique("conformance"),
            notes: Mutex::default(),
            attachments: Mutex::default(),
            containers: Mutex::default(),
        })
    }

    /// A new container whose interface is to be `eth0`.
    pub fn container(&self) -> Checked<Arc<Container>> {
        let netns = Namespace::create("cni-pod")?;
        Ok(self.keep(Container { id: unique("kit"), netns, ifname: "eth0".to_owned() }))
    }

    /// A second interface of the same container.
    pub fn second_interface(&self, of: &Container, ifname: &str) -> Arc<Container> {
        let netns = Namespace::existing(of.netns.path());
        self.keep(Container { id: of.id.clone(), netns, ifname: ifname.to_owned() })
    }

    fn keep(&self, container: Container) -> Arc<Container> {
        let container = Arc::new(container);
        lock(&self.containers).push(Arc::clone(&container));
        container
    }

    /// The template with this case's network name, version and scratch directory. As a runtime
    /// does, `capabilities` and `cniVersions` are taken out.
    pub fn conf(&self) -> Conf {
        let scratch = self.scratch.path().display().to_string();
        let mut conf = Value::Object(self.plugin.conf.clone());
        replace_in_strings(&mut conf, SCRATCH, &scratch);
        let Value::Object(mut conf) = conf else { unreachable!("an object stays an object") };
        conf.remove("capabilities");
        conf.remove("cniVersions");
        conf.insert("name".to_owned(), json!(self.network));
        conf.insert("cniVersion".to_owned(), json!(self.version));
        conf
    }

    /// [`Trial::conf`] with these keys set.
    pub fn conf_with(&self, keys: Value) -> Conf {
        let mut conf = self.conf();
        if let Value::Object(keys) = keys {
            conf.extend(keys);
        }
        conf
    }

    /// A call about a container.
    pub fn invocation(&self, verb: &str, container: &Container, conf: &Conf) -> Invocation {
        Invocation {
            container_id: Some(container.id.clone()),
            netns: Some(container.netns_path()),
            ifname: Some(container.ifname.clone()),
            ..self.network_invocation(verb, conf)
        }
    }

    /// A call about the network as a whole: STATUS, GC, VERSION.
    pub fn network_invocation(&self, verb: &str, conf: &Conf) -> Invocation {
        Invocation {
            command: Some(verb.to_owned()),
            path: Some(self.plugin.cni_path.clone()),
            stdin: Value::Object(conf.clone()).to_string().into_bytes(),
            ..Invocation::default()
        }
    }

    /// Calls the plugin on the node. Whatever the case is about, the answer must be disciplined.
    pub fn ask(&self, invocation: &Invocation) -> Checked<Outcome> {
        self.ask_in(&self.node, invocation)
    }

    /// Calls the plugin in another namespace than the node's.
    pub fn ask_in(&self, netns: &Namespace, invocation: &Invocation) -> Checked<Outcome> {
        if invocation.command.as_deref() == Some("ADD") {
            lock(&self.attachments).push(Attachment {
                process_netns: Namespace::existing(netns.path()),
                invocation: Invocation { command: Some("DEL".to_owned()), ..invocation.clone() },
            });
        }
        let outcome = invocation.run(&self.plugin.binary, Some(netns))?;
        answer::disciplined(&outcome)?;
        Ok(outcome)
    }

    /// ADD that must succeed; its result.
    pub fn add(&self, container: &Container) -> Checked<Value> {
        self.add_with(container, &self.conf())
    }

    /// ADD with this configuration that must succeed; its result.
    pub fn add_with(&self, container: &Container, conf: &Conf) -> Checked<Value> {
        answer::result(&self.ask(&self.invocation("ADD", container, conf))?, "ADD")
    }

    /// DEL as a runtime calls it after `result`, which must succeed silently.
    pub fn del(&self, container: &Container, result: &Value) -> Checked {
        let conf = self.conf_with(json!({"prevResult": result}));
        answer::silent(&self.ask(&self.invocation("DEL", container, &conf))?, "DEL")
    }

    /// CHECK as a runtime calls it after `result`.
    pub fn check(&self, container: &Container, result: &Value) -> Checked<Outcome> {
        let conf = self.conf_with(json!({"prevResult": result}));
        self.ask(&self.invocation("CHECK", container, &conf))
    }

    /// Records an observation that decides nothing.
    pub fn note(&self, note: String) {
        lock(&self.notes).push(note);
    }

    /// All observations.
    pub fn notes(&self) -> Vec<String> {
        lock(&self.notes).clone()
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        for Attachment { process_netns, invocation } in lock(&self.attachments).drain(..) {
            // Most are deleted already; whether DEL works is asked by cases of its own.
            let _ = invocation.run(&self.plugin.binary, Some(&process_netns));
        }
        lock(&self.containers).clear();
        if let Some(before) = &self.links_before {
            // Host ends may go after DEL has answered. The next case on this node must not see it;
            // that they go at all is asked by cases of their own.
            let settled = || Ok(link_names(&self.node)? == *before);
            let _ = wait_until("the node has settled", SETTLE, settled);
        }
    }
}

/// The versions the plugin lists, or none when it does not answer VERSION properly, which cases of
/// their own complain about.
pub fn supported_versions(plugin: &Plugin) -> Vec<String> {
    let Ok(node) = node_of(plugin) else {
        return Vec::new();
    };
    let invocation = Invocation {
        command: Some("VERSION".to_owned()),
        path: Some(plugin.cni_path.clone()),
        stdin: br#"{"cniVersion":"1.0.0"}"#.to_vec(),
        ..Invocation::default()
    };
    let answer = invocation.run(&plugin.binary, Some(&node)).ok().and_then(|outcome| outcome.json);
    let list = answer.as_ref().and_then(|answer| answer.get("supportedVersions")?.as_array());
    let versions = list.into_iter().flatten().filter_map(Value::as_str);
    versions.map(str::to_owned).collect()
}

/// The names of a node's links.
pub fn link_names(node: &Namespace) -> anyhow::Result<Value> {
    let links = node.ip_json(&["link"])?;
    let names = links.as_array().into_iter().flatten().map(|link| link.get("ifname").cloned());
    Ok(names.collect::<Option<Value>>().unwrap_or_default())
}

fn node_of(plugin: &Plugin) -> anyhow::Result<Namespace> {
    match &plugin.node {
        Some(path) => Ok(Namespace::existing(path)),
        None => Namespace::create("cni-node"),
    }
}

/// `<prefix>-<process id>-<counter>`: a valid network name and container id.
pub fn unique(prefix: &str) -> String {
    let count = COUNTER.fetch_add(1, Ordering::Relaxed); // only uniqueness matters
    format!("{prefix}-{}-{count}", std::process::id())
}

/// The lists are whole at any time, so one that a panicking case held is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn replace_in_strings(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) => *text = text.replace(from, to),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_in_strings(item, from, to)),
        Value::Object(map) => map.values_mut().for_each(|item| replace_in_strings(item, from, to)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_directory_replaces_its_mark_at_any_depth() {
        let mut conf = json!({"a": ["{scratch}/x", 1], "b": {"c": "{scratch}"}, "{scratch}": null});
        replace_in_strings(&mut conf, SCRATCH, "/d");
        assert_eq!(conf, json!({"a": ["/d/x", 1], "b": {"c": "/d"}, "{scratch}": null}));
    }

    #[test]
    fn unique_names_differ() {
        assert_ne!(unique("a"), unique("a"));
    }
}
