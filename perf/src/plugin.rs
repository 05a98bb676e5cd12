//! Calls of CNI plugins with a stop-watch: from the start of the process to its end and the last
//! byte of its answer, which is what a container runtime waits for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::netns::Namespace;
use serde_json::Value;

/// PATH of the plugins: the reference ones execute nothing else than what is here.
const PROGRAM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A plugin, and the node it works for.
#[derive(Debug)]
pub struct Plugin<'a> {
    /// The program.
    pub program: PathBuf,
    /// CNI_PATH.
    pub cni_path: String,
    /// The network configuration.
    pub conf: Value,
    /// The node's namespace.
    pub node: &'a Namespace,
}

/// A container with a namespace, perhaps attached.
#[derive(Debug)]
pub struct Container {
    /// CNI_CONTAINERID.
    pub id: String,
    /// CNI_NETNS.
    pub namespace: Namespace,
    /// What ADD has answered.
    pub result: Value,
}

impl Container {
    /// `count` containers that are attached to nothing yet.
    ///
    /// # Errors
    /// When a namespace cannot be made.
    pub fn many(count: usize) -> Result<Vec<Container>> {
        let make = |index| {
            let namespace = Namespace::create("perf-pod")?;
            namespace.ip(&["link", "set", "lo", "up"])?;
            Ok(Container { id: format!("perf-{index}"), namespace, result: Value::Null })
        };
        (0..count).map(make).collect()
    }
}

impl Plugin<'_> {
    /// Calls the plugin and returns what it answered and how long it took.
    ///
    /// # Errors
    /// When it cannot be run, or refuses.
    pub fn call(&self, verb: &str, container: &Container) -> Result<(Duration, Value)> {
        self.node.within(|| self.call_here(verb, container))?
    }

    /// Calls the plugin for all containers at the same time. Returns the time of every call, and
    /// from the start of the first to the end of the last.
    ///
    /// # Errors
    /// When one call fails; the others are waited for.
    pub fn call_at_once(
        &self,
        verb: &str,
        containers: &[Container],
    ) -> Result<(Vec<Duration>, Duration)> {
        let barrier = Barrier::new(containers.len() + 1);
        self.node.within(|| {
            thread::scope(|scope| {
                let call = |container| {
                    barrier.wait();
                    self.call_here(verb, container)
                };
                // Threads inherit the namespace of who makes them.
                let start = |container| scope.spawn(move || call(container));
                let calls: Vec<_> = containers.iter().map(start).collect();
                barrier.wait();
                let started = Instant::now();
                let outcomes: Vec<_> = calls.into_iter().map(|call| call.join()).collect();
                let wall = started.elapsed();
                let times = outcomes.into_iter().map(|outcome| {
                    let outcome = outcome.map_err(|_| anyhow!("a calling thread panicked"))?;
                    outcome.map(|(took, _)| took)
                });
                Ok((times.collect::<Result<Vec<_>>>()?, wall))
            })
        })?
    }

    fn call_here(&self, verb: &str, container: &Container) -> Result<(Duration, Value)> {
        let mut conf = self.conf.clone();
        if verb == "CHECK" {
            conf["prevResult"] = container.result.clone();
        }
        let conf = conf.to_string();
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", PROGRAM_PATH);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.cni_path);
        command.env("CNI_CONTAINERID", &container.id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", container.namespace.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = plugin_name(&self.program);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        // A configuration fits the pipe, so this never waits for the plugin.
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(conf.as_bytes()));
        let output = child.wait_with_output()?;
        let took = started.elapsed();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        ensure!(
            output.status.success() && matches!(written, Some(Ok(()))),
            "{verb} of {name} for {} failed: {answer} {}",
            container.id,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok((took, answer))
    }
}

fn plugin_name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
