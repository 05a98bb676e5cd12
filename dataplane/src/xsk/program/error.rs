//! What can go wrong with the BPF programs, each with its mend.

use std::io;
use std::path::PathBuf;

/// A failed operation on the BPF programs, their maps or links.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The folder for pins is on another kind of filesystem, so pins cannot be made in it.
    #[error(
        "{} is not on a bpffs: run `mount -t bpf bpf /sys/fs/bpf` on the machine or set \
         daemon.bpf_dir to a folder on a bpffs, and enter network namespaces with \
         `nsenter --net=FILE`, since `ip netns exec` hides it", .path.display()
    )]
    NotBpffs {
        /// The configured folder.
        path: PathBuf,
    },
    /// The bpffs was mounted in a mount namespace that may end before we want the pins to.
    #[error(
        "{} is on a bpffs of a private mount namespace, which takes all pins with it when it ends: \
         enter network namespaces with `nsenter --net=FILE` instead of `ip netns exec`, or mount \
         the bpffs for the whole machine", .path.display()
    )]
    PrivateMount {
        /// The configured folder.
        path: PathBuf,
    },
    /// A folder cannot be made, read or looked at.
    #[error("cannot use the folder {} for BPF pins: {source}; check its owner and mode",
        .path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Something that is not a map, or not ours, is pinned where a map belongs.
    #[error("cannot open the BPF map pinned at {}: {source:#}; remove that file", .path.display())]
    Pinned {
        /// The map's pin.
        path: PathBuf,
        /// What the kernel answered.
        source: libbpf_rs::Error,
    },
    /// A pinned map is from a version that laid it out otherwise.
    #[error(
        "the BPF map pinned at {} has another shape ({found:?} instead of {wanted:?} key bytes, \
         value bytes, entries): drain the node, stop viaductd, remove {} and start it again",
        .path.display(), .path.parent().unwrap_or(.path).display()
    )]
    MapShape {
        /// The map's pin.
        path: PathBuf,
        /// Key bytes, value bytes, entries of the pinned map.
        found: [u32; 3],
        /// The same of the map this program needs.
        wanted: [u32; 3],
    },
    /// The kernel refuses a program or one of its maps.
    #[error(
        "cannot load the BPF program {program}: {source:#}; Linux 6.1 or newer, CAP_BPF and \
         CAP_NET_ADMIN are needed, and the log at level debug has the verifier's words"
    )]
    Load {
        /// The program.
        program: &'static str,
        /// What libbpf or the kernel answered.
        source: libbpf_rs::Error,
    },
    /// The kernel does not run a program on a packet that was made up.
    #[error("cannot try the BPF program {program}: {source:#}; look at the log at level debug")]
    Trial {
        /// The program.
        program: &'static str,
        /// What libbpf or the kernel answered.
        source: libbpf_rs::Error,
    },
    /// The device runs an XDP program that is not ours to replace.
    #[error(
        "interface {ifindex} already runs XDP program {program_id}, pinned neither as {} nor by us \
         (`bpftool prog show id {program_id}` names it): detach it with `ip link set dev NAME xdp \
         off`, or with `bpftool link detach` if a link holds it", .pin.display()
    )]
    Occupied {
        /// The device.
        ifindex: u32,
        /// The foreign program's id; 0 if it went away meanwhile.
        program_id: u32,
        /// Where our own link would be pinned.
        pin: PathBuf,
    },
    /// The XDP program cannot be attached, or its link not be pinned.
    #[error("cannot attach the XDP program to interface {ifindex} with pin {}: {source}; check \
        that the interface exists in this network namespace", .pin.display())]
    Attach {
        /// The device.
        ifindex: u32,
        /// The link's pin.
        pin: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A new program cannot take the place of the one a pinned link runs.
    #[error(
        "cannot put the new XDP program into the link pinned at {}: {source:#}; drain the node, \
         remove that file and start viaductd again", .pin.display()
    )]
    Update {
        /// The link's pin.
        pin: PathBuf,
        /// What the kernel answered.
        source: libbpf_rs::Error,
    },
    /// A link's pin cannot be removed.
    #[error("cannot remove the XDP link pinned at {}: {source}; remove that file", .pin.display())]
    Detach {
        /// The link's pin.
        pin: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The marker's qdisc or filter is refused.
    #[error(
        "cannot attach the tc program marker to the egress of interface {ifindex}: {source:#}; \
         the kernel needs NET_SCH_INGRESS and NET_CLS_BPF"
    )]
    AttachMarker {
        /// The device, in the network namespace of the calling thread.
        ifindex: u32,
        /// What libbpf or the kernel answered.
        source: libbpf_rs::Error,
    },
    /// A map refuses an operation.
    #[error(
        "cannot {operation} the BPF map {map} (of at most {entries} entries): {source:#}; \
         `bpftool map` shows what fills it"
    )]
    Map {
        /// The map.
        map: String,
        /// Its capacity.
        entries: u32,
        /// What was tried.
        operation: &'static str,
        /// What the kernel answered: `TooBig` when it is full or the index beyond its end.
        source: libbpf_rs::Error,
    },
}
