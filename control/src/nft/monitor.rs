//! Notices that another process changed our table: `nft flush ruleset` of a firewall's restart
//! takes all tables with it, and pods would lose their way out until the next change of ours.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::encode::{FAMILY_INET, SUBSYSTEM, TABLE_NAME};
use super::exchange::socket_error;
use super::{NftError, TABLE};
use crate::attributes::attribute;
use crate::nfnetlink::{RECEIVE_BYTES, Received, messages};

/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h): every committed change.
const GROUP_NFTABLES: u32 = 7;
/// Room for changes that were not read yet. Writing the whole table announces each element of it,
/// to ourselves too, some 150 bytes each: this holds those of 65,536 host ports. Were they lost,
/// they would count as somebody's change, and the table would be written again for ever. Memory is
/// taken only while they wait.
const RECEIVE_QUEUE_BYTES: usize = 64 << 20;

/// A subscription to changes of nf_tables, reduced to those of our table by others. Made by
/// [`super::NftTable::monitor`].
///
/// Its descriptor never blocks and becomes readable when anything in nf_tables changed; wait for
/// that (an edge suffices), then call [`NftMonitor::changed`].
pub struct NftMonitor {
    socket: Socket,
    /// Port id of the socket whose changes are our own.
    own_port_id: u32,
    received: Vec<u8>,
}

impl NftMonitor {
    pub(super) fn open(own_port_id: u32) -> Result<NftMonitor, NftError> {
        let socket = subscribe().map_err(socket_error)?;
        let received = Vec::with_capacity(RECEIVE_BYTES);
        Ok(NftMonitor { socket, own_port_id, received })
    }

    /// Reads all that is there and says whether another process changed our table, or may have:
    /// when changes come faster than they are read, the kernel drops some and says so.
    ///
    /// # Errors
    /// [`NftError::Exchange`] if the socket fails; open a new monitor then.
    pub fn changed(&mut self) -> Result<bool, NftError> {
        let mut changed = false;
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => {
                    changed |= messages(&self.received)
                        .any(|message| is_foreign_change(&message, self.own_port_id));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    changed = true;
                }
                Err(source) => return Err(NftError::Exchange { source }),
            }
        }
    }
}

impl AsRawFd for NftMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for NftMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    set_socket_recv_buffer_size_force(&socket, RECEIVE_QUEUE_BYTES)?;
    socket.add_membership(GROUP_NFTABLES)?;
    Ok(socket)
}

/// A notification bears the port id of the socket that asked for the change, and the table's name
/// if it is about a table or something in one.
fn is_foreign_change(message: &Received<'_>, own_port_id: u32) -> bool {
    let Some((_, family, rest)) = message.of(SUBSYSTEM) else {
        return false;
    };
    let named = attribute(rest, TABLE_NAME);
    let ours = named.is_some_and(|name| name.strip_suffix(b"\0") == Some(TABLE.as_bytes()));
    family == FAMILY_INET && ours && message.port_id != own_port_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::encode::{Batch, message};

    #[test]
    fn only_changes_of_our_table_by_another_socket_count() {
        let about = |table: &str| {
            Batch::single(message::DELTABLE, "", |attributes| attributes.text(TABLE_NAME, table))
        };
        let (ours, other) = (about("viaduct"), about("viaduct2"));
        let first = messages(ours.bytes()).next().unwrap();
        assert!(is_foreign_change(&first, 4711));
        assert!(!is_foreign_change(&first, first.port_id));
        assert!(!is_foreign_change(&messages(other.bytes()).next().unwrap(), 4711));
    }

    #[test]
    fn the_same_name_in_another_family_is_not_our_table() {
        let batch = Batch::single(message::DELTABLE, "", |attributes| {
            attributes.text(TABLE_NAME, "viaduct");
        });
        let mut bytes = batch.bytes().to_vec();
        bytes[16] = 2; // NFPROTO_IPV4
        assert!(!is_foreign_change(&messages(&bytes).next().unwrap(), 4711));
    }
}
