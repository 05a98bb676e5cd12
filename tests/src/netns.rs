//! Network namespaces that a test owns. They exist so that nothing a test does can reach the
//! machine's own network, and so that they go away however the test ends.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

/// Where `ip netns` mounts the namespaces it names (ip-netns(8)).
const NETNS_DIR: &str = "/var/run/netns";

/// How often [`wait_until`] looks again: short beside any deadline, long beside the cost of `ip`.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Makes names unique within this process; the process id makes them unique beside others.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A network namespace with a path. One that [`Namespace::create`] made is removed on drop.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    /// The name to remove on drop; `None` when somebody else owns the namespace.
    owned_name: Option<String>,
}

impl Namespace {
    /// Creates a namespace named `<prefix>-<process id>-<counter>`.
    ///
    /// # Errors
    /// When `ip netns add` fails, which it does without root.
    pub fn create(prefix: &str) -> Result<Self> {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed); // only uniqueness matters
        let name = format!("{prefix}-{}-{count}", std::process::id());
        let output = Command::new("ip").args(["netns", "add", &name]).output();
        succeeded(output.context("run ip netns add")?, &format!("create namespace {name}"))?;
        Ok(Self { path: Path::new(NETNS_DIR).join(&name), owned_name: Some(name) })
    }

    /// A namespace that somebody else made and will remove, by its path.
    pub fn existing(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), owned_name: None }
    }

    /// The path to give as CNI_NETNS.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` on a thread of its own inside the namespace. What `f` opens or spawns belongs to
    /// the namespace; mounts (so also `/sys/fs/bpf`) stay those of the caller, unlike with
    /// `ip netns exec`.
    ///
    /// # Errors
    /// When the namespace is gone or may not be entered.
    ///
    /// # Panics
    /// When `f` panics: its panic goes on in the caller.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(&self.path)
            .with_context(|| format!("open network namespace {}", self.path.display()))?;
        let enter = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<T, rustix::io::Errno>(f())
        };
        // A thread of its own, because setns(2) changes the calling thread for good.
        let entered = thread::scope(|scope| scope.spawn(enter).join());
        match entered {
            Ok(outcome) => {
                outcome.with_context(|| format!("enter network namespace {}", self.path.display()))
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a program inside the namespace to its end, whatever its exit code.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the program cannot be started.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.within(|| Command::new(program).args(args).output())?
            .with_context(|| format!("run {program} in {}", self.path.display()))
    }

    /// Runs `ip` inside the namespace.
    ///
    /// # Errors
    /// When `ip` fails, with what it wrote to stderr.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        let output = self.run("ip", args)?;
        succeeded(output, &format!("ip {} in {}", args.join(" "), self.path.display()))?;
        Ok(())
    }

    /// Runs `ip -j` inside the namespace and returns what it lists; an empty list when it prints
    /// nothing.
    ///
    /// # Errors
    /// When `ip` fails or prints something else than JSON.
    pub fn ip_json(&self, args: &[&str]) -> Result<Value> {
        let what = format!("ip -j {} in {}", args.join(" "), self.path.display());
        let args: Vec<&str> = std::iter::once("-j").chain(args.iter().copied()).collect();
        let stdout = succeeded(self.run("ip", &args)?, &what)?;
        if stdout.trim_ascii().is_empty() {
            return Ok(json!([]));
        }
        serde_json::from_slice(&stdout).with_context(|| format!("read the answer of {what}"))
    }

    /// Removes the namespace before its time, as a runtime does that tears a sandbox down before
    /// it calls DEL. Does nothing to a namespace that somebody else owns, or that is gone.
    pub fn remove(&self) {
        let Some(name) = &self.owned_name else { return };
        // Failing to remove must not hide the failure of the test that is being unwound.
        let _ = Command::new("ip").args(["netns", "del", name]).output();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The stdout of a command that had to succeed.
fn succeeded(output: Output, what: &str) -> Result<Vec<u8>> {
    if !output.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// Looks every 10 ms whether `cond` holds, until `deadline` has passed from now.
///
/// # Errors
/// When it never held; the sentence names `what` was waited for.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut cond: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        if cond().with_context(|| format!("while waiting until {what}"))? {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("waited {} s until {what}, in vain", deadline.as_secs_f32());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_until_returns_as_soon_as_the_condition_holds() {
        let mut looks = 0;
        let waited = wait_until("third look", Duration::from_secs(5), || {
            looks += 1;
            Ok(looks == 3)
        });
        assert!(waited.is_ok());
        assert_eq!(looks, 3);
    }

    #[test]
    fn wait_until_names_what_never_happened() {
        let waited = wait_until("pigs fly", Duration::from_millis(20), || Ok(false));
        assert!(waited.unwrap_err().to_string().contains("pigs fly"));
    }

    #[test]
    fn entering_a_namespace_that_is_gone_is_an_error_that_names_it() {
        let gone = Namespace::existing("/nowhere/at/all");
        assert!(gone.within(|| ()).unwrap_err().to_string().contains("/nowhere/at/all"));
    }

    #[test]
    #[ignore = "needs root"]
    fn a_namespace_has_links_of_its_own_and_is_removed_on_drop() {
        let namespace = Namespace::create("kit").unwrap();
        namespace.ip(&["link", "add", "a0", "type", "veth", "peer", "name", "a1"]).unwrap();
        let links = namespace.ip_json(&["link"]).unwrap();
        assert_eq!(links.as_array().unwrap().len(), 3, "lo and both ends: {links}");
        let path = namespace.path().to_owned();
        assert!(path.exists());
        drop(namespace);
        assert!(!path.exists());
    }
}
