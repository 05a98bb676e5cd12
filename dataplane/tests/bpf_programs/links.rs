//! Loading, pinning, attaching, and being taken over by the next daemon.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use dataplane::xsk::program::{Fallback, PortEntry, PortKind, ProgramError, Programs};
use libbpf_rs::{Link, MapHandle, MapType, Object, ObjectBuilder, Xdp, XdpFlags};

use crate::machine::{BpfDir, Netns, output};

const ENTRY: PortEntry = PortEntry {
    slot: 1,
    worker: 0,
    fallback: Fallback::Drop,
    mac: [0xaa, 1, 2, 3, 4, 5],
    kind: PortKind::Pod,
};

fn veth(netns: &Netns) -> u32 {
    netns.ip("link add host type veth peer name eth0");
    netns.ifindex("host")
}

fn attach(programs: &Programs, netns: &Netns, ifindex: u32) -> Result<(), ProgramError> {
    netns.enter(|| programs.attach(ifindex, "host"))
}

/// The ids of the link and of the program it runs.
fn ids(dir: &Path) -> (u32, u32) {
    let link = Link::open(dir.join("links/host")).expect("the link is pinned");
    let info = link.info().expect("the link answers");
    (info.id, info.prog_id)
}

fn runs_generic_xdp(netns: &Netns, device: &str) -> bool {
    netns.ip(&format!("link show dev {device}")).contains("xdpgeneric")
}

/// Somebody else's XDP program.
pub fn foreign() -> Object {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bpf/port.bpf.o");
    let object = ObjectBuilder::default().open_file(path).expect("the object is committed");
    object.load().expect("the program loads")
}

#[test]
#[ignore = "needs root"]
fn the_next_daemon_takes_over_entries_and_links() {
    let (dir, netns) = (BpfDir::new(), Netns::new());
    let ifindex = veth(&netns);
    let first = Programs::load(dir.path()).expect("loads");
    first.set_port(ifindex, &ENTRY).expect("room");
    attach(&first, &netns, ifindex).expect("attaches");
    assert!(runs_generic_xdp(&netns, "host"));
    let (link, program) = ids(dir.path());

    drop(first);
    assert!(runs_generic_xdp(&netns, "host"), "the link outlives the daemon");
    let second = Programs::load(dir.path()).expect("loads over the pins");
    assert_eq!(second.ports().expect("read"), [(ifindex, ENTRY)]);
    assert_eq!(second.links().expect("read"), ["host"]);
    assert_eq!(ids(dir.path()), (link, program), "loading alone changes nothing");
    attach(&second, &netns, ifindex).expect("re-adopts");
    let (same_link, new_program) = ids(dir.path());
    assert_eq!(same_link, link, "never detached");
    assert_ne!(new_program, program, "the new program is in");
}

