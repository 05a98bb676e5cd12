//! Tests of the deadline and of the kinds of failure; `tests/plugin/` has the good cases.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;
use crate::protocol::Listing;

/// Long enough to be told from nothing, short enough to wait for.
const SHORT: Duration = Duration::from_millis(100);

/// Far more than [`SHORT`], for a machine under load.
const LATE: Duration = Duration::from_secs(5);

fn ask_at(socket: &Path) -> (Result<Reply, ClientError>, Duration) {
    let start = Instant::now();
    let result = ask(socket, Call::List(Listing::Pods), None, SHORT);
    (result, start.elapsed())
}

#[test]
fn nobody_there_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    assert!(matches!(ask_at(&socket).0, Err(ClientError::Unreachable { .. })), "no file");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(matches!(ask_at(&socket).0, Err(ClientError::Unreachable { .. })), "nobody listens");
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    assert!(matches!(ask_at(&socket).0, Err(ClientError::Unreachable { .. })), "no socket");
}

#[test]
fn a_path_that_fits_in_no_address_is_refused() {
    let long = Path::new("/").join("x".repeat(108));
    assert!(matches!(ask_at(&long).0, Err(ClientError::Path { .. })));
}

#[test]
fn a_daemon_that_does_not_answer_is_waited_for_until_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    let (result, elapsed) = ask_at(&socket);
    assert!(matches!(result, Err(ClientError::Deadline { .. })), "{result:?}");
    assert!(elapsed >= SHORT / 2 && elapsed < LATE, "{elapsed:?}");
}

#[test]
fn a_full_backlog_is_waited_for_until_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&socket).unwrap();
    let (result, elapsed) = ask_at(&socket);
    assert!(matches!(result, Err(ClientError::Unreachable { .. })), "{result:?}");
    assert!(elapsed >= SHORT / 2 && elapsed < LATE, "{elapsed:?}");
}

#[test]
fn a_daemon_that_trickles_does_not_outlast_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // A byte of a long frame now and then, until the client has gone.
        let mut bytes = 1000u32.to_be_bytes().into_iter().chain(std::iter::repeat(b' '));
        while stream.write_all(&[bytes.next().unwrap()]).is_ok() {
            thread::sleep(SHORT / 10);
        }
    });
    let (result, elapsed) = ask_at(&socket);
    assert!(matches!(result, Err(ClientError::Deadline { .. })), "{result:?}");
    assert!(elapsed < LATE, "{elapsed:?}");
    daemon.join().unwrap();
}

#[test]
fn a_daemon_that_hangs_up_or_talks_nonsense_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let answer = |name: &str, bytes: &'static [u8]| {
        let socket = dir.path().join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 1 << 12]).unwrap() > 0);
            stream.write_all(bytes).unwrap();
        });
        let result = ask(&socket, Call::List(Listing::Pods), None, LATE);
        daemon.join().unwrap();
        result
    };
    assert!(matches!(answer("a", b""), Err(ClientError::Broken { .. })));
    assert!(matches!(answer("b", b"\0\0\0\x09\"do"), Err(ClientError::Broken { .. })));
    assert!(matches!(answer("c", b"\xff\xff\xff\xff"), Err(ClientError::Reply { .. })));
    let nonsense = answer("d", b"\0\0\0\x02{}").unwrap_err();
    assert!(matches!(nonsense, ClientError::Reply { .. }));
    assert!(nonsense.to_string().contains(dir.path().to_str().unwrap()), "{nonsense}");
    assert!(matches!(answer("e", b"\0\0\0\x06\"done\""), Ok(Reply::Done)));
}
