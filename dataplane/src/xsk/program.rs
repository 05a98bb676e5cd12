//! The BPF programs and the maps they share with us: `port` on every pod's host end and on
//! `viaduct1`, `uplink` on the NICs, `marker` on the pod's end. Loaded from committed objects, so
//! users need no compiler (`scripts/bpf`).
//!
//! Maps and XDP links are pinned in `bpf_dir` and outlive the daemon: once its XSKs are gone `port`
//! falls back by itself, and the next daemon takes over what it finds. The truth is what is pinned,
//! not this value: dropping [`Programs`] detaches nothing.
//!
//! [`Programs`] is `Send` but meant for one thread, the control thread: operations that take more
//! than one system call (attach, forget sources) are not atomic towards each other.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use libbpf_rs::{
    MapCore, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel, Program, TC_EGRESS,
    TcHookBuilder,
};

mod bpf_dir;
mod error;
mod host_ports;
mod link;
mod maps;
mod steering;
mod trial;
mod uplink;

pub use bpf_dir::check_bpf_dir;
pub use error::ProgramError;
pub use host_ports::{HOST_PORTS_MAX, NODE_ADDRESSES_MAX};
pub use link::{AttachMode, Attached, pinned_program};
pub use maps::{
    FALLBACK_OUTCOMES, Fallback, PORTS_MAX, PortEntry, PortKind, SOURCES_MAX, WORKERS_MAX,
};
pub use steering::{DIRECT_PREFIXES_MAX, POD_PREFIXES_MAX, Steering};
pub use trial::Trial;
pub use uplink::{UPLINKS_MAX, UplinkEntry, pinned_uplink_program};

use maps::Maps;
use uplink::UplinkMaps;

const PORT_OBJECT: &[u8] = include_bytes!("../bpf/port.bpf.o");
const UPLINK_OBJECT: &[u8] = include_bytes!("../bpf/uplink.bpf.o");
const MARKER_OBJECT: &[u8] = include_bytes!("../bpf/marker.bpf.o");

/// Priority and handle of the marker's tc filter. Fixed, so that attaching again replaces it;
/// unlike 1 and 49152, which people and `tc` choose, so that it replaces nobody else's.
const MARKER_FILTER: u32 = 0x7664;

/// The loaded programs and the pinned maps and links.
#[derive(Debug)]
pub struct Programs {
    bpf_dir: PathBuf,
    links: PathBuf,
    uplink_links: PathBuf,
    port: Object,
    uplink: Object,
    /// Absent where the kernel lacks what it calls: capability `csum_hint`.
    marker: Option<Object>,
    maps: Maps,
    uplink_maps: UplinkMaps,
    /// Entries of the map `host_ports`.
    host_ports: usize,
}

impl Programs {
    /// Loads the programs; pins their maps in `bpf_dir`, or takes over those pinned there.
    ///
    /// Creates `bpf_dir` (mode 0700) when it is missing. Entries of maps taken over are kept, so
    /// the caller reconciles [`Programs::ports`] with the ports it knows.
    ///
    /// # Errors
    /// `bpf_dir` is not on a bpffs or not on one that PID 1 sees; a pinned map has another shape;
    /// the kernel refuses `port` or `uplink`. That `marker` does not load is no error but
    /// [`Programs::csum_hint`] being false.
    pub fn load(bpf_dir: &Path) -> Result<Programs, ProgramError> {
        libbpf_rs::set_print(Some((PrintLevel::Debug, trace)));
        bpf_dir::prepare(bpf_dir)?;
        let links = bpf_dir.join(link::LINKS);
        let uplink_links = bpf_dir.join(uplink::LINKS);
        bpf_dir::create(&links)?;
        bpf_dir::create(&uplink_links)?;

        let port = load_pinned(bpf_dir, "port", PORT_OBJECT)?;
        let maps = Maps::of(&port).map_err(|source| load_error("port", source))?;
        // Takes over the maps that `port` has just pinned, as far as they share them.
        let uplink = load_pinned(bpf_dir, "uplink", UPLINK_OBJECT)?;
        let uplink_maps = UplinkMaps::of(&uplink).map_err(|source| load_error("uplink", source))?;

        let marker = match open("marker", MARKER_OBJECT).and_then(OpenObject::load) {
            Ok(marker) => Some(marker),
            Err(reason) => {
                tracing::info!("no checksum hints: the marker program does not load: {reason:#}");
                None
            }
        };
        let bpf_dir = bpf_dir.to_owned();
        let host_ports = host_ports::left(&uplink_maps.host_ports);
        Ok(Programs {
            bpf_dir,
            links,
            uplink_links,
            port,
            uplink,
            marker,
            maps,
            uplink_maps,
            host_ports,
        })
    }

    /// Makes the folders of links, and pins the maps again, where somebody has removed them. What
    /// was attached by links that are gone is not attached any more: see [`Programs::links`].
    /// Returns whether something was missing.
    ///
    /// # Errors
    /// `bpf_dir` is on no bpffs any more, or the kernel refuses.
    pub fn restore_pins(&mut self) -> Result<bool, ProgramError> {
        if self.links.is_dir() && self.uplink_links.is_dir() {
            return Ok(false);
        }
        bpf_dir::prepare(&self.bpf_dir)?;
        bpf_dir::create(&self.links)?;
        bpf_dir::create(&self.uplink_links)?;
        for (name, object) in [("port", &self.port), ("uplink", &self.uplink)] {
            for map in object.maps() {
                let path = self.bpf_dir.join(map.name());
                if !path.exists() {
                    // By a handle: libbpf takes the map of an object to be pinned still.
                    let pinned = MapHandle::try_from(&map).and_then(|mut map| map.pin(&path));
                    pinned.map_err(|source| load_error(name, source))?;
                }
            }
        }
        Ok(true)
    }

