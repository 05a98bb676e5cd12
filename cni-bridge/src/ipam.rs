//! Delegation of address management to another plugin, as SPEC.md, "Section 4: Plugin Delegation",
//! has it: found in CNI_PATH, executed with our environment and the complete configuration, its
//! error is our error.
//!
//! A delegate may be older than the configuration. When it refuses, it is asked which versions it
//! speaks, and asked again in the newest of those; a verb it is too old for has nothing to do.
//! No deadline is set: runtimes set theirs, and some delegates wait for a DHCP server.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::env::Environment;
use crate::spec::result::CniResult;
use crate::spec::{CniError, CniVersion, NetConf, Verb, code};

/// A delegate's output is read up to here, in bytes: the same bound as our own input.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// How often a program that is being written is tried. libcni tries plugins five times too.
const SPAWN_TRIES: u32 = 5;

/// Time between the tries: copying a plugin of some megabytes takes about that long.
const SPAWN_PAUSE: Duration = Duration::from_millis(100);

/// The IPAM plugin of one invocation.
#[derive(Clone, Debug)]
pub struct Delegate<'a> {
    name: &'a str,
    program: PathBuf,
    conf: &'a NetConf,
    stdin: &'a [u8],
}

impl<'a> Delegate<'a> {
    /// Finds the plugin that `conf` delegates to; `None` when viaductd allocates. `stdin` is the
    /// configuration as it came.
    ///
    /// # Errors
    /// Code 4 when no directory of CNI_PATH has the plugin.
    pub fn find(
        conf: &'a NetConf,
        environment: &Environment,
        stdin: &'a [u8],
    ) -> Result<Option<Self>, CniError> {
        let Some(name) = conf.ipam.as_deref() else {
            return Ok(None);
        };
        let program = std::env::split_paths(&environment.path)
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                let path = environment.path.to_string_lossy();
                let msg =
                    format!("IPAM plugin {name} is not in CNI_PATH {path:?}; install it there");
                CniError::new(code::ENVIRONMENT, msg)
            })?;
        Ok(Some(Self { name, program, conf, stdin }))
    }

    /// Has the delegate allocate. When this succeeds and the attachment fails afterwards,
    /// [`Delegate::release_after`] must follow.
    ///
    /// # Errors
    /// The delegate's; code 6 when its result is malformed, 999 when it has no address. Then what
    /// it may have allocated is released already.
    pub fn add(&self) -> Result<CniResult, CniError> {
        let output = self.call(Verb::Add)?.unwrap_or_default();
        self.parse(&output).map_err(|error| self.release_after(error))
    }

    /// Has the delegate release, after `error`; gives `error` back, with the delegate's failure in
    /// its details when that fails too.
    #[must_use]
    pub fn release_after(&self, error: CniError) -> CniError {
        match self.run(Verb::Del) {
            Ok(()) => error,
            Err(second) => error.with_details(format!("releasing by {}: {second}", self.name)),
        }
    }

    /// Has the delegate carry out `verb`, whose success says nothing.
    ///
    /// # Errors
    /// The delegate's.
    pub fn run(&self, verb: Verb) -> Result<(), CniError> {
        self.call(verb).map(drop)
    }

    fn parse(&self, output: &[u8]) -> Result<CniResult, CniError> {
        let origin = format!("the result of IPAM plugin {}", self.name);
        let value: Value = serde_json::from_slice(output).map_err(|error| {
            CniError::new(code::DECODE, format!("{origin} is not JSON; look at its log"))
                .with_details(error.to_string())
        })?;
        let result = CniResult::from_value(&value, &origin)?;
        if result.ips.is_empty() {
            let msg = format!("{origin} has no address; look at the configuration's ipam");
            return Err(CniError::new(code::GENERIC, msg));
        }
        Ok(result)
    }

    /// Executes the delegate, in an older version when it is too old for the configuration's.
    /// `None` means that the verb does not exist in any version that it speaks.
    fn call(&self, verb: Verb) -> Result<Option<Vec<u8>>, CniError> {
        let error = match self.execute(verb, self.stdin) {
            Ok(output) => return Ok(Some(output)),
            Err(error) => error,
        };
        // Code 1 refuses the version; older ones say 4 of a verb that they do not know.
        if !matches!(error.code, code::INCOMPATIBLE_VERSION | code::ENVIRONMENT) {
            return Err(error);
        }
        match self.newest_spoken() {
            Some(version) if version < self.conf.version && verb.since() > version => Ok(None),
            Some(version) if version < self.conf.version => {
                self.execute(verb, &self.conf.downgraded(version)).map(Some)
            }
            _ => Err(error),
        }
    }

    /// The newest version not above the configuration's that both sides speak.
    fn newest_spoken(&self) -> Option<CniVersion> {
        let question = format!("{{\"cniVersion\":\"{}\"}}", self.conf.version);
        let output = self.execute(Verb::Version, question.as_bytes()).ok()?;
        let answer: Value = serde_json::from_slice(&output).ok()?;
        let names = answer.get("supportedVersions")?.as_array()?;
        names
            .iter()
            .filter_map(|name| CniVersion::find(name.as_str()?))
            .filter(|version| *version <= self.conf.version)
            .max()
    }

    fn execute(&self, verb: Verb, stdin: &[u8]) -> Result<Vec<u8>, CniError> {
        let failed = |error: io::Error| {
            let program = self.program.display();
            CniError::new(code::IO, format!("IPAM plugin {program} cannot be executed; mend it"))
                .with_details(error.to_string())
        };
        let mut child = self.spawn(verb).map_err(failed)?;
        let mut input = child.stdin.take().expect("stdin was piped");
        let output = child.stdout.take().expect("stdout was piped");
        let mut bytes = Vec::new();
        let read = thread::scope(|scope| {
            // A plugin that does not read its configuration is not at fault, so a broken pipe is
            // none of ours either. The thread ends by dropping the pipe, which is end of file.
            scope.spawn(move || drop(input.write_all(stdin)));
            output.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)
        });
        let status = child.wait().map_err(failed)?;
        read.map_err(failed)?;
        if status.success() {
            return Ok(bytes);
        }
        Err(CniError::parse(&bytes).unwrap_or_else(|| {
            let msg = format!("IPAM plugin {} failed ({status}); look at its log", self.name);
            CniError::new(code::GENERIC, msg)
        }))
    }

    /// Starts the delegate. A program that is being replaced in place cannot be executed until it
    /// is closed (execve(2), ETXTBSY), so that is waited for.
    fn spawn(&self, verb: Verb) -> io::Result<Child> {
        let mut tries = 0;
        loop {
            let child = Command::new(&self.program)
                .env("CNI_COMMAND", verb.as_str())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            tries += 1;
            match child {
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < SPAWN_TRIES =>
                {
                    thread::sleep(SPAWN_PAUSE);
                }
                child => return child,
            }
        }
    }
}
