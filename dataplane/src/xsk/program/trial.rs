//! What `port` and `uplink` do with a packet: they are run in the kernel on one that exists nowhere
//! else (BPF_PROG_TEST_RUN, Linux, Documentation/bpf/bpf_prog_run.rst).
//!
//! What runs is the attached program's twin: the same object over the same maps, but for the
//! counts, which are its own, so that nobody finds a packet counted that never came.

use std::os::fd::AsFd;

use libbpf_rs::{MapCore as _, Object, ProgramInput};

use super::maps::{FALLBACK_OUTCOMES, counts, handle};
use super::uplink::OUTCOMES;
use super::{PORT_OBJECT, ProgramError, Programs, UPLINK_OBJECT, load_error, open};

/// Bytes of a packet that the programs are shown: they read headers, and the kernel takes this much
/// in one piece whatever the size of its pages.
const SHOWN_BYTES: usize = 1024;

/// What XDP programs answer (Linux, include/uapi/linux/bpf.h, enum xdp_action).
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It went to the worker.
    Taken,
    /// It passed to the node's kernel, for a reason that is counted under this name.
    Passed(&'static str),
    /// It was dropped, for a reason that is counted under this name.
    Dropped(&'static str),
}

impl Programs {
    /// What `port` does with a packet that comes in by the device `ifindex`, a pod's host end or
    /// `viaduct1`. Loads the program, some milliseconds.
    ///
    /// # Errors
    /// The kernel refuses; among other things because there is no such device here.
    pub fn try_port(&self, ifindex: u32, frame: &[u8]) -> Result<Trial, ProgramError> {
        let names = FALLBACK_OUTCOMES.map(|(name, _)| name);
        let twin = Twin { name: "port", bytes: PORT_OBJECT, counts: "fallback_counts", names };
        twin.run(&self.port, (ifindex, 0), frame)
    }

    /// What `uplink` does with a packet that comes in by a queue of the device `ifindex`. Loads the
    /// program, some milliseconds.
    ///
    /// # Errors
    /// See [`Programs::try_port`].
    pub fn try_uplink(
        &self,
        ifindex: u32,
        queue: u32,
        frame: &[u8],
    ) -> Result<Trial, ProgramError> {
        let (bytes, counts) = (UPLINK_OBJECT, "uplink_counts");
        let twin = Twin { name: "uplink", bytes, counts, names: OUTCOMES };
        twin.run(&self.uplink, (ifindex, queue), frame)
    }
}

/// A program to be loaded once more.
struct Twin<const N: usize> {
    name: &'static str,
    bytes: &'static [u8],
    /// The map of its counts, and what they are called.
    counts: &'static str,
    names: [&'static str; N],
}

impl<const N: usize> Twin<N> {
    fn run(
        &self,
        attached: &Object,
        (ifindex, queue): (u32, u32),
        frame: &[u8],
    ) -> Result<Trial, ProgramError> {
        let error = |source| ProgramError::Trial { program: self.name, source };
        let object = self.load(attached)?;
        let frame = frame.get(..SHOWN_BYTES).unwrap_or(frame);
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let words = [0, frame.len() as u32, 0, ifindex, queue, 0];
        let mut context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(frame),
            ..ProgramInput::default()
        };
        let program = object.progs_mut().find(|program| program.name() == self.name);
        let program = program.expect("each committed object has the program it is named after");
        let action = program.test_run(input).map_err(error)?.return_value;
        let counted = counts(&handle(&object, self.counts).map_err(error)?, self.names)?;
        let why = counted.iter().find(|(_, count)| *count > 0).map_or("", |(name, _)| *name);
        Ok(match action {
            XDP_REDIRECT => Trial::Taken,
            XDP_PASS => Trial::Passed(why),
            _ => Trial::Dropped(why),
        })
    }

    fn load(&self, attached: &Object) -> Result<Object, ProgramError> {
        let error = |source| load_error(self.name, source);
        let mut object = open(self.name, self.bytes).map_err(error)?;
        for mut map in object.maps_mut() {
            let shared = attached.maps().find(|shared| shared.name() == map.name());
            if let Some(shared) = shared.filter(|shared| shared.name() != self.counts) {
                map.reuse_fd(shared.as_fd()).map_err(error)?;
            }
        }
        object.load().map_err(error)
    }
}
