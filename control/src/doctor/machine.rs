//! Checks of the configuration file and of the machine: kernel, rights, memory, cores.

use std::collections::BTreeSet;

use dataplane::frame::FRAME_BYTES;

use super::Row;
use super::facts::{Facts, Nic};
use crate::config::{Config, PortMode};

/// Bytes of a hugepage that a worker's memory may be on.
const HUGEPAGE_BYTES: u64 = 2 << 20;

/// What the daemon cannot do without, by number and name (capabilities(7)): interfaces, routes and
/// XDP; AF_XDP sockets; entering the namespaces of pods, and BPF.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];

/// `CAP_IPC_LOCK`: its holder may lock any amount of memory (net/xdp/xdp_umem.c,
/// `xdp_umem_account_pages`).
const CAP_IPC_LOCK: u32 = 14;

/// The oldest kernel that was made sure of.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// The configuration file is there and right.
pub(super) fn configuration(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "configuration";
    let path = facts.config_path.display();
    vec![match &facts.config {
        Ok(_) => Row::well(CHECK, format!("{path} is complete and right")),
        Err(why) => {
            Row::amiss(CHECK, why, format!("correct {path}, or name another file with --config"))
        }
    }]
}

/// The process may do what the daemon has to.
pub(super) fn rights(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "rights";
    const MEND: &str = "run viaduct doctor and viaductd as root";
    let held = match &facts.machine.capabilities {
        Ok(held) => held,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(number, _)| held & (1 << number) == 0)
        .map(|(_, name)| *name)
        .collect();
    vec![if missing.is_empty() {
        Row::well(CHECK, "this process may do all that viaductd has to")
    } else {
        Row::amiss(CHECK, format!("this process lacks {}", missing.join(", ")), MEND)
    }]
}

