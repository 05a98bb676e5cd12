//! Container runtimes that nobody here wrote, as Debian packages them. Each runs in a [`Machine`]
//! of its own and finds our plugin where a node has it: /opt/cni/bin and /etc/cni/net.d.

mod containerd;
mod machine;
mod podman;

use std::process::{Child, Command};

use anyhow::Result;

pub use containerd::{Containerd, Ctr, Kubelet};
pub use machine::{IMAGE, Machine, output, require};
pub use podman::Podman;

/// A container that is attached and runs.
#[derive(Debug)]
pub struct Container {
    /// What its runtime calls it.
    pub name: String,
    /// CNI_CONTAINERID.
    pub cni_id: String,
    /// The client that stays while the container runs, if the runtime has one.
    client: Option<Child>,
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(client) = &mut self.client {
            // It has ended if the container was removed; else the test is being unwound.
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// A way to run containers.
pub trait Runtime {
    /// What people call it.
    fn title(&self) -> &'static str;

    /// Runs a container of [`IMAGE`] that sleeps; returns when it runs, so after the ADD.
    ///
    /// # Errors
    /// When the runtime fails, with what it says.
    fn run(&self, name: &str) -> Result<Container>;

    /// A shell's line in a container; killed after two minutes.
    fn exec(&self, container: &Container, line: &str) -> Command;

    /// Stops and removes a container; returns after the DEL.
    ///
    /// # Errors
    /// When the runtime fails, or complains.
    fn remove(&self, container: Container) -> Result<()>;
}
