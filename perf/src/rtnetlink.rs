//! Requests about routes to the kernel of a namespace, written by hand: a million of them within
//! seconds, or a single one with nothing between the clock and the kernel.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use dataplane::tables::Prefix;
use e2e::netns::Namespace;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Bytes of a datagram of requests: the kernel answers each request of it in turn.
const DATAGRAM_BYTES: usize = 32 << 10;

/// `struct nlmsghdr` and `struct rtmsg` (linux/netlink.h, linux/rtnetlink.h).
const HEADERS_BYTES: usize = 16 + 12;

/// `NLMSG_ERROR`: also says that there was none.
const NLMSG_ERROR: u16 = 2;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE | NLM_F_EXCL`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x600;

/// `RT_TABLE_MAIN`, `RTPROT_BGP`, `RTN_UNICAST`.
const MAIN: u8 = 254;
const BGP: u8 = 186;
const UNICAST: u8 = 1;

/// `AF_INET`, `AF_INET6`.
const INET: u8 = 2;
const INET6: u8 = 10;

/// What is to become of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It comes: `RTM_NEWROUTE`.
    Add,
    /// It goes: `RTM_DELROUTE`.
    Remove,
}

/// A route by a router on the interface of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destinations.
    pub dst: Prefix,
    /// The router, of the same family.
    pub via: IpAddr,
}

/// A way to change routes by one interface.
#[derive(Debug)]
pub struct Requests {
    socket: OwnedFd,
    ifindex: u32,
}

impl Requests {
    /// Opens it, in a namespace that has the interface.
    ///
    /// # Errors
    /// When it has not.
    pub fn open(namespace: &Namespace, ifname: &str) -> Result<Requests> {
        let links = namespace.ip_json(&["link", "show", "dev", ifname])?;
        let ifindex = links[0]["ifindex"].as_u64().context("an interface has a number")? as u32;
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        // Protocol 0, which is none, is NETLINK_ROUTE.
        let open = || socket_with(AddressFamily::NETLINK, kind, flags, None);
        Ok(Requests { socket: namespace.within(open)?.context("open a netlink socket")?, ifindex })
    }

    /// Changes one route. The kernel has done it, and told everybody, when this returns.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn change(&self, change: Change, route: Route) -> Result<()> {
        let mut datagram = Vec::with_capacity(128);
        self.write(&mut datagram, change, route, ACK);
        self.execute(&datagram)
    }

    /// Adds many.
    ///
    /// # Errors
    /// When the kernel refuses one of them.
    pub fn add_all(&self, routes: &[Route]) -> Result<()> {
        // Each needs less than this.
        for routes in routes.chunks(DATAGRAM_BYTES / 128) {
            let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
            for (number, route) in routes.iter().enumerate() {
                // Requests without ACK are answered only when they are refused.
                let flags = if number + 1 == routes.len() { ACK } else { 0 };
                self.write(&mut datagram, Change::Add, *route, flags);
            }
            self.execute(&datagram)?;
        }
        Ok(())
    }

    fn write(&self, datagram: &mut Vec<u8>, change: Change, route: Route, flags: u16) {
        /// Of `enum rtattr_type_t`.
        const RTA_DST: u16 = 1;
        const RTA_OIF: u16 = 4;
        const RTA_GATEWAY: u16 = 5;
        let (kind, flags) = match change {
            Change::Add => (24_u16, flags | REQUEST | CREATE),
            Change::Remove => (25, flags | REQUEST),
        };
        let start = datagram.len();
        let family = if route.dst.address.is_ipv4() { INET } else { INET6 };
        datagram.extend([0; 4]); // length, below
        datagram.extend(kind.to_ne_bytes());
        datagram.extend(flags.to_ne_bytes());
        datagram.extend([0; 8]); // sequence number, port
        datagram.extend([family, route.dst.len, 0, 0, MAIN, BGP, 0, UNICAST]);
        datagram.extend([0; 4]); // flags
        debug_assert_eq!(datagram.len(), start + HEADERS_BYTES);
        attribute(datagram, RTA_DST, &octets(route.dst.address));
        attribute(datagram, RTA_GATEWAY, &octets(route.via));
        attribute(datagram, RTA_OIF, &self.ifindex.to_ne_bytes());
        let length = (datagram.len() - start) as u32;
        datagram[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn execute(&self, datagram: &[u8]) -> Result<()> {
        send(&self.socket, datagram, SendFlags::empty()).context("ask the kernel")?;
        let mut answer = [0; 4096];
        let (length, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        // The first answer says how it went: the only one, or the first refusal.
        let word = |at: usize| answer[..length].get(at..at + 4);
        let kind = word(4).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        let errno = word(16).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        match (kind, errno.map(i32::from_ne_bytes)) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (Some(NLMSG_ERROR), Some(negative)) => {
                let error = Errno::from_raw_os_error(-negative);
                Err(error).context("change the kernel's routes")
            }
            _ => bail!("the kernel answers a change of routes with something else"),
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Appends an attribute; all values here are multiples of four bytes, so that none needs padding.
fn attribute(datagram: &mut Vec<u8>, kind: u16, value: &[u8]) {
    datagram.extend((4 + value.len() as u16).to_ne_bytes());
    datagram.extend(kind.to_ne_bytes());
    datagram.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Result<Requests> {
        // Nothing is sent.
        let socket = std::fs::File::open("/dev/null")?.into();
        Ok(Requests { socket, ifindex: 7 })
    }

    #[test]
    fn a_request_says_its_length_and_its_attributes_fill_it() -> Result<()> {
        for (dst, via, length) in [("1.2.3.0", "10.0.0.2", 52), ("2001:db8::", "fd00::2", 76)] {
            let dst = Prefix { address: dst.parse()?, len: 24 };
            let mut datagram = vec![0xff; 4]; // a request before it
            let route = Route { dst, via: via.parse()? };
            requests()?.write(&mut datagram, Change::Remove, route, ACK);
            let request = &datagram[4..];
            assert_eq!(request.len(), length);
            assert_eq!(request[..4], (length as u32).to_ne_bytes());
            assert_eq!(request[4..6], 25_u16.to_ne_bytes());
            assert_eq!(request[6..8], (ACK | REQUEST).to_ne_bytes());
            let mut rest = &request[HEADERS_BYTES..];
            let mut kinds = Vec::new();
            while let [low, high, kind, _, ..] = *rest {
                kinds.push(kind);
                rest = &rest[usize::from(u16::from_ne_bytes([low, high]))..];
            }
            assert_eq!(kinds, [1, 5, 4]);
        }
        Ok(())
    }
}
