//! Calls a CNI plugin as a container runtime does: environment, stdin, exit code, stdout, stderr.
//! Judges nothing but keeps everything, so that tests can.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::netns::Namespace;

/// A plugin that has not ended by then is killed. The slowest honest call known here, a dual-stack
/// ADD that waits for duplicate address detection, takes 2 s.
pub const KILL_AFTER: Duration = Duration::from_secs(20);

/// How often the child is looked at. Calls take 3 ms and more.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// PATH of the plugin: some execute `ip`, `iptables` or a shell.
const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One call of a plugin. A field that is `None` is absent from the environment, which is not the
/// same as empty (CNI specification, section 2, "Parameters").
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Invocation {
    /// CNI_COMMAND.
    pub command: Option<String>,
    /// CNI_CONTAINERID.
    pub container_id: Option<String>,
    /// CNI_NETNS.
    pub netns: Option<String>,
    /// CNI_IFNAME.
    pub ifname: Option<String>,
    /// CNI_ARGS.
    pub args: Option<String>,
    /// CNI_PATH.
    pub path: Option<String>,
    /// Variables beyond those of the specification.
    pub extra_env: Vec<(String, String)>,
    /// Written to stdin, which is then closed.
    pub stdin: Vec<u8>,
}

impl Invocation {
    /// Calls the plugin and waits for its end; inside `namespace` when there is one, else where
    /// the caller is.
    ///
    /// # Errors
    /// When the plugin cannot be started or waited for; never for what it answers.
    pub fn run(&self, binary: &Path, namespace: Option<&Namespace>) -> Result<Outcome> {
        match namespace {
            Some(namespace) => namespace.within(|| self.run_here(binary))?,
            None => self.run_here(binary),
        }
    }

    /// Sets a variable of the specification by its name in the environment; `None` removes it.
    ///
    /// # Panics
    /// When the specification knows no such variable.
    pub fn set(&mut self, variable: &str, value: Option<&str>) {
        let field = match variable {
            "CNI_COMMAND" => &mut self.command,
            "CNI_CONTAINERID" => &mut self.container_id,
            "CNI_NETNS" => &mut self.netns,
            "CNI_IFNAME" => &mut self.ifname,
            "CNI_ARGS" => &mut self.args,
            "CNI_PATH" => &mut self.path,
            _ => panic!("{variable} is no variable of the CNI specification"),
        };
        *field = value.map(str::to_owned);
    }

    fn run_here(&self, binary: &Path) -> Result<Outcome> {
        let started = Instant::now();
        let mut child = self
            .as_command(binary)
            .spawn()
            .with_context(|| format!("start the plugin {}", binary.display()))?;
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        if let Some(mut stdin) = child.stdin.take() {
            let bytes = self.stdin.clone();
            // A plugin may answer without reading everything; then this write breaks, rightly.
            thread::spawn(move || stdin.write_all(&bytes));
        }
        let deadline = started + KILL_AFTER;
        let status = wait(&mut child, deadline)?;
        let took = started.elapsed();
        let stdout = received(&stdout, deadline);
        let stderr = received(&stderr, deadline).unwrap_or_default();
        let ended = match (status, &stdout) {
            (None, _) => Ended::Killed,
            (Some(_), None) => Ended::HeldStdout,
            (Some(status), Some(_)) => match (status.code(), status.signal()) {
                (Some(code), _) => Ended::Exited(code),
                (None, signal) => Ended::Crashed(signal.unwrap_or_default()),
            },
        };
        let stdout = stdout.unwrap_or_default();
        Ok(Outcome {
            code: if let Ended::Exited(code) = ended { Some(code) } else { None },
            ended,
            json: serde_json::from_slice(&stdout).ok(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            took,
        })
    }

    fn as_command(&self, binary: &Path) -> Command {
        let Self { command: verb, container_id, netns, ifname, args, path, extra_env, stdin: _ } =
            self;
        let mut command = Command::new(binary);
        command.env_clear().env("PATH", PROGRAM_PATH);
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container_id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", ifname),
            ("CNI_ARGS", args),
            ("CNI_PATH", path),
        ];
        for (name, value) in variables {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.envs(extra_env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that a kill also reaches the plugins it delegates to.
        command.process_group(0);
        command
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, not sent by us.
    Crashed(i32),
    /// By our SIGKILL, after [`KILL_AFTER`].
    Killed,
    /// It exited but left a process behind that keeps stdout open: a runtime would wait for ever.
    HeldStdout,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit code, when it ended by itself.
    pub code: Option<i32>,
    /// How it ended.
    pub ended: Ended,
    /// Everything on stdout; bytes that are no UTF-8 are shown as replacement characters.
    pub stdout: String,
    /// Everything on stderr, likewise.
    pub stderr: String,
    /// stdout, when that is exactly one JSON document.
    pub json: Option<Value>,
    /// Time from start to end.
    pub took: Duration,
}

/// Reads a pipe to its end on a thread, so that a plugin never blocks on a full one.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    if let Some(mut pipe) = pipe {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // A broken read leaves what came before it, which is all there is to judge.
            let _ = pipe.read_to_end(&mut bytes);
            let _ = sender.send(bytes); // nobody listens any more after the deadline
        });
    }
    receiver
}

