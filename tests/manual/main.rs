//! Writes the man pages and the shell completions of all programs, from their command lines.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory, Parser};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Write man pages to DIR/man, and completions to DIR/completions
#[derive(Parser)]
struct Args {
    dir: PathBuf,
}

/// The man page of a program.
struct Page {
    command: Command,
    section: &'static str,
    see_also: &'static str,
}

fn pages() -> [Page; 4] {
    [
        Page {
            command: bootcast_fs::tool::command(),
            section: "1",
            see_also: "bootcastfs(8), bootcast-server(8)",
        },
        Page {
            command: bootcast_fs::mount_command::command(),
            section: "8",
            see_also: "bootcast(1), bootcast-server(8), bootcast-netboot(7), mount(8), fuse(8)",
        },
        Page {
            command: bootcast_fs::urlmount_command::command(),
            section: "8",
            see_also: "bootcastfs(8), bootcast-server(8)",
        },
        Page {
            command: bootcast_server::cli::Args::command(),
            section: "8",
            see_also: "bootcast(1), bootcastfs(8), bootcast-netboot(7)",
        },
    ]
}

fn main() -> ExitCode {
    let Args { dir } = Args::parse();
    match write_all(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write the manual to {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(dir: &Path) -> io::Result<()> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    for Page { command, section, see_also } in pages() {
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command.clone(), &name, &completions)?;
        }
        write_page(command, section, see_also, &man)?;
    }
    Ok(())
}

/// Writes the page of a command, and one for each of its commands.
fn write_page(command: Command, section: &str, see_also: &str, dir: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    // Sets the full names of the commands below it.
    command.build();
    let title = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let below: Vec<_> = command.get_subcommands().collect();
    for command in &below {
        write_page((*command).clone(), section, &format!("{title}({section})"), dir)?;
    }
    let names = below.iter().filter_map(|it| it.get_display_name());
    let see_also: Vec<_> =
        names.map(|name| format!("{name}({section})")).chain([see_also.to_owned()]).collect();
    let file = File::create(dir.join(format!("{title}.{section}")))?;
    render(command, &title, section, &see_also.join(", "), file)
}

fn render(
    command: Command,
    title: &str,
    section: &str,
    see_also: &str,
    mut out: impl Write,
) -> io::Result<()> {
    let more = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_commands = command.has_subcommands();
    let man = Man::new(command).title(title).section(section);
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if has_commands {
        man.render_subcommands_section(&mut out)?;
    }
    more.split("\n\n").try_for_each(|paragraph| render_paragraph(paragraph, &mut out))?;
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(see_also)]);
    roff.to_writer(&mut out)
}

/// Writes a paragraph that follows the options in `--help`. Its first line is a heading, if that
/// ends with a colon. The other lines keep their breaks and columns.
fn render_paragraph(paragraph: &str, out: &mut impl Write) -> io::Result<()> {
    let mut roff = Roff::new();
    let Some((heading, lines)) = paragraph.split_once(":\n") else {
        if !paragraph.is_empty() {
            roff.control("PP", []);
            roff.text([roman(paragraph)]);
        }
        return roff.to_writer(out);
    };
    roff.control("SH", [&*heading.to_uppercase()]);
    roff.control("nf", []);
    for line in lines.lines() {
        match line.strip_prefix("  ").unwrap_or(line).split_once("  ") {
            // Such as an option and its meaning.
            Some((name, meaning)) => roff.text([bold(name), roman(format!("  {meaning}"))]),
            None => roff.text([roman(line)]),
        };
    }
    roff.control("fi", []);
    roff.to_writer(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_and_command_has_a_page_with_its_options_and_exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for (page, parts) in [
            ("bootcast.1", &["bootcast\\-get(1)", ".SH \"EXIT CODES\"", ".SH EXAMPLES"][..]),
            ("bootcast-get.1", &["\\-\\-decompress", ".SH \"EXIT CODES\""]),
            ("bootcast-cache-warm.1", &["\\-\\-cache\\-size"]),
            ("bootcastfs.8", &[".SH \"MOUNT OPTIONS\"", "\\fBattr_ttl=TIME\\fR", "/ETC/FSTAB"]),
            ("bootcast-urlmount.8", &["fill=demand", ".SH \"EXIT CODES\""]),
            ("bootcast-server.8", &["\\-\\-state\\-dir", "BOOTCAST_RATE"]),
            ("bootcast-server-hash.8", &["b3sum"]),
        ] {
            let text = read(&format!("man/{page}"));
            for part in parts {
                assert!(text.contains(part), "{page} has no {part}:\n{text}");
            }
        }
        assert!(read("completions/bootcast.bash").contains("--decompress"));
        assert!(read("completions/_bootcastfs").contains("--replace"));
        assert!(read("completions/bootcast-server.fish").contains("prehash"));
    }
}
