//! `bootcast profile`: shows which parts of a file its readers want first after an open.

use std::ffi::OsString;
use std::fmt::Write;

use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Profile, RemotePath};
use indicatif::BinaryBytes;

use super::error::ToolError;
use super::status::counted;
use super::stdout;
use super::url::Target;

/// Arguments of `bootcast profile`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[arg(help = "File: http://HOST[:PORT]/PATH with a percent-encoded path, or \
                HOST:[PORT:]/PATH with the path as it is; port 8888 unless named")]
    url: OsString,

    /// Print the first and the last byte of each part, in the order in which they were wanted first
    #[arg(long)]
    order: bool,
}

/// Prints the profile.
pub(super) async fn run(args: Args) -> Result<(), ToolError> {
    let Target { control, path } = Target::parse(&args.url)?;
    match control.profile(&path).await {
        Ok((id, profile)) => {
            let text = if args.order { order(&profile) } else { summary(&id, &profile) };
            stdout::print(text.as_bytes())
        }
        Err(error) if error.is_not_found() => match control.attributes(&RemotePath::root()).await {
            Err(error) if error.is_not_found() => Err(ToolError::Refused(format!(
                "{} is a plain server: it has no profiles",
                control.server()
            ))),
            _ => Err(ToolError::from(error).with_path(&path)),
        },
        Err(error) => Err(ToolError::from(error).with_path(&path)),
    }
}

/// Formats what is known of the content and of its profile.
fn summary(id: &ContentId, profile: &Profile) -> String {
    let share = u128::from(profile.bytes()) * 100 / u128::from(profile.size().max(1));
    format!(
        "content  {id}\n\
         size     {}\n\
         profile  {}, {share} % of the file, in {}\n",
        BinaryBytes(profile.size()),
        BinaryBytes(profile.bytes()),
        counted(profile.runs().len() as u64, "part"),
    )
}

/// Formats the parts in their order, as `bootcast get --range` takes them.
fn order(profile: &Profile) -> String {
    let mut text = String::new();
    for run in profile.runs() {
        let bytes = profile.bytes_of(run);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}-{}", bytes.start, bytes.end.saturating_sub(1));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let mut profile = Profile::new((1 << 20) + 10);
        profile.extend(50..52);
        profile.extend(64..65);
        profile
    }

    #[test]
    fn the_summary_says_how_much_of_the_file_is_wanted_first() {
        let id = ContentId::from_bytes([7; 32]);
        assert_eq!(
            summary(&id, &profile()),
            format!(
                "content  {id}\n\
                 size     1.00 MiB\n\
                 profile  32.01 KiB, 3 % of the file, in 2 parts\n"
            )
        );
    }

    #[test]
    fn the_order_is_one_of_byte_ranges() {
        assert_eq!(order(&profile()), "819200-851967\n1048576-1048585\n");
    }
}
