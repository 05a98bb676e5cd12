//! Tests of the queue on a real directory.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn request(id: &str) -> DelRequest {
    let attachment = Attachment {
        network: "viaduct".to_owned(),
        container_id: id.to_owned(),
        ifname: "eth0".to_owned(),
    };
    DelRequest { attachment }
}

fn ids(dir: &Path) -> Vec<String> {
    let mut ids: Vec<String> =
        read(dir).into_iter().map(|(_, request)| request.attachment.container_id).collect();
    ids.sort();
    ids
}

#[test]
fn the_queue_is_beside_the_socket() {
    let dir = directory(Path::new("/run/viaduct/viaduct.sock"));
    assert_eq!(dir, Path::new("/run/viaduct/del-queue"));
}

#[test]
fn what_was_pushed_is_read_until_it_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("missing/del-queue");
    assert!(read(&dir).is_empty(), "a missing directory is an empty queue");
    push(&dir, &request("a")).unwrap();
    push(&dir, &request("b")).unwrap();
    push(&dir, &request("a")).unwrap();
    assert_eq!(ids(&dir), ["a", "b"], "a repeated DEL is one file");
    assert!(contains(&dir, &request("a").attachment));

    remove(&dir, &request("a").attachment).unwrap();
    remove(&dir, &request("a").attachment).unwrap();
    assert_eq!(ids(&dir), ["b"]);
    assert!(!contains(&dir, &request("a").attachment));
    let mode = fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn torn_empty_and_foreign_files_are_passed_over() {
    let root = tempfile::tempdir().unwrap();
    push(root.path(), &request("whole")).unwrap();
    let bytes = serde_json::to_vec(&request("torn")).unwrap();
    fs::write(root.path().join("torn.json"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(root.path().join("empty.json"), b"").unwrap();
    fs::write(root.path().join("whole.17.tmp"), &bytes).unwrap();
    fs::create_dir(root.path().join("directory.json")).unwrap();
    assert_eq!(ids(root.path()), ["whole"]);
}

#[test]
fn a_full_queue_refuses_a_new_attachment_but_takes_a_repeated_one() {
    let root = tempfile::tempdir().unwrap();
    push(root.path(), &request("known")).unwrap();
    for number in 1..FILES_MAX {
        fs::write(root.path().join(format!("{number}.json")), b"").unwrap();
    }
    push(root.path(), &request("known")).unwrap();
    let error = push(root.path(), &request("new")).unwrap_err();
    assert!(matches!(error, QueueError::Full { .. }));
    assert_eq!(ids(root.path()), ["known"]);
}

#[test]
fn names_that_join_to_the_same_text_have_different_files() {
    let attachment = |network: &str, id: &str| Attachment {
        network: network.to_owned(),
        container_id: id.to_owned(),
        ifname: "eth0".to_owned(),
    };
    let dir = Path::new("/");
    assert_ne!(path(dir, &attachment("ab", "c")), path(dir, &attachment("a", "bc")));
}

#[test]
fn the_hash_has_the_published_values() {
    // Test vectors of draft-eastlake-fnv for 128 bits.
    assert_eq!(fnv1a_128(b""), 0x6c62272e07bb014262b821756295c58d);
    assert_eq!(fnv1a_128(b"a"), 0xd228cb696f1a8caf78912b704e4a8964);
}
