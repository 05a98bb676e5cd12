//! The loopback plugin: brings `lo` up in the container's namespace. Needs no daemon, because a
//! runtime wants it for every pod, also while the daemon restarts.
//!
//! One rtnetlink message is all it takes, so it is built here by hand (rtnetlink(7)) rather than
//! with a netlink library, which would make every start of the shim slower.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::env::Environment;
use crate::namespace;
use crate::spec::result::{CniResult, Interface, Ip};
use crate::spec::{CniError, NetConf, Verb, code};

#[cfg(test)]
mod tests;

/// The name of the interface, whatever CNI_IFNAME says: a namespace has no other loopback.
const LO: &str = "lo";

/// Index of `lo` in every namespace (`LOOPBACK_IFINDEX` of net/flow.h).
const LO_INDEX: i32 = 1;

/// `RTM_NEWLINK`, also the answer to `RTM_GETLINK` (linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
/// `RTM_GETLINK`.
const RTM_GETLINK: u16 = 18;
/// `NLMSG_ERROR` (linux/netlink.h), whose error of 0 acknowledges.
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const NLM_F_ACK: u16 = 4;
/// `IFF_UP` (linux/if.h).
const IFF_UP: u32 = 1;

/// Bytes of `nlmsghdr` and, behind it, of `ifinfomsg`: all of a request, the beginning of a link.
const MESSAGE_BYTES: usize = 32;

/// How long the kernel may take. It answers at once; this only bounds the wait.
const KERNEL_DEADLINE: Duration = Duration::from_secs(5);

/// Carries out `verb`. The result, where the verb has one, is in the configuration's version.
///
/// DEL does nothing: the namespace goes, and `lo` with it; until then the processes in it may go on
/// using it.
///
/// # Errors
/// Those of [`namespace::open`], code 5 when the kernel refuses, 999 when CHECK finds `lo` down.
pub fn run(
    verb: Verb,
    environment: &Environment,
    conf: &NetConf,
) -> Result<Option<Value>, CniError> {
    match verb {
        Verb::Add => add(environment, conf).map(|result| Some(result.render(conf.version))),
        Verb::Check => check(environment).map(|()| None),
        Verb::Gc => conf.valid_attachments().map(|_| None),
        Verb::Del | Verb::Status | Verb::Version => Ok(None),
    }
}

fn add(environment: &Environment, conf: &NetConf) -> Result<CniResult, CniError> {
    let previous = conf.prev_result()?;
    let netns = namespace::open(environment)?;
    let has_ipv6 = inside(&netns, || {
        set_up(&route_socket()?)?;
        Ok(has_ipv6())
    })
    .map_err(|error| failed("brought up", environment, &error))?;
    Ok(previous.unwrap_or_else(|| result(environment, has_ipv6)))
}

fn check(environment: &Environment) -> Result<(), CniError> {
    let netns = namespace::open(environment)?;
    let is_up = inside(&netns, || is_up(&route_socket()?))
        .map_err(|error| failed("examined", environment, &error))?;
    if is_up {
        return Ok(());
    }
    let msg = format!("Interface {LO} in {} is down; run ADD again", environment.netns);
    Err(CniError::new(code::GENERIC, msg))
}

fn failed(what: &str, environment: &Environment, error: &io::Error) -> CniError {
    let msg = format!(
        "Interface {LO} in {} cannot be {what}; run the plugin with CAP_NET_ADMIN and \
         CAP_SYS_ADMIN",
        environment.netns
    );
    CniError::new(code::IO, msg).with_details(error.to_string())
}

fn result(environment: &Environment, has_ipv6: bool) -> CniResult {
    let ip = |address: &str| Ip { address: address.to_owned(), gateway: None, interface: Some(0) };
    let mut ips = vec![ip("127.0.0.1/8")];
    if has_ipv6 {
        ips.push(ip("::1/128"));
    }
    let interface = Interface {
        name: LO.to_owned(),
        mac: "00:00:00:00:00:00".to_owned(),
        sandbox: environment.netns.clone(),
        ..Interface::default()
    };
    CniResult { interfaces: vec![interface], ips, ..CniResult::default() }
}

/// Runs `body` in the namespace `netns`, on a thread of its own: setns(2) moves a thread, and this
/// one dies with its work.
fn inside<T: Send>(netns: &OwnedFd, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let netns = netns.as_fd();
    thread::scope(|scope| {
        let work = scope.spawn(move || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            body()
        });
        work.join().map_err(|_| io::Error::other("the thread in the namespace panicked"))?
    })
}

/// A socket to rtnetlink, protocol 0, in the namespace of the calling thread.
fn route_socket() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(KERNEL_DEADLINE))?;
    Ok(socket)
}

fn set_up(socket: &OwnedFd) -> io::Result<()> {
    let request = message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, IFF_UP);
    exchange(socket.as_fd(), &request).map(drop)
}

fn is_up(socket: &OwnedFd) -> io::Result<bool> {
    match exchange(socket.as_fd(), &message(RTM_GETLINK, NLM_F_REQUEST, 0))? {
        Answer::Link { flags } => Ok(flags & IFF_UP != 0),
        Answer::Acknowledged => Err(unexpected()),
    }
}

/// A message about `lo`: header, then `ifinfomsg` whose flags and mask of change are `flags`.
fn message(kind: u16, flags: u16, link_flags: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MESSAGE_BYTES);
    bytes.extend((MESSAGE_BYTES as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: one request per socket needs neither.
    bytes.extend([0; 8]);
    // Family, padding and device type: unspecified.
    bytes.extend([0; 4]);
    bytes.extend(LO_INDEX.to_ne_bytes());
    bytes.extend(link_flags.to_ne_bytes());
    bytes.extend(link_flags.to_ne_bytes());
    bytes
}

/// What the kernel answers.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It did as asked.
    Acknowledged,
    /// It describes the link.
    Link {
        /// `ifi_flags`.
        flags: u32,
    },
}

fn exchange(socket: BorrowedFd<'_>, request: &[u8]) -> io::Result<Answer> {
    send(socket, request, SendFlags::empty())?;
    // A link's attributes behind the header are of no interest, so they may be cut off.
    let mut bytes = [0; MESSAGE_BYTES];
    let (length, _) = recv(socket, &mut bytes[..], RecvFlags::empty())?;
    parse_answer(bytes.get(..length.min(MESSAGE_BYTES)).unwrap_or_default())
}

fn parse_answer(bytes: &[u8]) -> io::Result<Answer> {
    let word = |offset: usize| -> io::Result<u32> {
        let rest = bytes.get(offset..).and_then(|rest| rest.first_chunk());
        rest.copied().map(u32::from_ne_bytes).ok_or_else(unexpected)
    };
    let kind = bytes.get(4..).and_then(|rest| rest.first_chunk()).ok_or_else(unexpected)?;
    match u16::from_ne_bytes(*kind) {
        // `nlmsgerr` begins with a negative errno, or 0.
        NLMSG_ERROR => match word(16)?.cast_signed() {
            0 => Ok(Answer::Acknowledged),
            errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        },
        RTM_NEWLINK => Ok(Answer::Link { flags: word(24)? }),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "rtnetlink answered something else")
}

/// Whether `lo` of the calling thread's namespace has ::1: not when IPv6 is disabled. Each line of
/// if_inet6 begins with an address in hexadecimal (proc_net(5)).
fn has_ipv6() -> bool {
    let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    addresses.lines().any(|line| line.starts_with("00000000000000000000000000000001 "))
}