    /// Whether pods' kernels can tell us checksum state and segment size in the source MAC. It
    /// takes `bpf_cast_to_kern_ctx` (Linux 6.2) and kernel BTF.
    pub fn csum_hint(&self) -> bool {
        self.marker.is_some()
    }

    /// Attaches `port` in generic mode to the device `ifindex` of the calling thread's network
    /// namespace, by a link pinned as `links/<name>`.
    ///
    /// A link already pinned under the name is taken over, with this program swapped in atomically,
    /// if it is this device's; else it is a leftover and replaced. Set the port's entry first: a
    /// device without one passes everything.
    ///
    /// # Errors
    /// [`ProgramError::Occupied`] when the device runs another XDP program.
    pub fn attach(&self, ifindex: u32, name: &str) -> Result<(), ProgramError> {
        let port = program(&self.port, "port");
        link::attach(&self.pin(name), ifindex, &port, AttachMode::Generic).map(|_| ())
    }

    /// Detaches what [`Programs::attach`] pinned under `name`. Nothing there is no error.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach(&self, name: &str) -> Result<(), ProgramError> {
        link::detach(&self.pin(name))
    }

    /// Names of the pinned links, in no order. Links of deleted devices are among them until
    /// [`Programs::detach`].
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn links(&self) -> Result<Vec<String>, ProgramError> {
        names(&self.links)
    }

    /// Attaches `marker` to the egress of the device `ifindex` of the calling thread's network
    /// namespace, or replaces the one that is there. Answers whether it did: false without
    /// [`Programs::csum_hint`].
    ///
    /// The filter belongs to the device and goes away with it.
    ///
    /// # Errors
    /// The kernel refuses the clsact qdisc or the filter.
    pub fn attach_marker(&self, ifindex: u32) -> Result<bool, ProgramError> {
        let Some(object) = &self.marker else {
            return Ok(false);
        };
        let error = |source| ProgramError::AttachMarker { ifindex, source };
        let device = i32::try_from(ifindex)
            .map_err(|_| error(io::Error::from(io::ErrorKind::InvalidInput).into()))?;
        let marker = program(object, "marker");
        let mut hook = TcHookBuilder::new(marker.as_fd())
            .ifindex(device)
            .priority(MARKER_FILTER)
            .handle(MARKER_FILTER)
            .replace(true)
            .hook(TC_EGRESS);
        hook.create().map_err(error)?;
        hook.attach().map_err(error)?;
        Ok(true)
    }

    fn pin(&self, name: &str) -> PathBuf {
        // bpffs reserves names with a dot (kernel/bpf/inode.c, bpf_lookup).
        assert!(!name.is_empty() && !name.contains(['/', '.']), "link names are host end names");
        self.links.join(name)
    }
}

/// Names of the files in a folder of pins.
fn names(folder: &Path) -> Result<Vec<String>, ProgramError> {
    let error = |source| ProgramError::Directory { path: folder.into(), source };
    let entries = fs::read_dir(folder).map_err(error)?;
    let name = |entry: io::Result<fs::DirEntry>| {
        let name = entry.map_err(error)?.file_name();
        Ok(name.to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

fn load_error(program: &'static str, source: libbpf_rs::Error) -> ProgramError {
    ProgramError::Load { program, source }
}

/// Loads a committed object whose maps are pinned in `bpf_dir`, now or since an earlier daemon.
fn load_pinned(bpf_dir: &Path, name: &'static str, bytes: &[u8]) -> Result<Object, ProgramError> {
    let mut object = open(name, bytes).map_err(|source| load_error(name, source))?;
    for mut map in object.maps_mut() {
        let path = bpf_dir.join(map.name());
        check_shape(&path, [map.key_size(), map.value_size(), map.max_entries()])?;
        // libbpf takes the map over if the path exists, and pins the new one if it does not.
        map.set_pin_path(&path).map_err(|source| load_error(name, source))?;
    }
    object.load().map_err(|source| load_error(name, source))
}

/// Opens a committed object. libbpf names some kernel objects after it.
fn open(name: &str, object: &[u8]) -> libbpf_rs::Result<OpenObject> {
    ObjectBuilder::default().name(name)?.open_memory(object)
}

fn program<'object>(object: &'object Object, name: &str) -> Program<'object> {
    let found = object.progs().find(|program| program.name() == name);
    found.expect("each committed object has the program it is named after")
}

/// Refuses to take over a map pinned by a version that laid it out otherwise: `wanted` is key
/// bytes, value bytes, entries. libbpf would refuse too, without saying which map and what to do.
fn check_shape(path: &Path, wanted: [u32; 3]) -> Result<(), ProgramError> {
    let pinned = match MapHandle::from_pinned_path(path) {
        Ok(pinned) => pinned,
        Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(ProgramError::Pinned { path: path.into(), source });
        }
    };
    let found = [pinned.key_size(), pinned.value_size(), pinned.max_entries()];
    if found != wanted {
        return Err(ProgramError::MapShape { path: path.into(), found, wanted });
    }
    Ok(())
}

/// libbpf explains at length on stderr what it tries; the errors here say what matters.
fn trace(_level: PrintLevel, line: String) {
    tracing::debug!(target: "libbpf", "{}", line.trim_end());
}
