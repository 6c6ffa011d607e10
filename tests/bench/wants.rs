//! How much CPU time does the server need to answer demands?

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bootcast_proto::{DEFAULT_PORT, JoinAnswer};
use harness::{Lab, mib};

use crate::{RUNS, median};

const SIZE: u64 = mib(128);

/// Duration of a run.
const RUN: Duration = Duration::from_secs(3);

/// Number of pages in one request.
const PAGES: u32 = 3;

/// Number of hosts that the members are on, by turns. One host may send 10,000 wants a second.
const HOSTS: u8 = 8;

/// Numbers of members to measure with. Each has one connection and one request at a time.
const MEMBERS: [u32; 3] = [1, 8, 64];

struct Figures {
    wants_per_second: f64,
    pages_per_want: f64,
    cpu_per_thousand: f64,
}

/// Measures members that demand three pages at a time, at random positions, each as fast as it is
/// answered.
pub(crate) fn measure() -> String {
    let mut text = format!(
        "\n## Demand\n\n\
         Members ask for {PAGES} pages at a time, anywhere in 128 MiB, each on a connection of its \
         own and as fast as it is answered. CPU time is that of the server, the sending of the \
         pages included, per 1000 requests.\n\n\
         | members | wants/s | pages sent for each | server CPU, s |\n|---|---|---|---|\n"
    );
    for members in MEMBERS {
        let figures = measure_members(members);
        let row = format!(
            "| {members} | {:.0} | {:.2} | {:.3} |",
            figures.wants_per_second, figures.pages_per_want, figures.cpu_per_thousand,
        );
        println!("{row}");
        text.push_str(&row);
        text.push('\n');
    }
    text.push_str("\nGoal: 5000 in a second on one core, 0.200 s for 1000.\n");
    text
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn measure_members(members: u32) -> Figures {
    let lab = Lab::builder().clients(HOSTS).build();
    lab.put("image", SIZE);
    let server = lab.server().option("--rate", "3gbit").start();
    let mut runs = Vec::new();
    for run in 0..RUNS {
        let (cpu, sent) = (server.proc().cpu_time().as_secs_f64(), server.status().totals.demanded);
        let began = Instant::now();
        let wants = send_wants(&lab, members, u32::try_from(run).expect("a few runs"));
        let seconds = began.elapsed().as_secs_f64();
        let cpu = server.proc().cpu_time().as_secs_f64() - cpu;
        runs.push(Figures {
            wants_per_second: wants as f64 / seconds,
            pages_per_want: (server.status().totals.demanded - sent) as f64 / wants as f64,
            cpu_per_thousand: cpu * 1000.0 / wants as f64,
        });
    }
    let middle = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
    Figures {
        wants_per_second: middle(|run| run.wants_per_second),
        pages_per_want: middle(|run| run.pages_per_want),
        cpu_per_thousand: middle(|run| run.cpu_per_thousand),
    }
}

/// Sends wants for the duration of a run. Returns the number of answered requests.
fn send_wants(lab: &Lab, members: u32, run: u32) -> u64 {
    let begin_one = move |member: u32| {
        std::thread::spawn(move || {
            let mut member = Member::join(run * 1000 + member);
            let end = Instant::now() + RUN;
            let mut wants = 0;
            while Instant::now() < end {
                member.want();
                wants += 1;
            }
            member.leave();
            wants
        })
    };
    // A thread starts in the namespace of its creator.
    let begin = |member: u32| {
        let host = &lab.clients()[((member + run) % u32::from(HOSTS)) as usize];
        host.enter(|| begin_one(member))
    };
    let threads: Vec<_> = (0..members).map(begin).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).sum()
}

struct Member {
    connection: BufReader<TcpStream>,
    answer: JoinAnswer,
    random: u32,
}

impl Member {
    fn join(seed: u32) -> Self {
        let stream = TcpStream::connect((harness::lab::HEAD_ADDRESS, DEFAULT_PORT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut connection = BufReader::new(stream);
        let join = "GET /join/image HTTP/1.1\r\nhost: x\r\nx-bootcast: 1\r\n\
                    x-bootcast-fill: demand\r\n\r\n";
        let answer = exchange(&mut connection, join);
        Self { connection, answer: JoinAnswer::parse(&answer).unwrap(), random: seed }
    }

    fn want(&mut self) {
        // The linear congruential generator of "Numerical Recipes"; any other would do.
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let page = 1 + (self.random >> 8) % self.answer.pages;
        let body = format!(r#"{{"now":[[{page},{PAGES}]]}}"#);
        let (token, length) = (&self.answer.token, body.len());
        let request = format!(
            "POST /want/image HTTP/1.1\r\nhost: x\r\nx-token: {token}\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        exchange(&mut self.connection, &request);
    }

    fn leave(mut self) {
        let token = &self.answer.token;
        let leave = format!("GET /leave/image HTTP/1.1\r\nhost: x\r\nx-token: {token}\r\n\r\n");
        exchange(&mut self.connection, &leave);
    }
}

/// Sends a request, requires success, and returns the body of the answer.
fn exchange(connection: &mut BufReader<TcpStream>, request: &str) -> String {
    connection.get_mut().write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    connection.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 20"), "{line}");
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        assert_ne!(connection.read_line(&mut line).unwrap(), 0, "the answer is cut off");
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    std::io::Read::read_exact(connection, &mut body).unwrap();
    String::from_utf8(body).unwrap()
}
