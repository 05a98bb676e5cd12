//! Reads the files of those around us: CNI configurations, the loopback plugin, networkd.conf.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::facts::{Cni, Networkd, Places, PluginList, Read};

/// What a file name of a list of plugins ends with (CNI specification, section 1; lone plugins,
/// `.conf`, have nothing after them).
const LIST_EXTENSION: &str = "conflist";

/// Where systemd looks for configurations; earlier ones hide later ones of the same name
/// (systemd-system.conf(5)).
const SYSTEMD: [&str; 4] =
    ["etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"];

/// The control group of systemd-networkd, which is there while it runs; under cgroup v2 and v1.
const NETWORKD: [&str; 2] = [
    "sys/fs/cgroup/system.slice/systemd-networkd.service",
    "sys/fs/cgroup/systemd/system.slice/systemd-networkd.service",
];

/// What matters of a list of plugins.
#[derive(Deserialize)]
struct List {
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
}

/// What the container runtime reads and executes.
pub(super) fn cni(places: &Places) -> Cni {
    let (conf_dir, bin_dir) = (places.cni_conf.clone(), places.cni_bin.clone());
    let lists = lists(&conf_dir).map_err(|error| cannot_read(&conf_dir, &error));
    let loopback = loopback(&bin_dir).map_err(|error| cannot_read(&bin_dir, &error));
    Cni { conf_dir, lists, bin_dir, loopback }
}

fn cannot_read(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

fn lists(folder: &Path) -> io::Result<Vec<PluginList>> {
    let mut paths = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == LIST_EXTENSION));
    paths.sort();
    Ok(paths.into_iter().map(|path| PluginList { types: types(&path), path }).collect())
}

fn types(path: &Path) -> Read<Vec<String>> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let list: List = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    Ok(list.plugins.into_iter().map(|plugin| plugin.kind).collect())
}

fn loopback(folder: &Path) -> io::Result<bool> {
    match fs::metadata(folder.join("loopback")) {
        Ok(file) => Ok(file.is_file() && file.permissions().mode() & 0o111 != 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What systemd-networkd does with what is not its own, if it runs and looks after the network
/// namespace of this process: it looks after that of PID 1. `root` is `/`.
pub(super) fn networkd(root: &Path) -> Option<Networkd> {
    let runs = NETWORKD.iter().any(|group| root.join(group).exists());
    // Who may not look at PID 1's takes it for his own.
    let namespace = |who| fs::metadata(root.join(format!("proc/{who}/ns/net"))).map(|ns| ns.ino());
    let elsewhere =
        matches!((namespace("1"), namespace("self")), (Ok(its), Ok(ours)) if its != ours);
    (runs && !elsewhere).then(|| networkd_conf(root))
}

/// The file first, then drop-ins in the order of their names; of a key the last one holds.
fn networkd_conf(root: &Path) -> Networkd {
    let folders = SYSTEMD.map(|folder| root.join(folder));
    let read = |folder: &PathBuf| fs::read_to_string(folder.join("networkd.conf")).ok();
    let main = folders.iter().find_map(read);
    let mut drop_ins = BTreeMap::new();
    for folder in folders.iter().rev() {
        let Ok(entries) = fs::read_dir(folder.join("networkd.conf.d")) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "conf") {
                drop_ins.insert(path.file_name().map(ToOwned::to_owned), path);
            }
        }
    }
    let drop_ins = drop_ins.into_values().filter_map(|path| fs::read_to_string(path).ok());
    // Both default to yes (networkd.conf(5)).
    let mut networkd = Networkd { removes_routes: true, removes_rules: true };
    for text in main.into_iter().chain(drop_ins) {
        read_keys(&text, &mut networkd);
    }
    networkd
}

fn read_keys(text: &str, networkd: &mut Networkd) {
    let mut in_network = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            in_network = line == "[Network]";
        }
        let Some((key, value)) = line.split_once('=').filter(|_| in_network) else { continue };
        let Some(value) = boolean(value.trim()) else { continue };
        match key.trim() {
            "ManageForeignRoutes" => networkd.removes_routes = value,
            "ManageForeignRoutingPolicyRules" => networkd.removes_rules = value,
            _ => {}
        }
    }
}

/// systemd.syntax(7), "Boolean arguments".
fn boolean(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make it");
        fs::write(path, text).expect("write");
    }

    fn places(root: &Path) -> Places {
        Places {
            config: root.join("viaduct.toml"),
            socket: None,
            cni_conf: root.join("net.d"),
            cni_bin: root.join("bin"),
        }
    }

    #[test]
    fn lists_are_read_in_their_order_and_a_broken_one_says_why() {
        let root = folder();
        write(root.path(), "net.d/20-b.conflist", "{");
        write(root.path(), "net.d/10-a.conflist", r#"{"plugins":[{"type":"x"},{"type":"y"}]}"#);
        write(root.path(), "net.d/05-lone.conf", r#"{"type":"z"}"#);
        let lists = cni(&places(root.path())).lists.expect("the folder is there");
        assert_eq!(lists.len(), 2);
        assert_eq!(lists[0].types, Ok(vec!["x".to_owned(), "y".to_owned()]));
        assert!(lists[1].types.as_ref().is_err_and(|why| why.contains("EOF")));
    }

    #[test]
    fn a_loopback_plugin_must_be_executable() {
        let root = folder();
        assert_eq!(cni(&places(root.path())).loopback, Ok(false), "no folder");
        write(root.path(), "bin/loopback", "");
        let path = root.path().join("bin/loopback");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("set");
        assert_eq!(cni(&places(root.path())).loopback, Ok(false), "not executable");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set");
        assert_eq!(cni(&places(root.path())).loopback, Ok(true));
    }

    #[test]
    fn networkd_that_does_not_run_is_none() {
        let root = folder();
        write(root.path(), "etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=no\n");
        assert_eq!(networkd(root.path()), None);
        fs::create_dir_all(root.path().join(NETWORKD[0])).expect("make it");
        let expected = Networkd { removes_routes: false, removes_rules: true };
        assert_eq!(networkd(root.path()), Some(expected));
    }

    #[test]
    fn drop_ins_win_by_name_and_etc_hides_usr() {
        let root = folder();
        let drop_in = |folder: &str, name: &str, key: &str, value: &str| {
            let text = format!("# a comment\n[Network]\n{key} = {value}\n[DHCPv4]\n{key}=no\n");
            write(root.path(), &format!("{folder}/systemd/networkd.conf.d/{name}"), &text);
        };
        assert_eq!(
            networkd_conf(root.path()),
            Networkd { removes_routes: true, removes_rules: true }
        );
        drop_in("usr/lib", "10-a.conf", "ManageForeignRoutes", "false");
        drop_in("usr/lib", "90-b.conf", "ManageForeignRoutingPolicyRules", "Off");
        assert_eq!(
            networkd_conf(root.path()),
            Networkd { removes_routes: false, removes_rules: false }
        );
        drop_in("etc", "10-a.conf", "ManageForeignRoutes", "yes");
        drop_in("etc", "95-c.conf", "ManageForeignRoutingPolicyRules", "perhaps");
        assert_eq!(
            networkd_conf(root.path()),
            Networkd { removes_routes: true, removes_rules: false }
        );
    }
}
