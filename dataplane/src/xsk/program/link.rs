//! Pinned XDP links: made, taken over by the next daemon, removed.
//!
//! libbpf attaches by link without flags, so that the kernel chooses the mode; generic mode is what
//! keeps the pod's segmentation offload (design, §9.1), and on a NIC we want to know which mode it
//! is. So the links are made by the plain system calls.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libbpf_rs::query::LinkTypeInfo;
use libbpf_rs::{Link, Program, Xdp, XdpFlags};

use super::ProgramError;

/// The folder of pinned links in `bpf_dir`, each named as its device.
pub(super) const LINKS: &str = "links";

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, before there is an sk_buff: what zero-copy takes.
    Native,
    /// In the kernel's stack, after the driver: works on every device, and on a veth it keeps the
    /// super-packets of the other end.
    Generic,
}

/// How a program was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where it runs.
    pub mode: AttachMode,
    /// The driver's answer to native mode, if that was wanted and it is not.
    pub refused: Option<String>,
}

/// Makes the link pinned at `pin` run `program` on `ifindex`, whatever is pinned there now: in the
/// `wanted` mode, or in generic mode where the driver refuses native mode.
pub(super) fn attach(
    pin: &Path,
    ifindex: u32,
    program: &Program<'_>,
    wanted: AttachMode,
) -> Result<Attached, ProgramError> {
    if adopt(pin, ifindex, program, wanted)? {
        return Ok(Attached { mode: wanted, refused: None });
    }
    detach(pin)?;

    let error = |source| ProgramError::Attach { ifindex, pin: pin.into(), source };
    let device = i32::try_from(ifindex).map_err(|_| error(io::ErrorKind::InvalidInput.into()))?;
    let (mut mode, mut refused) = (wanted, None);
    let mut created = create(program.as_fd(), device, wanted);
    if let Err(reason) = &created
        && wanted == AttachMode::Native
        && is_of_driver(reason)
    {
        (mode, refused) = (AttachMode::Generic, Some(reason.to_string()));
        created = create(program.as_fd(), device, mode);
    }
    let link = match created {
        Ok(link) => link,
        // net/core/dev.c, dev_xdp_attach: EBUSY for a program or link in the same mode, EEXIST for
        // one in the other.
        Err(busy) if matches!(busy.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
            let program_id = running_programs(program.as_fd(), device).any();
            return Err(ProgramError::Occupied { ifindex, program_id, pin: pin.into() });
        }
        Err(source) => return Err(error(source)),
    };
    // If this fails the link is closed, and with that the program detached again.
    pin_link(link.as_fd(), pin).map_err(error)?;
    Ok(Attached { mode, refused })
}

/// Whether a driver says so that it has no native mode, or not with its present settings: no XDP at
/// all or not beside another offload (EOPNOTSUPP), MTU too large (EINVAL, ERANGE), too few queues
/// (ENOSPC, ENOMEM, EINVAL). An occupied device is no such answer.
fn is_of_driver(error: &io::Error) -> bool {
    let refusals = [libc::EOPNOTSUPP, libc::EINVAL, libc::ERANGE, libc::ENOSPC, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| refusals.contains(&errno))
}

/// Removes the link pinned at `pin`, if there is one.
pub(super) fn detach(pin: &Path) -> Result<(), ProgramError> {
    // Removing the pin detaches too, but some time later, and until then a new link gets EBUSY.
    // What cannot be opened or detached here (not a link, device gone) needs only the removal.
    if let Ok(link) = Link::open(pin)
        && let Err(error) = link.detach()
    {
        tracing::debug!("detach link {}: {error:#}", pin.display());
    }
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ProgramError::Detach { pin: pin.into(), source })
        }
        _ => Ok(()),
    }
}

/// The id of the program that the link pinned as `links/<name>` in `bpf_dir` runs; `None` if there
/// is no link that this process can open. Changes nothing.
#[must_use]
pub fn pinned_program(bpf_dir: &Path, name: &str) -> Option<u32> {
    program_of(&bpf_dir.join(LINKS).join(name))
}

/// The id of the program that the link pinned at `pin` runs, if there is one.
pub(super) fn program_of(pin: &Path) -> Option<u32> {
    // libbpf would complain about a missing file on stderr.
    let link = pin.exists().then(|| Link::open(pin).ok()).flatten()?;
    Some(link.info().ok()?.prog_id)
}

/// Swaps `program` into the link pinned at `pin` if it is attached to `ifindex` in the `wanted`
/// mode. The device is never without a program meanwhile. False: there is no such link, it is a
/// leftover, or its mode is to change, which takes a link of its own.
fn adopt(
    pin: &Path,
    ifindex: u32,
    program: &Program<'_>,
    wanted: AttachMode,
) -> Result<bool, ProgramError> {
    let Ok(mut link) = Link::open(pin) else {
        return Ok(false);
    };
    let info = link.info().map(|info| (info.prog_id, info.info));
    // The link of a deleted device says interface 0.
    let id = match info {
        Ok((id, LinkTypeInfo::Xdp(xdp))) if xdp.ifindex == ifindex => id,
        _ => return Ok(false),
    };
    let running = running_programs(program.as_fd(), ifindex.try_into().unwrap_or(0));
    // Only if the kernel says another mode: never detach a live device on a guess.
    if running.mode_of(id).is_some_and(|mode| mode != wanted) {
        return Ok(false);
    }
    match link.update_prog(program) {
        Ok(()) => Ok(true),
        // Never detach a live device for a failed update: its packets would pass unchecked.
        Err(source) => Err(ProgramError::Update { pin: pin.into(), source }),
    }
}

/// Ids of the XDP programs of a device; 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Running {
    native: u32,
    generic: u32,
    hardware: u32,
}

impl Running {
    /// The id of a program that runs, 0 if none does.
    pub(super) fn any(self) -> u32 {
        let ids = [self.native, self.generic, self.hardware];
        ids.into_iter().find(|&id| id != 0).unwrap_or(0)
    }

    /// Where the program `id` runs, if it does.
    pub(super) fn mode_of(self, id: u32) -> Option<AttachMode> {
        match id {
            0 => None,
            id if id == self.native => Some(AttachMode::Native),
            id if id == self.generic => Some(AttachMode::Generic),
            _ => None,
        }
    }
}

/// What runs on the device in the calling thread's network namespace; nothing if it cannot be told.
pub(super) fn running_programs(program: BorrowedFd<'_>, device: i32) -> Running {
    let ids = Xdp::new(program).query(device, XdpFlags::NONE);
    ids.map_or_else(
        |_| Running::default(),
        |ids| Running {
            native: ids.drv_prog_id,
            generic: ids.skb_prog_id,
            hardware: ids.hw_prog_id,
        },
    )
}

fn create(program: BorrowedFd<'_>, device: i32, mode: AttachMode) -> io::Result<OwnedFd> {
    let flags = match mode {
        AttachMode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
        AttachMode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
    };
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    let program = program.as_raw_fd();
    // SAFETY: the program is open for the length of the call, and the options carry their size.
    let answer = unsafe {
        libbpf_sys::bpf_link_create(program, device, libbpf_sys::BPF_XDP, &raw const options)
    };
    if answer < 0 {
        return Err(io::Error::from_raw_os_error(-answer));
    }
    // SAFETY: the call succeeded, so it answered a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}

fn pin_link(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the link is open for the length of the call, and the path is a C string.
    let answer = unsafe { libbpf_sys::bpf_obj_pin(link.as_raw_fd(), path.as_ptr()) };
    if answer < 0 {
        return Err(io::Error::from_raw_os_error(-answer));
    }
    Ok(())
}
