//! Command line of a mount(8) helper: `mount.bootcastfs SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE]
//! [-o OPTIONS] [-t TYPE]`; see mount(8), "EXTERNAL HELPERS".

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Parser;

/// Arguments of a helper.
#[derive(Parser, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of mount(8)")]
#[command(name = "mount.bootcastfs", version, max_term_width = 100)]
pub struct HelperArgs {
    /// Directory of a server, see bootcastfs --help
    pub source: OsString,

    /// Directory to mount on
    pub mountpoint: std::path::PathBuf,

    /// Mount options, separated by commas; can be given more than once
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<OsString>,

    /// Check the arguments and do not mount
    #[arg(short = 'f')]
    pub fake: bool,

    /// Ignore unknown options
    #[arg(short = 's')]
    pub sloppy: bool,

    /// Do not write /etc/mtab (never written)
    #[arg(short = 'n')]
    no_mtab: bool,

    /// Be verbose (no effect)
    #[arg(short = 'v')]
    verbose: bool,

    /// Type of the file system (no effect)
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,
}

/// Whether the program was started as a helper of mount(8), under a name such as
/// `/sbin/mount.bootcastfs`. A mark for a root file system may precede the name.
pub fn is_helper(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default().as_bytes();
    name.strip_prefix(b"@").unwrap_or(name).starts_with(b"mount.")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_name_of_the_program_makes_it_a_helper() {
        for (name, expected) in [
            ("/sbin/mount.bootcastfs", true),
            ("mount.fuse.bootcastfs", true),
            ("@mount.bootcastfs", true),
            ("/usr/local/bin/bootcastfs", false),
            ("/mount.d/bootcastfs", false),
            ("", false),
        ] {
            assert_eq!(is_helper(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn arguments_are_those_that_mount_8_passes() {
        HelperArgs::command().debug_assert();
        let options = "ro,x-systemd.automount";
        let line = format!("mount.bootcastfs head:/ /mnt -sfnv -o {options} -t fuse.bootcastfs");
        let args = HelperArgs::try_parse_from(line.split(' ')).unwrap();
        assert!(args.fake && args.sloppy);
        assert_eq!((args.source, args.options), ("head:/".into(), vec![options.into()]));
        let refused = HelperArgs::try_parse_from(["mount.bootcastfs", "head:/", "/mnt", "-N", "1"]);
        assert!(refused.is_err(), "another namespace must not be ignored");
    }
}
