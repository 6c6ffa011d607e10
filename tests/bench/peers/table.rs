//! Table of the results of all rounds.

use std::fmt::Write;

use super::RATE;
use super::race::{Run, limit};
use crate::median;

/// Runs by network and peer, in the order of their first appearance.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Row>,
}

struct Row {
    condition: &'static str,
    peer: &'static str,
    runs: Vec<Run>,
}

impl Table {
    pub(super) fn add(&mut self, condition: &'static str, peer: &'static str, run: Run) {
        let is_same = |row: &&mut Row| row.condition == condition && row.peer == peer;
        match self.rows.iter_mut().find(is_same) {
            Some(row) => row.runs.push(run),
            None => self.rows.push(Row { condition, peer, runs: vec![run] }),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = "| network | peer | complete | last one done, s | × limit | files sent |\n\
                        |---|---|---|---|---|---|\n"
            .to_owned();
        for row in &self.rows {
            row.write(&mut text);
        }
        text
    }
}

impl Row {
    /// Writes the row. Its time is the median of the runs in which all clients got the file.
    fn write(&self, text: &mut String) {
        let Self { condition, peer, runs } = self;
        let sum = |count: fn(&Run) -> usize| runs.iter().map(count).sum::<usize>();
        let (complete, clients) = (sum(|run| run.complete), sum(|run| run.clients));
        let sent = median(runs.iter().map(|run| run.sent).collect());
        let times: Vec<_> =
            runs.iter().filter_map(|run| run.last).map(|last| last.as_secs_f64()).collect();
        let time = if times.is_empty() {
            "- | -".to_owned()
        } else {
            let last = median(times);
            format!("{last:.2} | {:.2}", last / limit(RATE).as_secs_f64())
        };
        writeln!(text, "| {condition} | {peer} | {complete}/{clients} | {time} | {sent:.3} |")
            .unwrap();
    }
}
