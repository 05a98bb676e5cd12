//! podman with its CNI backend, as version 4 has it. It names the namespace's path in every call
//! and calls no plugin once that path is gone, not even when such a container is removed.

use std::process::Command;

use anyhow::Result;

use super::machine::{IMAGE, IMAGE_PATH, Machine, output, require};
use super::{Container, Runtime};

/// podman in a machine.
#[derive(Debug)]
pub struct Podman<'m> {
    machine: &'m Machine,
}

impl<'m> Podman<'m> {
    /// Gives podman its image.
    ///
    /// # Errors
    /// When podman is missing or fails.
    pub fn new(machine: &'m Machine) -> Result<Podman<'m>> {
        for program in ["podman", "conmon", "runc"] {
            require(program, program)?;
        }
        let podman = Podman { machine };
        output(podman.command().args(["load", "--input", IMAGE_PATH]))?;
        Ok(podman)
    }

    /// `podman` with the CNI backend and without systemd.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = self.machine.bounded("podman");
        command
            .args(["--network-backend", "cni", "--network-config-dir", "/etc/cni/net.d"])
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"])
            .args(["--runtime", "runc"]);
        command
    }

    /// Runs a container with more options of `podman run`.
    ///
    /// # Errors
    /// When podman fails, with what it says.
    pub fn run_with(&self, name: &str, options: &[&str]) -> Result<Container> {
        let mut command = self.command();
        command
            .args(["run", "--detach", "--pull", "never", "--name", name])
            .args(["--network", "viaduct", "--cgroup-parent", &self.machine.cgroup()])
            // For ping; podman's own default goes without.
            .args(["--cap-add", "NET_RAW"])
            .args(options)
            .arg(IMAGE);
        let cni_id = output(&mut command)?.trim().to_owned();
        Ok(Container { name: name.to_owned(), cni_id, client: None })
    }
}

impl Runtime for Podman<'_> {
    fn title(&self) -> &'static str {
        "podman run"
    }

    fn run(&self, name: &str) -> Result<Container> {
        self.run_with(name, &[])
    }

    fn exec(&self, container: &Container, line: &str) -> Command {
        let mut command = self.command();
        command.args(["exec", &container.name, "sh", "-c", line]);
        command
    }

    fn remove(&self, container: Container) -> Result<()> {
        output(self.command().args(["rm", "--force", "--time", "0", &container.name])).map(drop)
    }
}
