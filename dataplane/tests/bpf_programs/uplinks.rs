//! Attaching `uplink`: native or generic, adopted, replaced, taken away by others.

use std::os::fd::AsFd;
use std::path::Path;

use dataplane::xsk::program::{
    AttachMode, Attached, ProgramError, Programs, pinned_uplink_program,
};
use libbpf_rs::{Link, Xdp, XdpFlags};

use crate::links::foreign;
use crate::machine::{BpfDir, Netns};

const NATIVE: Attached = Attached { mode: AttachMode::Native, refused: None };
const GENERIC: Attached = Attached { mode: AttachMode::Generic, refused: None };

struct Bench {
    programs: Programs,
    netns: Netns,
    ifindex: u32,
    dir: BpfDir,
}

impl Bench {
    fn new() -> Bench {
        let (dir, netns) = (BpfDir::new(), Netns::new());
        netns.ip("link add nic type veth peer name eth0");
        let programs = Programs::load(dir.path()).expect("loads");
        Bench { programs, ifindex: netns.ifindex("nic"), netns, dir }
    }

    fn attach(&self, wanted: AttachMode) -> Result<Attached, ProgramError> {
        self.netns.enter(|| self.programs.attach_uplink(self.ifindex, "nic", wanted))
    }

    fn running(&self) -> Option<AttachMode> {
        self.netns.enter(|| self.programs.uplink_mode_of(self.ifindex))
    }

    /// What `ip` says of the device: xdp is native mode, xdpgeneric the other.
    fn shown(&self) -> Option<&'static str> {
        let line = self.netns.ip("link show dev nic");
        ["xdpgeneric", "xdp"].into_iter().find(|mode| line.contains(&format!(" {mode} ")))
    }

    fn link(&self) -> u32 {
        link_at(self.dir.path())
    }
}

fn link_at(dir: &Path) -> u32 {
    let link = Link::open(dir.join("uplink-links/nic")).expect("the link is pinned");
    link.info().expect("the link answers").id
}

#[test]
#[ignore = "needs root"]
fn the_wanted_mode_is_taken_and_a_link_of_another_replaced() {
    let bench = Bench::new();
    assert_eq!(bench.running(), None);
    for (wanted, attached, shown) in
        [(AttachMode::Native, NATIVE, "xdp"), (AttachMode::Generic, GENERIC, "xdpgeneric")]
    {
        assert_eq!(bench.attach(wanted).expect("attaches"), attached);
        assert_eq!(bench.shown(), Some(shown));
        assert_eq!(bench.running(), Some(wanted));
        let link = bench.link();
        assert_eq!(bench.attach(wanted).expect("attaches again"), attached);
        assert_eq!(bench.link(), link, "nothing to replace");
    }
    assert_eq!(bench.programs.attached_uplinks().expect("read"), ["nic"]);
    assert!(bench.programs.links().expect("read").is_empty(), "no pod's link");
    bench.programs.detach_uplink("nic").expect("detaches");
    bench.programs.detach_uplink("nic").expect("no error when absent");
    assert_eq!((bench.shown(), bench.running()), (None, None));
}

#[test]
#[ignore = "needs root"]
fn where_the_driver_refuses_native_mode_the_answer_says_why() {
    let (dir, netns) = (BpfDir::new(), Netns::new());
    let programs = Programs::load(dir.path()).expect("loads");
    let ifindex = netns.ifindex("lo");
    let attach = |wanted| netns.enter(|| programs.attach_uplink(ifindex, "lo", wanted));
    for _ in 0..2 {
        let attached = attach(AttachMode::Native).expect("generic mode always goes");
        assert_eq!(attached.mode, AttachMode::Generic);
        let reason = attached.refused.expect("there is a reason");
        assert_eq!(reason, "Operation not supported (os error 95)");
        let running = netns.enter(|| programs.uplink_mode_of(ifindex));
        assert_eq!(running, Some(AttachMode::Generic));
    }
    assert_eq!(attach(AttachMode::Generic).expect("attaches"), GENERIC);
}

