//! An IPAM plugin whose answers a case chooses and whose calls it can read afterwards: a shell
//! script under a name of its own, in front of the plugin's other delegates on CNI_PATH
//! (checklist lines 21, 23 and 25).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::trial::{Conf, Trial};

/// The plugin type that configurations name.
const NAME: &str = "conformance-ipam";

/// The IPv4 address it hands out, and its gateway.
pub const V4: (&str, &str) = ("10.244.1.200/24", "10.244.1.1");
/// The IPv6 address it hands out, and its gateway.
pub const V6: (&str, &str) = ("fd00:10:244:1::200/64", "fd00:10:244:1::1");

/// What it writes to stderr on every call.
pub const STDERR: &str = "the stand-in ipam was here";

/// A stand-in IPAM plugin in the scratch directory of a trial.
pub struct StandInIpam {
    dir: PathBuf,
    cni_path: String,
}

/// A call it received.
#[derive(Clone, Debug)]
pub struct Call {
    /// CNI_COMMAND.
    pub verb: String,
    /// The variables whose names begin with `CNI_`, as lines `NAME=value`.
    pub env: Vec<String>,
    /// stdin.
    pub stdin: Value,
}

impl StandInIpam {
    /// Installs one that answers every verb with success and ADD with `result`.
    pub fn install(trial: &Trial, result: &Value) -> Result<Self> {
        let dir = trial.scratch.path().join("stand-in");
        for sub in ["bin", "calls", "answers"] {
            fs::create_dir_all(dir.join(sub)).context("make room for the stand-in IPAM plugin")?;
        }
        let at = dir.display();
        // Calls are numbered by a directory that mkdir creates atomically.
        let script = format!(
            "#!/bin/sh\nn=100; until mkdir {at}/calls/$n 2>/dev/null; do n=$((n+1)); done\n\
             env | grep ^CNI_ | sort > {at}/calls/$n/env; cat > {at}/calls/$n/stdin\n\
             echo '{STDERR}' >&2\n\
             cat {at}/answers/$CNI_COMMAND 2>/dev/null\n\
             [ ! -e {at}/answers/$CNI_COMMAND.fails ]\n"
        );
        let program = dir.join("bin").join(NAME);
        fs::write(&program, script).context("write the stand-in IPAM plugin")?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        // A directory that does not exist in front, as real search paths have.
        let cni_path = format!("{at}/nowhere:{at}/bin:{}", trial.plugin.cni_path);
        let stand_in = Self { dir, cni_path };
        stand_in.answer("ADD", result)?;
        let versions = json!({"cniVersion": trial.version, "supportedVersions": trial.supported});
        stand_in.answer("VERSION", &versions)?;
        Ok(stand_in)
    }

    fn answer(&self, verb: &str, answer: &Value) -> Result<()> {
        let path = self.dir.join("answers").join(verb);
        fs::write(path, answer.to_string()).context("write an answer of the stand-in IPAM plugin")
    }

    /// Makes a verb fail with this error object.
    pub fn fail(&self, verb: &str, error: &Value) -> Result<()> {
        self.answer(verb, error)?;
        fs::write(self.dir.join("answers").join(format!("{verb}.fails")), "")?;
        Ok(())
    }

    /// CNI_PATH that finds it.
    pub fn cni_path(&self) -> &str {
        &self.cni_path
    }

    /// The trial's configuration with this plugin as `ipam`, and an `ipam` key of no meaning that
    /// has to arrive.
    pub fn conf(&self, trial: &Trial) -> Conf {
        trial.conf_with(json!({"ipam": {"type": NAME, "colour": "blue"}}))
    }

    /// The calls it received so far, VERSION apart, in their order.
    pub fn calls(&self) -> Result<Vec<Call>> {
        let mut dirs = Vec::new();
        for entry in fs::read_dir(self.dir.join("calls"))? {
            dirs.push(entry?.path());
        }
        dirs.sort();
        let mut calls = Vec::new();
        for dir in dirs {
            let env: Vec<String> =
                fs::read_to_string(dir.join("env"))?.lines().map(str::to_owned).collect();
            let verb = env.iter().find_map(|line| line.strip_prefix("CNI_COMMAND="));
            let verb = verb.unwrap_or_default().to_owned();
            let stdin = serde_json::from_slice(&fs::read(dir.join("stdin"))?).unwrap_or_default();
            if verb != "VERSION" {
                calls.push(Call { verb, env, stdin });
            }
        }
        Ok(calls)
    }

    /// The verbs it received so far.
    pub fn verbs(&self) -> Result<Vec<String>> {
        Ok(self.calls()?.into_iter().map(|call| call.verb).collect())
    }
}

/// An IPAM result of the trial's version with these `(address, gateway)` pairs and a default route
/// per family. IPAM results have no interfaces (CNI specification, "Delegated plugins (IPAM)").
pub fn ipam_result(trial: &Trial, addresses: &[(&str, &str)]) -> Value {
    let with_family = !super::version::at_least(trial.version, "1.0.0");
    let mut ips = Vec::new();
    let mut routes = Vec::new();
    for (address, gateway) in addresses {
        let v6 = address.contains(':');
        let mut ip = json!({"address": address, "gateway": gateway});
        if with_family {
            ip["version"] = json!(if v6 { "6" } else { "4" });
        }
        ips.push(ip);
        routes.push(json!({"dst": if v6 { "::/0" } else { "0.0.0.0/0" }}));
    }
    json!({"cniVersion": trial.version, "ips": ips, "routes": routes})
}
