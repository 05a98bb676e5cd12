//! Network namespaces for tests, and commands inside.

use control::endpoint::in_namespace;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace that lives as long as this value, whatever becomes of the test.
pub struct Namespace(pub File);

impl Namespace {
    /// A new one, with its loopback interface down.
    pub fn new() -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("control-{}-{count}", std::process::id());
        run(&format!("ip netns add {name}"));
        let file = File::open(format!("/run/netns/{name}")).expect("open the namespace");
        // The name goes at once; the descriptor keeps the namespace.
        run(&format!("ip netns del {name}"));
        Namespace(file)
    }

    /// Runs a closure on this thread inside the namespace.
    pub fn visit<T>(&self, visit: impl FnOnce() -> T) -> T {
        in_namespace(self.0.as_fd(), visit).expect("visit the namespace")
    }

    /// Runs a command inside and returns what it prints; fails the test if the command fails.
    pub fn run(&self, command: &str) -> String {
        self.visit(|| run(command))
    }
}

/// Runs a command; its words are separated by blanks.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a command has a name");
    let output = Command::new(program).args(words).output().expect("start the command");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