#[test]
#[ignore = "needs root"]
fn what_is_detached_can_be_attached_again_at_once() {
    let (dir, netns) = (BpfDir::new(), Netns::new());
    let ifindex = veth(&netns);
    let programs = Programs::load(dir.path()).expect("loads");
    programs.detach("host").expect("no error when absent");
    attach(&programs, &netns, ifindex).expect("attaches");
    assert!(runs_generic_xdp(&netns, "host"));
    programs.detach("host").expect("detaches");
    assert!(!runs_generic_xdp(&netns, "host"));
    netns.enter(|| {
        for _ in 0..50 {
            programs.attach(ifindex, "host").expect("attaches");
            programs.detach("host").expect("detaches");
        }
    });
    assert!(programs.links().expect("read").is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_link_left_by_a_deleted_device_is_replaced() {
    let (dir, netns) = (BpfDir::new(), Netns::new());
    let programs = Programs::load(dir.path()).expect("loads");
    let old = veth(&netns);
    attach(&programs, &netns, old).expect("attaches");
    netns.ip("link del host");
    assert_eq!(programs.links().expect("read"), ["host"], "the pin stays");
    let new = veth(&netns);
    assert_ne!(old, new);
    attach(&programs, &netns, new).expect("attaches to the new device");
    assert!(runs_generic_xdp(&netns, "host"));

    netns.ip("link del host");
    let gone = attach(&programs, &netns, new).expect_err("there is no such device");
    assert!(matches!(gone, ProgramError::Attach { .. }), "{gone}");
}

#[test]
#[ignore = "needs root"]
fn a_name_moves_from_one_device_to_another() {
    let (dir, netns) = (BpfDir::new(), Netns::new());
    let programs = Programs::load(dir.path()).expect("loads");
    let host = veth(&netns);
    attach(&programs, &netns, host).expect("attaches");
    attach(&programs, &netns, netns.ifindex("eth0")).expect("moves");
    assert!(!runs_generic_xdp(&netns, "host"));
    assert!(runs_generic_xdp(&netns, "eth0"));
}

#[test]
#[ignore = "needs root"]
fn a_device_with_a_foreign_program_is_refused_by_that_programs_id() {
    let (dir, netns) = (BpfDir::new(), Netns::new());
    let ifindex = veth(&netns);
    let device = i32::try_from(ifindex).expect("indexes are small");
    let programs = Programs::load(dir.path()).expect("loads");
    let object = foreign();
    let program = object.progs().next().expect("it has one program");
    let id = libbpf_rs::Program::id_from_fd(program.as_fd()).expect("it has an id");

    for mode in [XdpFlags::SKB_MODE, XdpFlags::DRV_MODE] {
        let (fd, flags) = (program.as_fd(), mode.bits());
        let flags = || XdpFlags::from_bits_truncate(flags);
        netns.enter(|| Xdp::new(fd).attach(device, flags())).expect("the foreigner attaches");
        match attach(&programs, &netns, ifindex) {
            Err(ProgramError::Occupied { program_id, .. }) => assert_eq!(program_id, id),
            other => panic!("expected Occupied, got {other:?}"),
        }
        assert!(programs.links().expect("read").is_empty());
        netns.enter(|| Xdp::new(fd).detach(device, flags())).expect("the foreigner leaves");
        attach(&programs, &netns, ifindex).expect("now it is free");
        programs.detach("host").expect("detaches");
    }
}

#[test]
#[ignore = "needs root"]
fn a_device_of_another_daemon_is_refused() {
    let (dir, other, netns) = (BpfDir::new(), BpfDir::new(), Netns::new());
    let ifindex = veth(&netns);
    let ours = Programs::load(dir.path()).expect("loads");
    let theirs = Programs::load(other.path()).expect("loads");
    attach(&theirs, &netns, ifindex).expect("attaches");
    let refused = attach(&ours, &netns, ifindex).expect_err("the device is taken");
    let (_, program) = ids(other.path());
    assert!(
        matches!(refused, ProgramError::Occupied { program_id, .. } if program_id == program),
        "{refused}"
    );
    attach(&theirs, &netns, ifindex).expect("its owner still may");
}

#[test]
#[ignore = "needs root"]
fn a_pinned_map_of_another_shape_is_refused_and_named() {
    let dir = BpfDir::new();
    drop(Programs::load(dir.path()).expect("loads"));
    let pin = dir.path().join("ports");
    fs::remove_file(&pin).expect("the map is pinned by name");
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let mut old = MapHandle::create(MapType::Hash, Some("ports"), 4, 16, 4096, &options)
        .expect("the map is made");
    old.pin(&pin).expect("the map is pinned");

    let error = Programs::load(dir.path()).expect_err("16 is not the size of an entry");
    assert!(matches!(error, ProgramError::MapShape { .. }), "{error}");
    assert!(error.to_string().contains(pin.to_str().expect("text")), "{error}");
    fs::remove_file(&pin).expect("the mend");
    Programs::load(dir.path()).expect("loads again");
}

#[test]
#[ignore = "needs root"]
fn a_folder_that_is_not_on_a_bpffs_is_refused_and_not_made() {
    let name = format!("/run/viaduct-test-{}", std::process::id());
    let error = Programs::load(Path::new(&name)).expect_err("/run is a tmpfs");
    assert!(matches!(error, ProgramError::NotBpffs { .. }), "{error}");
    assert!(!Path::new(&name).exists());
}

#[test]
#[ignore = "needs root"]
fn the_folder_is_made_for_root_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = BpfDir::new();
    Programs::load(&dir.path().join("deeper")).expect("parents are made too");
    for folder in ["", "deeper", "deeper/links"] {
        let mode = fs::metadata(dir.path().join(folder)).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder}");
    }
}

