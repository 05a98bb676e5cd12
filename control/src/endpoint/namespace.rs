//! Visits to a pod's network namespace.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Brings the thread back when the visit ends, also when it ends by a panic.
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = enter(self.0.as_fd()) {
            // On this thread all later work would change some pod's network instead of the
            // node's. There is nobody to return the error to, and the kernel keeps pods connected.
            eprintln!("cannot return to the node's network namespace: {error}; stopping");
            std::process::abort();
        }
    }
}

/// Runs `visit` on this thread while the thread is in the network namespace `netns`. Sockets it
/// opens stay with that namespace; `/proc/sys/net` shows that namespace's settings.
///
/// Aborts the process if the thread cannot come back, which the kernel refuses only to a process
/// that has lost CAP_SYS_ADMIN.
pub fn in_namespace<T>(netns: BorrowedFd<'_>, visit: impl FnOnce() -> T) -> io::Result<T> {
    let home = File::open("/proc/thread-self/ns/net")?;
    enter(netns)?;
    // Not before: who may not move away may not come home either, and need not.
    let home = Home(home);
    let result = visit();
    drop(home);
    Ok(result)
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    // The type makes the kernel refuse descriptors of anything but a network namespace.
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;

    #[test]
    fn without_the_right_to_move_nothing_runs_and_the_process_lives() {
        // Capabilities are a thread's own.
        let visitor = std::thread::spawn(|| {
            let nothing = CapabilitySet::empty();
            let none =
                CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
            set_capabilities(None, none).expect("capabilities can be given up");
            let own = File::open("/proc/thread-self/ns/net").expect("open");
            in_namespace(own.as_fd(), || panic!("must not run"))
        });
        let refused = visitor.join().expect("no panic").expect_err("no right to move");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_descriptor_of_something_else_is_refused_and_nothing_runs() {
        let file = File::open("/dev/null").expect("open");
        let result = in_namespace(file.as_fd(), || panic!("must not run"));
        assert!(result.is_err());
    }
}
