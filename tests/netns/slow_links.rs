//! Networks far slower than the server believes: nobody named a rate, and the interface promises
//! more. docs/PROTOCOL.md, "The opening".

use bootcast_proto::api::{CastStatus, Status};
use harness::lab::LabBuilder;
use harness::{Lab, ServerProc, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::transfers::{Copy, Get};

/// A server that has to find the rate. Its casts stay long enough to be looked at in the end.
fn start_server(lab: &Lab) -> ServerProc<'_> {
    lab.server().option("--linger", "60s").start()
}

/// Answer to `GET /status`, which crosses the link that the cast fills.
#[track_caller]
fn status_at_client(lab: &Lab) -> Status {
    let answer = lab.client(1).get(&lab.url("status"));
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{answer:?}: {error}"))
}

/// Datagrams that were sent, in per cent of the file's pages.
fn percent_sent(cast: &CastStatus) -> u64 {
    (cast.pages_sent + cast.symbols_sent) * 100 / u64::from(cast.pages)
}

/// Has two gets get a file through 6 Mbit/s, while the server answers. Returns the cast in the
/// end.
fn get_through_6_mbit(lab: &Lab) -> CastStatus {
    let image = lab.put("image", mib(2) + 5);
    let server = start_server(lab);
    let mut gets = [1, 2].map(|k| Get::start(lab, k, &image));
    // The file takes three seconds, and each answer a queue's length.
    wait_until(TRANSFER, "an answer comes while pages are being sent", || {
        status_at_client(lab).casts.iter().any(|cast| cast.pages_sent > 0 && cast.members > 0)
    });
    for get in &mut gets {
        get.finish(&image);
    }
    server.cast_of("image").expect("the cast lingers")
}

#[test]
fn an_uplink_of_6_mbit_brings_the_file_and_answers_meanwhile_and_the_rate_follows_it() {
    let lab = lab_or_skip!(Lab::builder().clients(2).rate("6mbit").cap_at_switch());
    let cast = get_through_6_mbit(&lab);
    assert!(cast.rate_bps < 60_000_000, "{cast:?}");
}

#[test]
fn an_interface_of_6_mbit_brings_the_file_and_answers_meanwhile() {
    let lab = lab_or_skip!(Lab::builder().clients(2).rate("6mbit"));
    let cast = get_through_6_mbit(&lab);
    // It holds the sender back, and loses nothing.
    assert!(percent_sent(&cast) < 300, "{cast:?}");
}

/// Has two gets and a mount get a file, from a server that guesses the rate.
fn all_get_it(builder: LabBuilder) {
    let lab = lab_or_skip!(builder.clients(3));
    let image = lab.put("image", mib(16));
    let server = start_server(&lab);
    let mut copy = Copy::start(&lab, 1, &image);
    let mut gets = [2, 3].map(|k| Get::start(&lab, k, &image));
    copy.finish(&image);
    for get in &mut gets {
        get.finish(&image);
    }
    let cast = server.cast_of("image").expect("the cast lingers");
    assert!(percent_sent(&cast) < 400, "{cast:?}");
}

#[test]
fn a_switch_far_slower_than_the_guess_brings_all_to_all_and_little_is_sent_for_nothing() {
    all_get_it(Lab::builder().rate("100mbit").cap_at_switch());
}

#[test]
fn ports_far_slower_than_the_guess_bring_all_to_all_and_little_is_sent_for_nothing() {
    all_get_it(Lab::builder().narrow("100mbit"));
}

#[test]
fn an_interface_far_slower_than_the_guess_brings_all_to_all_and_little_is_sent_for_nothing() {
    all_get_it(Lab::builder().rate("100mbit"));
}
