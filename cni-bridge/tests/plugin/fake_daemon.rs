//! A daemon that answers as a test says and remembers what it was asked.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use cni_bridge::frame::{self, Decoder};
use cni_bridge::protocol::{
    AddReply, Bandwidth, Call, CallError, PROTOCOL_VERSION, PodAddress, Reply, Request,
};

/// One call, with device and inode of the descriptor that came beside it.
pub type Asked = (Call, Option<(u64, u64)>);

pub struct FakeDaemon {
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Listens at `viaduct.sock` in `dir`. `answer` gives the reply, or `None` to hang up.
    pub fn start(dir: &Path, answer: impl Fn(&Call) -> Option<Reply> + Send + 'static) -> Self {
        let socket = dir.join("viaduct.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, flag) = (asked.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                serve(stream.unwrap(), &log, &answer);
            }
        });
        Self { socket, asked, stop, thread: Some(thread) }
    }

    /// Answers everything with success.
    pub fn willing(dir: &Path) -> Self {
        Self::start(dir, |call| {
            Some(match call {
                Call::Add(request) => {
                    let port_mappings = request.port_mappings.len();
                    let bandwidth = request.bandwidth;
                    Reply::Added(AddReply { port_mappings, bandwidth, ..added() })
                }
                _ => Reply::Done,
            })
        })
    }

    /// Fails everything with `code`.
    pub fn failing(dir: &Path, code: u32) -> Self {
        Self::start(dir, move |_| {
            let details = "d".to_owned();
            Some(Reply::Error(CallError { code, msg: "refused".to_owned(), details }))
        })
    }

    /// What it was asked so far, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.socket);
        let result = self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.socket);
        if !thread::panicking() {
            result.unwrap().expect("the daemon's thread does not panic");
        }
    }
}

fn serve(mut stream: UnixStream, log: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Call) -> Option<Reply>) {
    let mut decoder = Decoder::default();
    // A small piece makes the request arrive in many.
    let mut piece = [0; 100];
    let mut descriptor = None;
    let request: Request = loop {
        let received = frame::receive(&stream, &mut piece).unwrap();
        if received.bytes == 0 {
            return;
        }
        descriptor = received.descriptor.or(descriptor);
        decoder.push(&piece[..received.bytes]);
        if let Some(request) = decoder.decode().unwrap() {
            break request;
        }
    };
    assert_eq!(request.version, PROTOCOL_VERSION);
    let file = descriptor.map(|descriptor| File::from(descriptor).metadata().unwrap());
    log.lock().unwrap().push((request.call.clone(), file.map(|file| (file.dev(), file.ino()))));
    if let Some(reply) = answer(&request.call) {
        let _ = stream.write_all(&frame::encode(&reply).unwrap());
    }
}

/// A dual-stack reply to ADD, of a daemon that knows of no port mappings and limits.
pub fn added() -> AddReply {
    let address = |address: &str, prefix_len| PodAddress {
        address: address.parse().unwrap(),
        prefix_len,
        gateway: None,
    };
    AddReply {
        host_ifname: "vd0123456789ab".to_owned(),
        host_mac: "0a:00:00:00:00:01".to_owned(),
        mac: "0a:00:00:00:00:02".to_owned(),
        mtu: 1500,
        addresses: vec![address("10.244.1.5", 24), address("fd00::5", 64)],
        port_mappings: 0,
        bandwidth: Bandwidth::default(),
    }
}
