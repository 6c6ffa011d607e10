//! `bootcast status`: shows what a server is casting, or what a mount does (`mount_status`).

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use bootcast_proto::api::{CastStatus, Status, Totals};
use bootcast_proto::{BitRate, RemotePath, units};
use indicatif::BinaryBytes;

use super::error::ToolError;
use super::mount_status;
use super::stdout;
use super::url::{Target, printable};

/// Arguments of `bootcast status`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[arg(
        value_name = "MOUNTPOINT|URL",
        help = "Mounted directory, or server: http://HOST[:PORT] or HOST:[PORT:]/; port 8888 \
                unless named"
    )]
    target: OsString,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Print the status of a mount once, also on a terminal, instead of each second
    #[arg(long)]
    once: bool,
}

/// Prints the status.
pub(super) async fn run(args: Args) -> Result<(), ToolError> {
    if mount_status::is_mountpoint(&args.target) {
        return mount_status::run(Path::new(&args.target), args.json, args.once).await;
    }
    let control = Target::parse(&args.target)?.control;
    let status = control.status().await.map_err(|error| {
        if error.is_not_found() {
            let server = control.server();
            ToolError::Refused(format!("{server} is a plain server: it has no status"))
        } else {
            error.into()
        }
    })?;
    if args.json { stdout::print_json(&status) } else { stdout::print(table(&status).as_bytes()) }
}

/// Formats a line about the server, a table of its casts, and a line of totals.
fn table(status: &Status) -> String {
    let header =
        ["PATH", "GROUP", "MEMBERS", "UNICAST", "PASSES", "SENT/PAGES", "RATE", "MEAN RATE"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(status.casts.iter().map(row));
    let mut text = server_line(status);
    if !status.casts.is_empty() {
        text.push('\n');
        write_columns(&mut text, &rows);
        text.push('\n');
    }
    text.push_str(&totals_line(&status.totals));
    text
}

fn server_line(status: &Status) -> String {
    let Status { version, uptime_s, rate_bps, casts, .. } = status;
    let up = humantime::format_duration(Duration::from_secs(*uptime_s));
    let version = printable(version.as_bytes());
    let casts = counted(casts.len() as u64, "cast");
    format!("version {version}, up {up}, at most {}, {casts}\n", rate(*rate_bps))
}

fn row(cast: &CastStatus) -> [String; 8] {
    // The path is shown as received if it cannot be decoded.
    let path = RemotePath::decode(&cast.path);
    let path = path.as_ref().map_or(cast.path.as_bytes(), RemotePath::as_bytes);
    let bits = cast.pages_sent.saturating_mul(units::wire_len(cast.page_size) * 8);
    [
        printable(path),
        printable(cast.group.as_bytes()),
        cast.members.to_string(),
        cast.unicast.to_string(),
        cast.passes.to_string(),
        format!("{}/{}", cast.pages_sent, cast.pages),
        rate(cast.rate_bps),
        bits.checked_div(cast.age_s).map_or_else(|| "-".into(), rate),
    ]
}

fn totals_line(totals: &Totals) -> String {
    let Totals { casts, joins, leaves, pages_sent, bytes_sent, bytes_read, .. } = *totals;
    format!(
        "in all {}, {}, {}, {} in {}, {} read\n",
        counted(casts, "cast"),
        counted(joins, "join"),
        counted(leaves, "leave"),
        BinaryBytes(bytes_sent),
        counted(pages_sent, "page"),
        BinaryBytes(bytes_read),
    )
}

pub(super) fn counted(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// Formats a rate in bits per second with three significant digits, such as `199mbit`.
pub(super) fn rate(bits: u64) -> String {
    let step = 10u64.pow(bits.checked_ilog10().unwrap_or(0).saturating_sub(2));
    let rounded = bits.saturating_add(step / 2) / step * step;
    BitRate::from_bits_per_second(rounded).map_or_else(|| "0".into(), |rate| rate.to_string())
}

/// Writes rows with the first column aligned left and the others right, two blanks apart.
pub(super) fn write_columns<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let _ = write!(text, "{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use bootcast_proto::Etag;
    use bootcast_proto::api::Budgets;

    use super::*;

    fn status() -> Status {
        let cast = CastStatus {
            path: "images/a%20b.img".into(),
            etag: Etag::new("2a").unwrap(),
            group: "239.255.0.1:9000".into(),
            size: 4000,
            pages: 3,
            page_size: 1456,
            members: 12,
            unicast: 3,
            joins: 13,
            pages_sent: 33_025,
            zero_pages: 0,
            demanded: 0,
            symbols_sent: 0,
            repair_level: 0,
            rate_bps: 450_000_000,
            passes: 5,
            age_s: 2,
        };
        let totals = Totals { casts: 1, joins: 13, leaves: 1, ..Totals::default() };
        Status {
            version: "0.1.0".into(),
            uptime_s: 61,
            rate_bps: 900_000_000,
            casts: vec![cast],
            totals,
            budgets: Budgets::default(),
        }
    }

    #[test]
    fn a_cast_is_a_row_under_its_headings() {
        assert_eq!(
            table(&status()),
            "\
version 0.1.0, up 1m 1s, at most 900mbit, 1 cast

PATH                       GROUP  MEMBERS  UNICAST  PASSES  SENT/PAGES     RATE  MEAN RATE
images/a b.img  239.255.0.1:9000       12        3       5     33025/3  450mbit    203mbit

in all 1 cast, 13 joins, 1 leave, 0 B in 0 pages, 0 B read
"
        );
    }

    #[test]
    fn a_server_without_casts_has_no_table() {
        let status = Status { casts: Vec::new(), ..status() };
        assert_eq!(table(&status).lines().count(), 2);
    }

    #[test]
    fn a_cast_that_just_began_has_no_rate() {
        let cast = CastStatus { age_s: 0, ..status().casts.remove(0) };
        assert_eq!(row(&cast)[7], "-");
    }

    #[test]
    fn a_rate_has_three_digits() {
        for (bits, text) in [
            (0, "0"),
            (999, "999bit"),
            (199_400_000, "199mbit"),
            (199_999_400, "200mbit"),
            (1_234_567_890, "1230mbit"),
            (u64::MAX, "18400000000gbit"),
        ] {
            assert_eq!(rate(bits), text);
        }
    }
}