#[test]
#[ignore = "needs root"]
fn the_next_daemon_takes_over_the_link_and_steering() {
    let bench = Bench::new();
    bench.attach(AttachMode::Native).expect("attaches");
    let link = bench.link();
    let Bench { programs, netns, ifindex, dir } = bench;
    let id = pinned_uplink_program(dir.path(), "nic").expect("pinned");
    assert_eq!(pinned_uplink_program(dir.path(), "eth0"), None);
    drop(programs);
    assert!(netns.ip("link show dev nic").contains(" xdp "), "the link outlives the daemon");

    let programs = Programs::load(dir.path()).expect("loads over the pins");
    let second = Bench { programs, netns, ifindex, dir };
    assert_eq!(second.running(), None, "the earlier daemon's program");
    assert_eq!(second.attach(AttachMode::Native).expect("adopts"), NATIVE);
    assert_eq!(second.link(), link, "never detached");
    assert_eq!(second.running(), Some(AttachMode::Native));
    assert_ne!(pinned_uplink_program(second.dir.path(), "nic"), Some(id), "the new one is in");
}

#[test]
#[ignore = "needs root"]
fn an_occupied_device_is_refused_in_every_mode() {
    let bench = Bench::new();
    let device = i32::try_from(bench.ifindex).expect("indexes are small");
    let object = foreign();
    let program = object.progs().next().expect("it has one program");
    let id = libbpf_rs::Program::id_from_fd(program.as_fd()).expect("it has an id");
    for mode in [XdpFlags::SKB_MODE, XdpFlags::DRV_MODE] {
        let (fd, bits) = (program.as_fd(), mode.bits());
        let flags = || XdpFlags::from_bits_truncate(bits);
        bench.netns.enter(|| Xdp::new(fd).attach(device, flags())).expect("it attaches");
        assert_eq!(bench.running(), None);
        for wanted in [AttachMode::Native, AttachMode::Generic] {
            match bench.attach(wanted) {
                Err(ProgramError::Occupied { program_id, .. }) => assert_eq!(program_id, id),
                other => panic!("expected Occupied, got {other:?}"),
            }
        }
        assert!(bench.programs.attached_uplinks().expect("read").is_empty());
        bench.netns.enter(|| Xdp::new(fd).detach(device, flags())).expect("it leaves");
        bench.attach(AttachMode::Native).expect("now it is free");
        bench.programs.detach_uplink("nic").expect("detaches");
    }
}

#[test]
#[ignore = "needs root"]
fn a_program_that_somebody_detached_is_missed_and_comes_back() {
    let bench = Bench::new();
    bench.attach(AttachMode::Native).expect("attaches");
    // As `bpftool link detach` does: the pin stays.
    let link = Link::open(bench.dir.path().join("uplink-links/nic")).expect("the link is pinned");
    link.detach().expect("detaches");
    assert_eq!(bench.running(), None);
    assert_eq!(bench.attach(AttachMode::Native).expect("attaches"), NATIVE);
    assert_eq!(bench.running(), Some(AttachMode::Native));
    drop(link);
    // Or the pin goes, and the link with it.
    std::fs::remove_file(bench.dir.path().join("uplink-links/nic")).expect("removed");
    let gone = || bench.running().is_none();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !gone() && std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(gone(), "a link without pin or owner is released");
    assert_eq!(bench.attach(AttachMode::Native).expect("attaches"), NATIVE);
}

#[test]
#[ignore = "needs root"]
fn a_device_that_was_made_anew_gets_the_program_again() {
    let bench = Bench::new();
    bench.attach(AttachMode::Generic).expect("attaches");
    bench.netns.ip("link del nic");
    assert_eq!(bench.running(), None);
    let gone = bench.attach(AttachMode::Native).expect_err("there is no such device");
    assert!(matches!(gone, ProgramError::Attach { .. }), "{gone}");
    bench.netns.ip("link add nic.5 type veth peer name eth0");
    let ifindex = bench.netns.ifindex("nic.5");
    let attach = || bench.programs.attach_uplink(ifindex, "nic.5", AttachMode::Native);
    assert_eq!(bench.netns.enter(attach).expect("attaches"), NATIVE);
    assert_eq!(bench.programs.attached_uplinks().expect("read"), ["nic.5"]);
}
