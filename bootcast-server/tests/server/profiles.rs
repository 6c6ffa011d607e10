//! Profiles over HTTP, in datagrams and on the disk. docs/PROTOCOL.md, "Profile".

use std::fs;

use crate::demand::{Member, bytes};
use crate::http::request;
use crate::process::{Server, wait_for};

const ASKS: [(&str, &str); 1] = [("X-BOOTCAST-PROFILE", "1")];

fn leave(server: &Server, member: &Member) {
    let token = [("X-TOKEN", member.answer.token.as_str())];
    assert_eq!(request(server.address(), "GET", "/leave/file", &token).status, 204);
}

#[test]
fn a_member_that_holds_nothing_gets_what_others_wanted_first_also_after_a_restart() {
    let server = Server::start(&["--rate", "100mbit"]);
    let content = bytes(1_000_000);
    server.write("file", &content);
    let id = server.get("/manifest/file").header("x-bootcast-b3").unwrap().to_owned();
    let none = server.get("/profile/file");
    assert_eq!(none.status, 404);
    assert!(none.text().starts_with("no profile yet"), "{}", none.text());
    assert_eq!(server.get("/profile/missing").status, 404);

    let first = Member::join_with(&server, "file", &ASKS);
    // Leaf 40 begins in page 451, leaf 3 in page 34, counted from 1.
    for body in [r#"{"now":[[451,12]]}"#, r#"{"later":[[34,13]]}"#] {
        assert_eq!(first.want(&server, "file", body).status, 204);
    }
    let wanted = first.receive(25, &content);
    leave(&server, &first);
    let text = format!("bootcast profile 1\nb3 {id}\nsize 1000000\n40 1\n3 1\n");
    wait_for("the profile", || (server.get("/profile/file").text() == text).then_some(()));

    let server = server.restart();
    let kept = server.state_dir.path().join(format!("{id}.profile"));
    assert_eq!(fs::read_to_string(kept).unwrap(), text);
    // Who does not ask gets nothing. Who asks gets what was wanted, in this order.
    let silent = Member::join_with(&server, "file", &[]);
    let fresh = Member::join_with(&server, "file", &ASKS);
    assert_eq!(fresh.receive(25, &content), wanted);
    let status = server.status();
    assert_eq!((status.totals.pages_sent, status.totals.demanded), (25, 0));
    leave(&server, &fresh);
    leave(&server, &silent);
}
