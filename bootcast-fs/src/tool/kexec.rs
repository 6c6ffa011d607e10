//! `bootcast kexec`: starts another kernel. A first stage that is small has no kexec(8), which on
//! Debian brings libraries of Xen.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};

use super::error::ToolError;
use super::sys;

/// Arguments of `bootcast kexec`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Kernel to start
    kernel: PathBuf,

    /// Its initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// Its command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: OsString,
}

/// Starts the kernel. Returns only if that fails.
pub(super) fn run(args: Args) -> Result<(), ToolError> {
    let kernel = open(&args.kernel)?;
    let initrd = args.initrd.as_deref().map(open).transpose()?;
    let append = CString::new(args.append.into_vec())
        .map_err(|_| ToolError::Usage("--append has a zero byte".into()))?;
    sys::kexec_file_load(kernel.as_fd(), initrd.as_ref().map(File::as_fd), &append)
        .map_err(|error| ToolError::Local(refusal(&error)))?;
    reboot(RebootCommand::Kexec)
        .map_err(|error| ToolError::Local(format!("cannot start the loaded kernel: {error}")))
}

fn open(path: &Path) -> Result<File, ToolError> {
    File::open(path).map_err(|error| ToolError::local(path, &error))
}

/// Says why the running kernel does not load another one (`kernel/kexec_file.c`), and what to do.
fn refusal(error: &io::Error) -> String {
    let what = match Errno::from_io_error(error) {
        Some(Errno::PERM) => {
            "the running kernel forbids it: it takes root, kernel.kexec_load_disabled=0 and, with \
             Secure Boot or lockdown=, a kernel that is signed for it"
        }
        Some(Errno::KEYREJECTED | Errno::NOKEY | Errno::BADMSG | Errno::NODATA | Errno::NOPKG) => {
            "its signature does not count for the running kernel: take a kernel that is signed for \
             it, or turn Secure Boot off"
        }
        Some(Errno::NOSYS) => "the running kernel was built without CONFIG_KEXEC_FILE",
        Some(Errno::NOEXEC | Errno::INVAL) => "it is no kernel for this machine",
        Some(Errno::NOMEM | Errno::ADDRNOTAVAIL) => "too little memory for it",
        _ => return error.to_string(),
    };
    format!("{what} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_kernel_is_one_line_with_the_errno() {
        for errno in [Errno::PERM, Errno::KEYREJECTED, Errno::NOSYS, Errno::NOEXEC, Errno::IO] {
            let text = refusal(&errno.into());
            assert!(text.contains(&format!("os error {}", errno.raw_os_error())), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let args = Args { kernel: "/nowhere/vmlinuz".into(), initrd: None, append: "".into() };
        let error = run(args).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("/nowhere/vmlinuz: "), "{error}");
    }
}
