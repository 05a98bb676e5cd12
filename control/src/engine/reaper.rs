//! Closes sockets and deletes veth pairs on a thread of its own: each takes the kernel some 12 ms.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use dataplane::port::PortId;
use dataplane::xsk::port::XskPort;

use crate::endpoint::{self, HostSide};

/// A port whose socket is closed and whose veth pair is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Its number.
    pub id: PortId,
    /// Whether a worker holds frames of it.
    pub had_port: bool,
}

/// What is to be taken away.
struct Corpse {
    id: PortId,
    io: Option<Box<XskPort>>,
    /// Name and cookie of the host end, if it is to be deleted.
    device: Option<(String, String)>,
}

/// The control thread's end.
pub struct Reaper {
    corpses: Sender<Corpse>,
    finished: Receiver<Reaped>,
    /// Host ends to delete when their port's rings come back from the worker.
    devices: HashMap<PortId, (String, String)>,
}

impl Reaper {
    /// Starts the thread, in the network namespace of the caller. `wake` is called when a corpse
    /// is gone.
    pub fn start(wake: impl Fn() + Send + 'static) -> anyhow::Result<Reaper> {
        let (corpses, work) = channel::<Corpse>();
        let (done, finished) = channel();
        let mut host = HostSide::open()?;
        std::thread::Builder::new().name("reaper".into()).spawn(move || {
            for corpse in work {
                let reaped = Reaped { id: corpse.id, had_port: corpse.io.is_some() };
                let closed = bury(&mut host, corpse.io, corpse.device);
                if !closed {
                    let id = corpse.id.0;
                    tracing::error!(
                        id,
                        "the kernel does not let go of a port: its frames are lost"
                    );
                    continue;
                }
                // The daemon has ended: nobody waits for the answer.
                if done.send(reaped).is_err() {
                    return;
                }
                wake();
            }
        })?;
        Ok(Reaper { corpses, finished, devices: HashMap::new() })
    }

    /// Deletes a pod's host end: after its socket is closed if the port is still leaving its
    /// worker, else now.
    pub fn bury_device(&mut self, id: PortId, host_ifname: String, cookie: String, leaving: bool) {
        if leaving {
            self.devices.insert(id, (host_ifname, cookie));
        } else {
            self.send(Corpse { id, io: None, device: Some((host_ifname, cookie)) });
        }
    }

    /// Takes the rings of a port that has left its worker.
    pub fn reap(&mut self, id: PortId, io: Box<XskPort>) {
        let device = self.devices.remove(&id);
        self.send(Corpse { id, io: Some(io), device });
    }

    fn send(&self, corpse: Corpse) {
        let sent = self.corpses.send(corpse);
        assert!(sent.is_ok(), "the reaper lives as long as the daemon");
    }

    /// What has been taken away since the last call.
    pub fn finished(&self) -> Vec<Reaped> {
        self.finished.try_iter().collect()
    }
}

/// How long a NIC may keep a socket's memory. Beyond that something is wrong with its driver.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

/// Whether the frames of the port can be used again.
fn bury(host: &mut HostSide, io: Option<Box<XskPort>>, device: Option<(String, String)>) -> bool {
    let closed = io.is_none_or(|io| io.close(RELEASED_WITHIN));
    if let Some((host_ifname, cookie)) = device
        && let Err(error) = endpoint::detach(host, &host_ifname, &cookie)
    {
        tracing::error!(%error, host_ifname, "delete the host end of a pod");
    }
    closed
}
