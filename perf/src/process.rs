//! Programs that run beside a measurement. Dropping one ends it: no run leaves a process behind.

use std::process::{Child, Command};

use anyhow::{Context, Result, bail};
use e2e::netns::Namespace;
use rustix::process::{Pid, Signal, kill_process};

/// A program in the background.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts a program inside `namespace`.
    ///
    /// # Errors
    /// When the namespace is gone or the program cannot be started.
    pub fn start(namespace: &Namespace, command: &mut Command) -> Result<Running> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = namespace
            .within(|| command.spawn())?
            .with_context(|| format!("start {name}; is it installed?"))?;
        Ok(Running { name, child })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signal {}", self.name))
    }

    /// # Errors
    /// When it has ended, which programs in the background do not do by themselves.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended: {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