/// Runs itself again in other mount and network namespaces.
#[test]
#[ignore = "needs root"]
fn a_bpffs_of_a_private_mount_namespace_is_refused() {
    const NAME: &str = "links::a_bpffs_of_a_private_mount_namespace_is_refused";
    const FOLDER: &str = "VIADUCT_TEST_BPF_DIR";
    if let Ok(folder) = std::env::var(FOLDER) {
        match Programs::load(Path::new(&folder)) {
            Ok(_) => println!("[loaded]"),
            Err(ProgramError::PrivateMount { .. }) => println!("[private]"),
            Err(ProgramError::NotBpffs { .. }) => println!("[not a bpffs]"),
            Err(other) => println!("[{other}]"),
        }
        return;
    }
    let (dir, netns) = (BpfDir::new(), Netns::new());
    let test = std::env::current_exe().expect("the test has a path");
    let inner = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).arg(&test).args(["--exact", NAME, "--ignored", "--nocapture"]);
        let output = output(command.env(FOLDER, dir.path()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mount = "mount -t bpf bpf /sys/fs/bpf && exec \"$0\" \"$@\"";
    let private = inner("unshare", &["--mount", "sh", "-c", mount]);
    assert!(private.contains("[private]"), "{private}");
    // `ip netns exec` covers /sys with a sysfs that has no bpffs on it.
    let hidden = inner("ip", &["netns", "exec", netns.name()]);
    assert!(hidden.contains("[not a bpffs]"), "{hidden}");
    let same = inner("nsenter", &[&format!("--net=/run/netns/{}", netns.name())]);
    assert!(same.contains("[loaded]"), "{same}");
    let bound = inner("unshare", &["--mount"]);
    assert!(bound.contains("[loaded]"), "a private view of the machine's bpffs: {bound}");
}

#[test]
#[ignore = "needs root"]
fn traffic_of_a_pod_without_a_worker_passes_only_with_its_own_addresses() {
    let dir = BpfDir::new();
    let (pod, host) = Netns::pod_and_host();
    let programs = Programs::load(dir.path()).expect("loads");
    let ifindex = host.ifindex("host");
    let entry = PortEntry { fallback: Fallback::Pass, mac: pod.mac("eth0"), ..ENTRY };
    let addresses = ["10.9.0.2", "fd09::2"].map(|address| address.parse().expect("an address"));
    let pings =
        || ["10.9.0.1", "fd09::1"].map(|to| pod.succeeds(&format!("ping -q -c 1 -W 1 {to}")));
    programs.set_port(ifindex, &entry).expect("room");
    for address in addresses {
        programs.allow_source(ifindex, address).expect("room");
    }
    attach(&programs, &host, ifindex).expect("attaches");
    let marked = pod.enter(|| programs.attach_marker(pod.ifindex("eth0"))).expect("attaches");
    assert_eq!(marked, programs.csum_hint());
    assert_eq!(pings(), [true, true]);

    programs.forget_sources(ifindex).expect("forgotten");
    assert_eq!(pings(), [false, false]);
    programs.allow_source(ifindex, addresses[1]).expect("room");
    assert_eq!(pings(), [false, true]);
    for address in addresses {
        programs.allow_source(ifindex, address).expect("room");
    }
    assert_eq!(pings(), [true, true]);
    programs.set_port(ifindex, &PortEntry { fallback: Fallback::Drop, ..entry }).expect("room");
    assert_eq!(pings(), [false, false]);
}
