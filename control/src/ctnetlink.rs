//! The kernel's own flows: lists them and deletes some, by netlink (ctnetlink).
//!
//! The kernel looks up its map of host ports for the first packet of a flow only. So when a host
//! port comes to a pod or leaves it, flows of before lead to where there is nothing, and a UDP
//! client that never rests keeps its flow alive for ever. [`KernelFlows`] is the conversation with
//! the kernel; [`Purge`] does it on a thread of its own, because to go through a full table takes
//! the kernel 35 ms, and an empty one still 3 ms.
//!
//! Constants are those of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h;
//! net/netfilter/nf_conntrack_netlink.c is what is talked to.

mod message;
mod purge;
#[cfg(test)]
mod tests;

use std::io;

use dataplane::conntrack::{FlowKey, Transport};
use rustix::io::Errno;

use crate::nfnetlink::Connection;
use message::{Content, Message};
pub use purge::{Purge, Serving};

/// How often a list is begun again when the kernel says that its table was rebuilt meanwhile, as
/// it is when its number of buckets changes.
const LIST_TRIES: usize = 3;

/// Bits of [`KernelFlow::status`].
const SEEN_REPLY: u32 = 1 << 1;
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// A flow in the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFlow {
    /// What tells it from a later one with the same keys.
    pub id: u32,
    /// Zone of its original packets; 0 unless somebody's rules give zones.
    pub zone: u16,
    /// `IPS_…` bits.
    pub status: u32,
    /// Key of the original packets as they arrive.
    pub original: FlowKey,
    /// Key of the answers as they arrive: if nothing is translated, the inverse of the original.
    pub reply: FlowKey,
    /// TCP and SCTP: one of its ends has closed it, or both.
    pub is_closing: bool,
}

impl KernelFlow {
    /// Whether the kernel sends its original packets to another destination (`IPS_DST_NAT`).
    #[must_use]
    pub fn is_destination_translated(&self) -> bool {
        self.status & DESTINATION_TRANSLATED != 0
    }

    /// Whether there was an answer (`IPS_SEEN_REPLY`).
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.status & SEEN_REPLY != 0
    }
}

/// Which flows are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Selection {
    /// All of TCP, UDP and SCTP, in both families.
    All,
    /// Those asked at a port. The kernel selects them, since Linux 5.8: then a list takes as long
    /// as the kernel needs to go through its table, but is short. Before it, all are listed.
    Asked {
        /// Protocol of the port.
        transport: Transport,
        /// IPv4 or IPv6.
        is_v4: bool,
        /// Port that original packets arrive for.
        port: u16,
    },
}

