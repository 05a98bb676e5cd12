//! Pinned XDP links: made, taken over by the next daemon, removed.
//!
//! libbpf attaches by link without flags, which would take native mode; generic mode is what keeps
//! the pod's segmentation offload (design, §9.1). So the links are made by the plain system calls.

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

/// Makes the link pinned at `pin` run `program` on `ifindex`, whatever is pinned there now.
pub(super) fn attach(pin: &Path, ifindex: u32, program: &Program<'_>) -> Result<(), ProgramError> {
    if adopt(pin, ifindex, program)? {
        return Ok(());
    }
    detach(pin)?;

    let error = |source| ProgramError::Attach { ifindex, pin: pin.into(), source };
    let device = i32::try_from(ifindex).map_err(|_| error(io::ErrorKind::InvalidInput.into()))?;
    let link = match create(program.as_fd(), device) {
        Ok(link) => link,
        // net/core/dev.c, dev_xdp_attach: EBUSY for a program or link in generic mode, EEXIST for
        // one in native mode.
        Err(busy) if matches!(busy.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
            let program_id = running_program(program.as_fd(), device);
            return Err(ProgramError::Occupied { ifindex, program_id, pin: pin.into() });
        }
        Err(source) => return Err(error(source)),
    };
    // If this fails the link is closed, and with that the program detached again.
    pin_link(link.as_fd(), pin).map_err(error)
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
    let pin = bpf_dir.join(LINKS).join(name);
    // libbpf would complain about a missing file on stderr.
    let link = pin.exists().then(|| Link::open(&pin).ok()).flatten()?;
    Some(link.info().ok()?.prog_id)
}

/// Swaps `program` into the link pinned at `pin` if it is attached to `ifindex`. The device is
/// never without a program meanwhile. False: there is no such link, or it is a leftover.
fn adopt(pin: &Path, ifindex: u32, program: &Program<'_>) -> Result<bool, ProgramError> {
    let Ok(mut link) = Link::open(pin) else {
        return Ok(false);
    };
    // The link of a deleted device says interface 0.
    match link.info().map(|info| info.info) {
        Ok(LinkTypeInfo::Xdp(xdp)) if xdp.ifindex == ifindex => {}
        _ => return Ok(false),
    }
    match link.update_prog(program) {
        Ok(()) => Ok(true),
        // Never detach a live device for a failed update: its packets would pass unchecked.
        Err(source) => Err(ProgramError::Update { pin: pin.into(), source }),
    }
}

/// The id of the program that occupies the device, 0 if it cannot be told.
fn running_program(program: BorrowedFd<'_>, device: i32) -> u32 {
    let ids = Xdp::new(program).query(device, XdpFlags::NONE);
    ids.map_or(0, |ids| {
        let ids = [ids.prog_id, ids.skb_prog_id, ids.drv_prog_id, ids.hw_prog_id];
        ids.into_iter().find(|&id| id != 0).unwrap_or(0)
    })
}

fn create(program: BorrowedFd<'_>, device: i32) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags: libbpf_sys::XDP_FLAGS_SKB_MODE,
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
