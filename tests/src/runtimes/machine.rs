//! A machine for a container runtime: mounts, process numbers and everything it may write to are
//! its own, the network is a node's. It exists so that a runtime finds the paths that are built
//! into it, and so that nothing of it is left however the test ends.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::daemon::{Node, binary};
use crate::netns::wait_until;

/// The image that every machine holds: busybox and links to the applets that tests use.
pub const IMAGE: &str = "localhost/busybox:latest";

/// Where the image lies in the machine.
pub const IMAGE_PATH: &str = "/var/lib/image.tar";

/// The configuration that is shipped. Tests replace its socket path and nothing else.
const CONFLIST: &str = include_str!("../../../deploy/10-viaduct.conflist");

/// The socket path in [`CONFLIST`].
const SOCKET: &str = "/run/viaduct/viaduct.sock";

/// Program of the machine's first process.
const INIT: &str = include_str!("machine.sh");

/// PATH in the machine; Debian has runc in /usr/sbin.
const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Seconds that a program may take, written for timeout(1). The slowest here, 100 MB through
/// busybox, take 2 s on an idle machine.
const PROGRAM_SECONDS: &str = "120";

/// When the first process of a PID namespace ends, the kernel kills the rest (pid_namespaces(7)).
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Where cgroups are mounted: one hierarchy of version 2, or one directory per hierarchy.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Makes names unique within this process.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A machine on a node's network. Dropped, it takes all its processes and mounts with it.
#[derive(Debug)]
pub struct Machine {
    /// Name of the cgroup that containers belong to.
    name: String,
    /// unshare(1), which waits for the first process of the machine.
    unshare: Child,
    /// That first process.
    init: String,
    /// What covers the host's directories is mounted here, in the machine only.
    _scratch: TempDir,
}

impl Machine {
    /// Starts a machine whose CNI plugin asks the daemon of `node`.
    ///
    /// # Errors
    /// When a mount fails, or busybox is missing.
    pub fn start(node: &Node) -> Result<Machine> {
        require("busybox", "busybox-static")?;
        let count = COUNTER.fetch_add(1, Ordering::Relaxed); // only uniqueness matters
        let name = format!("viaduct-e2e-{}-{count}", std::process::id());
        let scratch = tempfile::Builder::new().prefix(&name).tempdir()?;
        let socket = node.socket();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", INIT, "machine"])
            .arg(scratch.path())
            .arg(socket.parent().context("the socket is in a directory")?)
            .arg(binary("viaduct-cni"))
            .arg(conflist(&socket)?)
            .arg(IMAGE)
            .env_clear()
            .env("PATH", PROGRAM_PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut unshare = node.namespace().within(|| command.spawn())?.context("run unshare")?;
        let init = wait_for_init(&mut unshare).inspect_err(|_| end(&mut unshare))?;
        Ok(Machine { name, unshare, init, _scratch: scratch })
    }

    /// The cgroup that containers are to be put under.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("/{}", self.name)
    }

    /// A program in the machine, for as long as it likes. It dies with the machine.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init, "--mount", "--pid", "--net", program])
            .env_clear()
            .env("PATH", PROGRAM_PATH)
            .stdin(Stdio::null());
        command
    }

    /// A program in the machine that is killed after two minutes.
    #[must_use]
    pub fn bounded(&self, program: &str) -> Command {
        let mut command = self.command("timeout");
        command.args(["--kill-after=5", PROGRAM_SECONDS, program]);
        command
    }

    /// Runs a line of the shell in the machine and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it wrote to stderr.
    pub fn shell(&self, line: &str) -> Result<String> {
        output(self.bounded("sh").args(["-c", line]))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.unshare);
        // Nothing here may hide the failure of the test that is being unwound.
        let _ = wait_until("the cgroups are gone", END_DEADLINE, || {
            Ok(remove_cgroups(Path::new(CGROUPS), &self.name).is_ok())
        });
    }
}

/// Runs a program and returns what it prints.
///
/// # Errors
/// When it fails, with what it wrote to stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {stdout}{stderr}", output.status);
    Ok(stdout.into_owned())
}

/// That a program is installed.
///
/// # Errors
/// When it is not; names the Debian package to install.
pub fn require(program: &str, package: &str) -> Result<()> {
    let found = PROGRAM_PATH.split(':').any(|dir| Path::new(dir).join(program).exists());
    ensure!(found, "{program} is missing: install the Debian package {package}");
    Ok(())
}

/// The shipped configuration for the daemon at `socket`.
fn conflist(socket: &Path) -> Result<String> {
    ensure!(CONFLIST.matches(SOCKET).count() == 1, "the shipped configuration names {SOCKET} once");
    Ok(CONFLIST.replace(SOCKET, &socket.to_string_lossy()))
}

/// Waits until the machine is ready; returns the number of its first process.
fn wait_for_init(unshare: &mut Child) -> Result<String> {
    let mut line = String::new();
    if let Some(stdout) = &mut unshare.stdout {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line != "ready\n" {
        let mut stderr = String::new();
        if let Some(pipe) = &mut unshare.stderr {
            pipe.read_to_string(&mut stderr)?;
        }
        bail!("make a machine: {}", stderr.trim());
    }
    let pid = unshare.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.trim().to_owned())
}

/// Ends a machine: its first process goes when its input ends, and all others with it.
fn end(unshare: &mut Child) {
    drop(unshare.stdin.take());
    let ended =
        wait_until("the machine has ended", END_DEADLINE, || Ok(unshare.try_wait()?.is_some()));
    if ended.is_err() {
        // By --kill-child the first process follows.
        let _ = unshare.kill();
        let _ = unshare.wait();
    }
}

/// Removes the cgroup `name` of every hierarchy.
fn remove_cgroups(root: &Path, name: &str) -> io::Result<()> {
    let hierarchies = fs::read_dir(root)?.flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let cgroup = hierarchy.join(name);
        if cgroup.is_dir() {
            remove_cgroup(&cgroup)?;
        }
    }
    Ok(())
}

/// Removes a cgroup: rmdir(2) from the leaves up, since its files cannot be unlinked (cgroups(7)).
fn remove_cgroup(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_an_error_that_names_the_package() {
        let error = require("no-such-program", "no-such-package").unwrap_err();
        assert!(error.to_string().contains("no-such-package"));
        assert!(require("sh", "dash").is_ok());
    }

    #[test]
    fn the_shipped_configuration_differs_from_the_tests_in_the_socket_alone() {
        let ours = conflist(Path::new("/elsewhere/viaduct.sock")).unwrap();
        assert_eq!(ours.replace("/elsewhere/viaduct.sock", SOCKET), CONFLIST);
        assert_ne!(ours, CONFLIST);
    }

    #[test]
    fn nested_directories_are_removed_from_every_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        for path in ["mine/a/b", "memory/mine/c", "memory/other"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        remove_cgroups(root.path(), "mine").unwrap();
        assert!(!root.path().join("mine").exists());
        assert!(!root.path().join("memory/mine").exists());
        assert!(root.path().join("memory/other").exists());
    }
}