/// The kernel is new enough.
pub(super) fn kernel(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "kernel";
    let release = &facts.machine.release;
    let found = format!("Linux {release}");
    vec![match version(release) {
        None => Row::unknown(CHECK, format!("{found} is no release that can be compared"), ""),
        Some(version) if version >= KERNEL_MIN => Row::well(CHECK, found),
        Some(_) => Row::amiss(CHECK, found, "boot Linux 6.1 or newer; 6.11 or newer is better"),
    }]
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The kernel has AF_XDP sockets.
pub(super) fn af_xdp(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "af_xdp";
    vec![match &facts.machine.sockets {
        Ok(_) => Row::well(CHECK, "the kernel has AF_XDP sockets"),
        Err(why) => Row::amiss(CHECK, why, "run as root, on a kernel with CONFIG_XDP_SOCKETS=y"),
    }]
}

/// Which ports there will be, and why not better ones.
pub(super) fn port_mode(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "port_mode";
    let features = match &facts.machine.sockets {
        Ok(features) => features,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let configured =
        facts.config.as_ref().map_or(PortMode::Auto, |config| config.workers.port_mode);
    let now = facts.daemon.status.as_ref().ok().map(|status| status.port_mode.name());
    let now = now.map_or_else(String::new, |mode| format!("; the daemon's are {mode}"));
    let row = |found: &str, mend: &str| Row::new(CHECK, Some(true), format!("{found}{now}"), mend);
    vec![match (features.tx_checksum && features.multi_buffer, configured, features.tx_budget) {
        (false, ..) => row(
            "basic ports, because the kernel lacks checksums by TX metadata: no super-packets, no \
             checksum offload",
            "Linux 6.11 or newer gives full ports",
        ),
        (true, PortMode::Basic, _) => row(
            "basic ports, because workers.port_mode says so; the kernel can do full ones",
            "workers.port_mode = \"auto\" gives full ports",
        ),
        (true, PortMode::Auto, false) => row(
            "full ports, but a wake-up sends 32 packets at most",
            "from Linux 6.17 on a wake-up sends a whole ring",
        ),
        (true, PortMode::Auto, true) => {
            row("full ports, with frags, sg, tx_checksum, tx_budget", "")
        }
    }]
}

/// The marker can be loaded, where ports would use it.
pub(super) fn btf(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "btf";
    let full = facts.machine.sockets.as_ref().is_ok_and(|features| features.tx_checksum);
    vec![match (facts.machine.btf, full) {
        (true, _) => Row::well(CHECK, "/sys/kernel/btf/vmlinux is there for the marker"),
        (false, false) => Row::well(CHECK, "there is no BTF, which basic ports do without"),
        (false, true) => Row::amiss(
            CHECK,
            "/sys/kernel/btf/vmlinux is missing, so the marker does not load: tunnels inside of \
             pods do not work",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ),
    }]
}

/// What is pinned in the folder for pins stays.
pub(super) fn bpf_dir(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "bpf_dir";
    let folder = facts.machine.bpf_dir.display();
    vec![match &facts.machine.bpf_dir_fits {
        Ok(()) => Row::well(CHECK, format!("{folder} is on a bpffs that the whole machine sees")),
        Err(sentence) => {
            // Errors of ours are "what: mend".
            let (found, mend) = sentence.split_once(": ").unwrap_or((sentence.as_str(), ""));
            Row::amiss(CHECK, found, mend)
        }
    }]
}

/// The workers' memory may be locked.
pub(super) fn locked_memory(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "locked_memory";
    let machine = &facts.machine;
    if machine.capabilities.as_ref().is_ok_and(|held| held & (1 << CAP_IPC_LOCK) != 0) {
        return vec![Row::well(CHECK, "CAP_IPC_LOCK: there is no limit")];
    }
    let Some(max) = machine.locked_bytes_max else {
        return vec![Row::well(CHECK, "RLIMIT_MEMLOCK is unlimited")];
    };
    let Ok(config) = &facts.config else {
        return vec![Row::unknown(CHECK, "without a configuration the need is not known", "")];
    };
    // The socket of each uplink queue registers its worker's memory again, and every registration
    // counts (net/xdp/xdp_umem.c, `xdp_umem_account_pages`).
    let queues = |nic: &Nic| match &nic.channels {
        Ok(Some(channels)) => u64::from(channels.receive_queues()),
        _ => 1,
    };
    let queues: u64 = facts.network.nics.iter().map(queues).sum();
    let workers = config.workers.cores.len() as u64;
    let need = memory_bytes(config) / workers * (workers + queues);
    let found = format!("of {} MiB that the workers need {} may be locked", mib(need), mib(max));
    vec![if max >= need {
        Row::well(CHECK, found)
    } else {
        let mend = "give viaductd CAP_IPC_LOCK, or LimitMEMLOCK=infinity in its unit";
        Row::amiss(CHECK, found, mend)
    }]
}

/// Whether hugepages will back the workers' memory: better, but not needed.
pub(super) fn hugepages(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "hugepages";
    if let Ok(status) = &facts.daemon.status {
        let without: Vec<String> = status
            .workers
            .iter()
            .filter(|worker| !worker.hugepages)
            .map(|worker| worker.id.to_string())
            .collect();
        if without.is_empty() {
            return vec![Row::well(CHECK, "hugepages back the memory of every worker")];
        }
        let found = format!("none back the memory of worker {}", without.join(", "));
        let mend = "reserve some (sysctl vm.nr_hugepages) before viaductd starts";
        return vec![Row::new(CHECK, Some(true), found, mend)];
    }
    let (free, config) = match (&facts.machine.hugepages_free, &facts.config) {
        (Ok(free), Ok(config)) => (*free, config),
        (Err(why), _) => return vec![Row::unknown(CHECK, why, "")],
        (_, Err(_)) => {
            return vec![Row::unknown(CHECK, "without a configuration the need is not known", "")];
        }
    };
    let need = memory_bytes(config).div_ceil(HUGEPAGE_BYTES);
    let found = format!("{free} hugepages of 2 MiB are free, the workers can use {need}");
    let mend = if free >= need {
        String::new()
    } else {
        format!("sysctl -w vm.nr_hugepages={need} before viaductd starts")
    };
    vec![Row::new(CHECK, Some(true), found, &mend)]
}

/// Bytes of all workers' memory.
fn memory_bytes(config: &Config) -> u64 {
    let workers = config.workers.cores.len() as u64;
    workers * u64::from(config.workers.frames) * FRAME_BYTES as u64
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// The workers' cores are there; whether they have them for themselves.
pub(super) fn cores(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "cores";
    let Ok(config) = &facts.config else {
        return vec![Row::unknown(CHECK, "without a configuration they are not known", "")];
    };
    let (online, isolated) = match (&facts.machine.online, &facts.machine.isolated) {
        (Ok(online), Ok(isolated)) => (online, isolated),
        (Err(why), _) | (_, Err(why)) => return vec![Row::unknown(CHECK, why, "")],
    };
    let cores: BTreeSet<usize> = config.workers.cores.iter().copied().collect();
    let offline = cores.iter().filter(|core| !online.contains(core)).map(|core| {
        let mend =
            format!("echo 1 >/sys/devices/system/cpu/cpu{core}/online, or change workers.cores");
        Row::amiss(CHECK, format!("core {core} of a worker is offline"), mend)
    });
    Row::all_or(offline.collect(), || {
        let names: Vec<String> = cores.iter().map(usize::to_string).collect();
        let names = names.join(", ");
        if cores.is_subset(isolated) {
            return Row::well(CHECK, format!("workers have {names} for themselves"));
        }
        let found = format!("workers run on {names}, which others may use too");
        Row::new(CHECK, Some(true), found, "isolcpus= keeps others away from the workers' cores")
    })
}

/// The kernel has what our nf_tables table is made of.
pub(super) fn modules(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "modules";
    let modules = &facts.machine.modules;
    let missing = modules.iter().filter(|(_, has)| **has == Ok(false)).map(|(name, _)| {
        let mend = format!("modprobe {name}, or install the package that has the kernel's modules");
        Row::amiss(CHECK, format!("the kernel has no {name}"), mend)
    });
    Row::all_or(missing.collect(), || {
        let names: Vec<&str> = modules.keys().copied().collect();
        let names = names.join(", ");
        let untold = modules.values().find_map(|has| has.as_ref().err());
        match (&facts.network.nft_table, untold) {
            // Made of them, it shows that they are there.
            (Ok(true), _) | (_, None) => Row::well(CHECK, format!("the kernel has {names}")),
            (_, Some(why)) => Row::unknown(CHECK, why, ""),
        }
    })
}