/// What a pipe carried, or `None` when it was still open at the deadline. One second is granted
/// after a kill, for the pipes to close.
fn received(pipe: &Receiver<Vec<u8>>, deadline: Instant) -> Option<Vec<u8>> {
    let left = deadline.saturating_duration_since(Instant::now());
    pipe.recv_timeout(left.max(Duration::from_secs(1))).ok()
}

/// The exit status, or `None` when the child had to be killed.
fn wait(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().context("wait for the plugin")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let group = Pid::from_child(child);
            kill_process_group(group, Signal::KILL).context("kill the plugin")?;
            child.wait().context("wait for the killed plugin")?;
            return Ok(None);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call of the shell, which stands for a plugin and reads its script from stdin.
    fn shell(script: &str) -> Invocation {
        Invocation { stdin: script.as_bytes().to_vec(), ..Invocation::default() }
    }

    fn run(call: &Invocation) -> Outcome {
        call.run(Path::new("/bin/sh"), None).unwrap()
    }

    #[test]
    fn an_outcome_keeps_code_stdout_stderr_and_the_json() {
        let outcome = run(&shell("echo '{\"a\":1}'; echo noise >&2; exit 3"));
        assert_eq!(outcome.code, Some(3));
        assert_eq!(outcome.json, Some(serde_json::json!({"a": 1})));
        assert_eq!(outcome.stderr, "noise\n");
    }

    #[test]
    fn an_absent_variable_is_not_an_empty_one() {
        let mut call = shell("echo \"${CNI_NETNS-absent}/${CNI_IFNAME-absent}\"");
        call.set("CNI_IFNAME", Some(""));
        assert_eq!(run(&call).stdout, "absent/\n");
    }

    #[test]
    fn two_documents_on_stdout_are_no_json() {
        assert_eq!(run(&shell("echo '{} {}'")).json, None);
    }

    #[test]
    fn a_crash_is_not_an_exit_code() {
        let outcome = run(&shell("kill -SEGV $$"));
        assert_eq!(outcome.ended, Ended::Crashed(11));
        assert_eq!(outcome.code, None);
    }

    #[test]
    fn a_plugin_that_reads_nothing_of_a_large_stdin_still_answers() {
        let mut call = shell("exit 0\n");
        call.stdin.resize(1 << 22, b' ');
        assert_eq!(run(&call).code, Some(0));
    }

    #[test]
    fn a_plugin_that_cannot_be_started_is_an_error_that_names_it() {
        let error = Invocation::default().run(Path::new("/no/plugin"), None).unwrap_err();
        assert!(error.to_string().contains("/no/plugin"));
    }
}
