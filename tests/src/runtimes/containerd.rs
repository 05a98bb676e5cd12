//! containerd, by both ways to it: `ctr`, which calls the plugins itself, and the interface for
//! kubelets (CRI), where containerd does.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::machine::{IMAGE, IMAGE_PATH, Machine, output, require};
use super::{Container, Runtime};
use crate::netns::wait_until;

/// containerd is up after 20 ms, with its interface for kubelets after half a second.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Where containerd listens, unless told otherwise.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// containerd's namespace of what a kubelet runs; what `ctr` runs is in `default`.
const KUBELET_NAMESPACE: &str = "k8s.io";

/// Numbers the programs that are run in containers: `ctr` wants a name for each.
static EXECS: AtomicU32 = AtomicU32::new(0);

/// containerd in a machine. It dies with the machine at the latest.
#[derive(Debug)]
pub struct Containerd<'m> {
    machine: &'m Machine,
    process: Child,
}

impl<'m> Containerd<'m> {
    /// Starts containerd and gives it its image.
    ///
    /// # Errors
    /// When containerd is missing, ends or is not ready in time.
    pub fn start(machine: &'m Machine) -> Result<Containerd<'m>> {
        for (program, package) in
            [("containerd", "containerd"), ("ctr", "containerd"), ("runc", "runc")]
        {
            require(program, package)?;
        }
        // Without the second key a sandbox needs CAP_SYS_RESOURCE, which a root in a container
        // that runs these tests may not have.
        machine.shell(&format!(
            "mkdir -p /etc/containerd && printf '%s' 'version = 2\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{IMAGE}\"\n\
             restrict_oom_score_adj = true\n' > /etc/containerd/config.toml"
        ))?;
        let log = "exec containerd > /var/lib/containerd.log 2>&1";
        let process = machine.command("sh").args(["-c", log]).spawn().context("run containerd")?;
        let containerd = Containerd { machine, process };
        containerd
            .wait()
            .with_context(|| machine.shell("cat /var/lib/containerd.log").unwrap_or_default())?;
        Ok(containerd)
    }

    /// `ctr` in one of containerd's namespaces.
    fn ctr(&self, namespace: &str) -> Command {
        let mut command = self.machine.bounded("ctr");
        command.args(["--namespace", namespace]);
        command
    }

    fn wait(&self) -> Result<()> {
        wait_until("containerd answers", READY_DEADLINE, || {
            Ok(self.machine.shell("ctr version").is_ok())
        })?;
        for namespace in ["default", KUBELET_NAMESPACE] {
            output(self.ctr(namespace).args(["images", "import", IMAGE_PATH]))?;
        }
        Ok(())
    }

    fn exec(&self, namespace: &str, name: &str, line: &str) -> Command {
        let exec = EXECS.fetch_add(1, Ordering::Relaxed); // only uniqueness matters
        let mut command = self.ctr(namespace);
        command.args(["task", "exec", "--exec-id", &format!("exec-{exec}"), name]);
        command.args(["sh", "-c", line]);
        command
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // The process is nsenter(1); containerd itself ends with the machine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `ctr run --cni`. It calls DEL when the container has ended, so with CNI_NETNS empty: the
/// namespace is gone by then. (With `--detach` it never calls DEL, so this does without.)
#[derive(Debug)]
pub struct Ctr<'c>(pub &'c Containerd<'c>);

impl Runtime for Ctr<'_> {
    fn title(&self) -> &'static str {
        "ctr run --cni"
    }

    fn run(&self, name: &str) -> Result<Container> {
        let Containerd { machine, .. } = self.0;
        let mut command = machine.command("ctr");
        command
            .args(["run", "--rm", "--cni", "--cgroup", &format!("{}/{name}", machine.cgroup())])
            .args([IMAGE, name, "sh", "-c", "echo runs; exec sleep 1000000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut client = command.spawn().context("run ctr")?;
        let mut line = String::new();
        if let Some(stdout) = &mut client.stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let cni_id = format!("default-{name}");
        let mut container = Container { name: name.to_owned(), cni_id, client: Some(client) };
        ensure!(line == "runs\n", "ctr run {name}: {}", complaint(&mut container)?);
        Ok(container)
    }

    fn exec(&self, container: &Container, line: &str) -> Command {
        self.0.exec("default", &container.name, line)
    }

    fn remove(&self, mut container: Container) -> Result<()> {
        let mut kill = self.0.ctr("default");
        output(kill.args(["task", "kill", "--signal", "SIGKILL", &container.name]))?;
        let complaint = complaint(&mut container)?;
        ensure!(complaint.is_empty(), "ctr run {}: {complaint}", container.name);
        Ok(())
    }
}

/// What the client of a container writes to stderr until its end.
fn complaint(container: &mut Container) -> Result<String> {
    let mut text = String::new();
    if let Some(mut client) = container.client.take() {
        if let Some(stderr) = &mut client.stderr {
            stderr.read_to_string(&mut text)?;
        }
        client.wait()?;
    }
    Ok(text)
}

/// What a kubelet does to run a pod's sandbox: it asks containerd over gRPC. Each pod gets `lo` by
/// the plugin `loopback` first.
#[derive(Debug)]
pub struct Kubelet<'c>(&'c Containerd<'c>);

impl<'c> Kubelet<'c> {
    /// Waits until containerd serves kubelets and has read the network configuration.
    ///
    /// # Errors
    /// When curl is missing, or containerd is not ready in time.
    pub fn new(containerd: &'c Containerd<'c>) -> Result<Kubelet<'c>> {
        require("curl", "curl")?;
        let kubelet = Kubelet(containerd);
        // ImageStatusRequest.image.image; the answer is empty as long as the image is not known.
        let image = field(1, &field(1, IMAGE.as_bytes()));
        wait_until("containerd offers the image to kubelets", READY_DEADLINE, || {
            Ok(kubelet.call("ImageService/ImageStatus", &image).is_ok_and(|text| !text.is_empty()))
        })?;
        Ok(kubelet)
    }

    /// Makes the sandbox's namespace go away as a reboot or a crash does, before [`Self::remove`].
    ///
    /// # Errors
    /// When the sandbox cannot be killed.
    pub fn lose_namespace(&self, container: &Container) -> Result<()> {
        let Containerd { machine, .. } = self.0;
        let mut kill = self.0.ctr(KUBELET_NAMESPACE);
        output(kill.args(["task", "kill", "--signal", "SIGKILL", &container.name]))?;
        let mut info = self.0.ctr(KUBELET_NAMESPACE);
        let info = output(info.args(["containers", "info", "--spec", &container.name]))?;
        let spec: Value = serde_json::from_str(&info)?;
        let mut namespaces = spec["linux"]["namespaces"].as_array().into_iter().flatten();
        let network = namespaces.find(|namespace| namespace["type"] == "network");
        let netns = network.and_then(|network| network["path"].as_str());
        let netns = netns.with_context(|| format!("{} has a namespace", container.name))?;
        machine.shell(&format!("umount {netns} && rm {netns}")).map(drop)
    }

    /// One call of the CRI, version 1. Calls and answers are protocol buffers behind a byte that
    /// says "not compressed" and their length (gRPC over HTTP2, "Requests").
    fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>> {
        let mut command = self.0.machine.bounded("curl");
        command
            .args(["--silent", "--show-error", "--http2-prior-knowledge", "--unix-socket", SOCKET])
            .args(["--header", "content-type: application/grpc", "--header", "te: trailers"])
            .args(["--dump-header", "/dev/stderr", "--data-binary", "@-"])
            .arg(format!("http://localhost/runtime.v1.{method}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut curl = command.spawn().context("run curl")?;
        let mut stdin = curl.stdin.take().context("curl reads the message")?;
        stdin.write_all(&[0])?;
        stdin.write_all(&u32::try_from(message.len())?.to_be_bytes())?;
        stdin.write_all(message)?;
        drop(stdin);
        let output = curl.wait_with_output()?;
        let headers = String::from_utf8_lossy(&output.stderr);
        let succeeded = headers.lines().any(|line| line.trim() == "grpc-status: 0");
        ensure!(succeeded, "{method} of containerd: {headers}");
        Ok(output.stdout.get(5..).unwrap_or_default().to_vec())
    }
}

impl Kubelet<'_> {
    /// Runs a sandbox with ports of the node, as pairs of the node's port and the container's.
    ///
    /// # Errors
    /// When containerd fails, with what it says.
    pub fn run_with_ports(&self, name: &str, ports: &[(u16, u16)]) -> Result<Container> {
        let text = |number, text: &str| field(number, text.as_bytes());
        // PodSandboxMetadata: name, uid, namespace.
        let metadata = [text(1, name), text(2, &format!("uid-{name}")), text(3, "e2e")].concat();
        // LinuxPodSandboxConfig: cgroup_parent.
        let linux = text(1, &self.0.machine.cgroup());
        // PortMapping: container_port, host_port; without a protocol, TCP.
        let mapping = |(host, container): &(u16, u16)| {
            field(5, &[number(2, *container), number(3, *host)].concat())
        };
        let mappings: Vec<u8> = ports.iter().flat_map(mapping).collect();
        // PodSandboxConfig: metadata, hostname, port_mappings, linux.
        let config = [field(1, &metadata), text(2, name), mappings, field(8, &linux)].concat();
        let answer = self.call("RuntimeService/RunPodSandbox", &field(1, &config))?;
        // RunPodSandboxResponse: pod_sandbox_id, behind its key and length.
        let id = String::from_utf8(answer.get(2..).unwrap_or_default().to_vec())?;
        Ok(Container { name: id.clone(), cni_id: id, client: None })
    }
}

impl Runtime for Kubelet<'_> {
    fn title(&self) -> &'static str {
        "containerd for kubelets"
    }

    fn run(&self, name: &str) -> Result<Container> {
        self.run_with_ports(name, &[])
    }

    fn exec(&self, container: &Container, line: &str) -> Command {
        self.0.exec(KUBELET_NAMESPACE, &container.name, line)
    }

    fn remove(&self, container: Container) -> Result<()> {
        // A kubelet stops first. Both call DEL, the second time with CNI_NETNS empty.
        for method in ["RuntimeService/StopPodSandbox", "RuntimeService/RemovePodSandbox"] {
            self.call(method, &field(1, container.name.as_bytes()))?;
        }
        Ok(())
    }
}

/// A field of a message: key with wire type 2, length, content (protocol buffers, "Encoding").
///
/// # Panics
/// When the content is so long that its length needs a third byte.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).expect("messages here are short");
    assert!(number < 16 && len < 1 << 14, "key and length fit three bytes");
    let mut bytes = vec![number << 3 | 2];
    if len < 0x80 {
        bytes.push(len as u8);
    } else {
        bytes.extend([(len & 0x7f) as u8 | 0x80, (len >> 7) as u8]);
    }
    bytes.extend(content);
    bytes
}

/// A field that is a number: key with wire type 0, seven bits a byte from the lowest on.
fn number(number: u8, value: u16) -> Vec<u8> {
    let mut bytes = vec![number << 3];
    let mut rest = value;
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{field, number};

    #[test]
    fn a_number_has_seven_bits_a_byte() {
        assert_eq!(number(2, 80), [0x10, 80]);
        assert_eq!(number(3, 300), [0x18, 0xac, 0x02], "300 is 0b10_0101100");
        assert_eq!(number(3, 65_535), [0x18, 0xff, 0xff, 0x03]);
    }

    #[test]
    fn a_field_has_a_key_a_length_and_its_content() {
        assert_eq!(field(1, b"ab"), [0x0a, 2, b'a', b'b']);
        assert_eq!(field(8, &[7; 300])[..4], [0x42, 0xac, 0x02, 7], "300 is 0b10_0101100");
    }
}