/// Why the kernel's flows could not be listed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum KernelFlowError {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket for the kernel's flows ({0}); run viaductd as root")]
    Socket(io::Error),
    /// The kernel has no ctnetlink.
    #[error(
        "the kernel cannot {operation} its flows ({source}); load the module nf_conntrack_netlink \
         (modprobe nf_conntrack_netlink) or a kernel that has it"
    )]
    Missing {
        /// What was asked.
        operation: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel refused, or the socket failed.
    #[error("the kernel did not {operation} its flows ({source}); try again")]
    Failed {
        /// What was asked.
        operation: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The table was rebuilt each time, or an answer did not come.
    #[error("the kernel's list of flows was interrupted {LIST_TRIES} times; try again")]
    Interrupted,
}

/// A conversation about the flows of the network namespace in which it was opened.
pub struct KernelFlows {
    listing: Connection,
    /// A second socket, so that flows can be deleted while the list goes on: it is never held in
    /// memory as a whole.
    deleting: Connection,
    sequence: u32,
}

impl KernelFlows {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`KernelFlowError::Socket`].
    pub fn open() -> Result<KernelFlows, KernelFlowError> {
        let listing = Connection::open().map_err(KernelFlowError::Socket)?;
        let deleting = Connection::open().map_err(KernelFlowError::Socket)?;
        Ok(KernelFlows { listing, deleting, sequence: 0 })
    }

    /// All flows of TCP, UDP and SCTP, in no order: 80 bytes each. Queries of ICMP are left out,
    /// and so are flows whose two ends are of two families.
    ///
    /// # Errors
    /// See [`KernelFlowError`].
    pub fn dump(&mut self) -> Result<Vec<KernelFlow>, KernelFlowError> {
        for _ in 0..LIST_TRIES {
            let mut flows = Vec::new();
            if self.walk(Selection::All, |_, flow| {
                flows.push(*flow);
                Ok(())
            })? {
                return Ok(flows);
            }
        }
        Err(KernelFlowError::Interrupted)
    }

    /// Deletes a flow. False if it is not there any more, or the kernel does not let go of it
    /// because it is in hardware (`EBUSY`): those end by themselves.
    ///
    /// # Errors
    /// See [`KernelFlowError`].
    pub fn delete(&mut self, flow: &KernelFlow) -> Result<bool, KernelFlowError> {
        self.sequence = self.sequence.wrapping_add(1);
        delete(&mut self.deleting, self.sequence, flow)
    }

    /// Deletes every flow that `is_one`, and returns how many.
    ///
    /// # Errors
    /// See [`KernelFlowError`]; some may have been deleted by then.
    pub fn purge(
        &mut self,
        is_one: impl FnMut(&KernelFlow) -> bool,
    ) -> Result<u32, KernelFlowError> {
        self.purge_among(Selection::All, is_one)
    }

    /// The same among selected ones. `is_one` may be asked about a flow several times, and about
    /// others than the selected.
    ///
    /// # Errors
    /// See [`KernelFlowError`]; some may have been deleted by then.
    pub fn purge_among(
        &mut self,
        selection: Selection,
        mut is_one: impl FnMut(&KernelFlow) -> bool,
    ) -> Result<u32, KernelFlowError> {
        let mut purged = 0;
        for _ in 0..LIST_TRIES {
            let mut sequence = 0;
            if self.walk(selection, |deleting, flow| {
                if is_one(flow) {
                    sequence += 1;
                    purged += u32::from(delete(deleting, sequence, flow)?);
                }
                Ok(())
            })? {
                return Ok(purged);
            }
        }
        Err(KernelFlowError::Interrupted)
    }

    /// Goes through a list once. False if it may be incomplete.
    fn walk(
        &mut self,
        selection: Selection,
        mut each: impl FnMut(&mut Connection, &KernelFlow) -> Result<(), KernelFlowError>,
    ) -> Result<bool, KernelFlowError> {
        const OPERATION: &str = "list";
        // An earlier list whose reader gave up: the kernel has one list per socket at a time.
        while self.listing.receive().map_err(failed(OPERATION))?.is_some() {}
        self.sequence = self.sequence.wrapping_add(1);
        let question = message::list(self.sequence, selection);
        self.listing.send(&question).map_err(failed(OPERATION))?;
        let mut is_whole = true;
        while let Some(messages) = self.listing.receive().map_err(failed(OPERATION))? {
            for message in messages.filter_map(|received| Message::read(&received)) {
                if message.sequence != self.sequence {
                    continue;
                }
                is_whole &= !message.is_interrupted;
                match message.content {
                    Content::Flow(flow) => each(&mut self.deleting, &flow)?,
                    Content::End(None) => return Ok(is_whole),
                    Content::End(Some(errno)) => return Err(refused(OPERATION, errno)),
                    Content::Other => {}
                }
            }
        }
        Ok(false)
    }
}

fn delete(
    connection: &mut Connection,
    sequence: u32,
    flow: &KernelFlow,
) -> Result<bool, KernelFlowError> {
    const OPERATION: &str = "delete";
    connection.send(&message::delete(sequence, flow)).map_err(failed(OPERATION))?;
    while let Some(messages) = connection.receive().map_err(failed(OPERATION))? {
        let ours = messages.filter(|received| received.sequence == sequence);
        for message in ours.filter_map(|received| Message::read(&received)) {
            if let Content::End(errno) = message.content {
                return match errno {
                    None => Ok(true),
                    Some(Errno::NOENT | Errno::BUSY) => Ok(false),
                    Some(errno) => Err(refused(OPERATION, errno)),
                };
            }
        }
    }
    Err(failed(OPERATION)(io::ErrorKind::UnexpectedEof.into()))
}

/// The error for a socket that failed.
fn failed(operation: &'static str) -> impl Fn(io::Error) -> KernelFlowError {
    move |source| KernelFlowError::Failed { operation, source }
}

fn refused(operation: &'static str, errno: Errno) -> KernelFlowError {
    let source = errno.into();
    match errno {
        // What nfnetlink answers for a subsystem that is not there.
        Errno::INVAL | Errno::OPNOTSUPP => KernelFlowError::Missing { operation, source },
        _ => KernelFlowError::Failed { operation, source },
    }
}
