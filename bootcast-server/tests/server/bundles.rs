//! Bundles of small files. docs/PROTOCOL.md, "Bundles".

use bootcast_proto::JoinAnswer;
use bootcast_proto::bundle::{BundleIndex, BundleInfo};

use crate::process::{Server, wait_for};

/// Returns the bundle that has a file, as soon as the file was not changed a moment ago.
fn bundle(server: &Server, path: &str) -> BundleInfo {
    wait_for("a bundle of files that do not change", || {
        let answer = server.get(&format!("/bundle/{path}"));
        (answer.status == 200).then(|| serde_json::from_slice(&answer.body).unwrap())
    })
}

#[test]
fn a_bundle_is_joined_and_fetched_in_the_version_that_the_answer_names() {
    let server = Server::start(&[]);
    server.write("a b", b"one");
    let BundleInfo { name, etag, size, index, next } = bundle(&server, "a%20b");
    assert_eq!(next, None);
    let file = server.get(&format!("/file/{name}"));
    assert_eq!((file.status, file.body.len() as u64), (200, size));
    assert_eq!(file.header("etag"), Some(etag.to_header().as_str()));
    let (index, bytes) = file.body.split_at(usize::try_from(index).unwrap());
    let index: BundleIndex = serde_json::from_slice(index).unwrap();
    assert_eq!((index.files.len(), index.files[0].name.as_str(), bytes), (1, "a%20b", &b"one"[..]));
    let joined = server.get(&format!("/join/{name}"));
    let joined = JoinAnswer::parse(joined.text()).unwrap();
    assert_eq!(joined.extensions.etag, Some(etag));
}

#[test]
fn files_that_are_not_small_regular_or_there_have_no_bundle() {
    let server = Server::start(&[]);
    server.write("large", &vec![0; 65_537]);
    server.write("small", &vec![0; 65_536]);
    std::os::unix::fs::symlink("small", server.dir.path().join("link")).unwrap();
    std::fs::create_dir(server.dir.path().join("directory")).unwrap();
    bundle(&server, "small");
    for path in ["large", "link", "directory", "directory/small", "missing", "missing/small"] {
        assert_eq!(server.get(&format!("/bundle/{path}")).status, 404, "{path}");
    }
}
