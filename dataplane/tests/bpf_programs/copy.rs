//! A copy of a program that shares the maps of the loaded one, to be run in the kernel on made-up
//! frames (BPF_PROG_TEST_RUN).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use dataplane::xsk::program::Trial;
use libbpf_rs::{Object, ObjectBuilder, ProgramInput};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const REDIRECT: u32 = 4;

pub struct Copy {
    object: Object,
    program: &'static str,
}

impl Copy {
    /// Loads the committed object of `program` over the maps pinned in `dir`.
    pub fn load(dir: &Path, program: &'static str) -> Copy {
        let path = format!("{}/src/bpf/{program}.bpf.o", env!("CARGO_MANIFEST_DIR"));
        let mut object = ObjectBuilder::default().open_file(path).expect("the object is committed");
        for mut map in object.maps_mut() {
            let pin = dir.join(map.name());
            map.reuse_pinned_map(pin).expect("the map is pinned by name");
        }
        Copy { object: object.load().expect("the program loads"), program }
    }

    /// The action for a frame that came in by a queue of a device of the calling thread's network
    /// namespace.
    pub fn run(&self, frame: &[u8], ifindex: u32, queue: u32) -> u32 {
        self.repeat(frame, ifindex, queue, 1).0
    }

    /// The same so many times over; also how long each took.
    pub fn repeat(&self, frame: &[u8], ifindex: u32, queue: u32, times: u32) -> (u32, Duration) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let end = u32::try_from(frame.len()).expect("a frame is short");
        let words = [0, end, 0, ifindex, queue, 0];
        let mut context: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(frame),
            repeat: times,
            ..ProgramInput::default()
        };
        let program = self.object.progs_mut().find(|program| program.name() == self.program);
        let output = program.expect("the program is there").test_run(input);
        let output = output.expect("the kernel runs the program");
        (output.return_value, output.duration)
    }
}

/// The one count that has grown, by one; `None` if none has.
pub fn counted(
    before: &[(&'static str, u64)],
    after: &[(&'static str, u64)],
) -> Option<&'static str> {
    let changed = before.iter().zip(after).filter(|(before, after)| before != after);
    let changed: Vec<_> = changed.map(|(before, after)| (after.0, after.1 - before.1)).collect();
    match changed[..] {
        [] => None,
        [(outcome, 1)] => Some(outcome),
        _ => panic!("one frame was counted as {changed:?}"),
    }
}

/// What the loader's own trial must have found, where the copy has answered and counted this.
pub fn trial_of((action, counted): (u32, Option<&'static str>)) -> Trial {
    match (action, counted) {
        (REDIRECT, None) => Trial::Taken,
        (PASS, Some(why)) => Trial::Passed(why),
        (DROP, Some(why)) => Trial::Dropped(why),
        other => panic!("{other:?}"),
    }
}

/// An XSK that is bound to nothing. It has an rx ring, without which newer kernels (7.3) let it
/// into no map.
pub fn xsk() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, flags, None);
    let socket = socket.expect("AF_XDP");
    sockopt::set_xdp_rx_ring_size(&socket, 2).expect("a ring");
    socket
}
