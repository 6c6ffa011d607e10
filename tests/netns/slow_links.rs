//! Networks far slower than the server assumes: no `--rate` is given, and the interface is faster
//! than the path. docs/PROTOCOL.md, "The opening".

use bootcast_proto::api::{CastStatus, Status};
use harness::lab::LabBuilder;
use harness::{Lab, ServerProc, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::transfers::{Copy, Get};

/// Starts a server without `--rate`. Its casts linger, so that their state can be read at the end.
fn start_server(lab: &Lab) -> ServerProc<'_> {
    lab.server().option("--linger", "60s").start()
}

/// Sends `GET /status` from a client, across the link that the cast fills.
#[track_caller]
fn status_at_client(lab: &Lab) -> Status {
    let answer = lab.client(1).get(&lab.url("status"));
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{answer:?}: {error}"))
}

/// Number of datagrams sent, as a percentage of the file's pages.
fn percent_sent(cast: &CastStatus) -> u64 {
    (cast.pages_sent + cast.symbols_sent) * 100 / u64::from(cast.pages)
}

/// Runs two gets through a link of 6 Mbit/s, and checks that the server answers requests meanwhile.
/// Returns the state of the cast at the end.
fn get_through_6_mbit(lab: &Lab) -> CastStatus {
    let image = lab.put("image", mib(4) + 5);
    let server = start_server(lab);
    let mut gets = [1, 2].map(|k| Get::start(lab, k, &image));
    // The file takes six seconds. Each answer waits in the link's queue.
    wait_until(TRANSFER, "an answer arrives while pages are being sent", || {
        status_at_client(lab).casts.iter().any(|cast| cast.pages_sent > 0 && cast.members > 0)
    });
    for get in &mut gets {
        get.finish(&image);
    }
    server.cast_of("image").expect("the cast lingers")
}

#[test]
fn through_an_uplink_of_6_mbit_the_file_arrives_with_answers_in_between_and_the_rate_falls() {
    let lab = lab_or_skip!(Lab::builder().clients(2).rate("6mbit").cap_at_switch());
    let cast = get_through_6_mbit(&lab);
    assert!(cast.rate_bps < 60_000_000, "{cast:?}");
}

#[test]
fn through_an_interface_of_6_mbit_the_file_arrives_with_answers_in_between() {
    let lab = lab_or_skip!(Lab::builder().clients(2).rate("6mbit"));
    let cast = get_through_6_mbit(&lab);
    // The full interface blocks the sender, so nothing is lost.
    assert!(percent_sent(&cast) < 300, "{cast:?}");
}

/// Runs two gets and a copy from a mount, with a server that guesses its rate, and checks that the
/// file is sent fewer than four times.
fn assert_few_files_sent(builder: LabBuilder) {
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
fn a_switch_far_slower_than_the_guessed_rate_costs_few_files() {
    assert_few_files_sent(Lab::builder().rate("100mbit").cap_at_switch());
}

#[test]
fn ports_far_slower_than_the_guessed_rate_cost_few_files() {
    assert_few_files_sent(Lab::builder().narrow("100mbit"));
}

#[test]
fn an_interface_far_slower_than_the_guessed_rate_costs_few_files() {
    assert_few_files_sent(Lab::builder().rate("100mbit"));
}
