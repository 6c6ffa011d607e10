//! What a mount shows: a directory of the server, or one file of it.

use std::fmt::Display;

use bootcast_proto::api::{Attributes, Kind};
use bootcast_proto::{ContentId, RemotePath};
use tracing::info;

use crate::fs::Pins;
use crate::io::{Control, ControlError};
use crate::mount::{MountError, MountRequest};

mod waiting;

pub(crate) use waiting::Search;

/// Root directory of a mount, and its pinned files.
#[derive(Debug)]
pub(crate) struct Root {
    /// Path of the directory on the server.
    pub(crate) path: RemotePath,
    /// Attributes of the directory; `None` on a plain server.
    pub(crate) attributes: Option<Attributes>,
    /// The only files that may be opened, with their contents; `None` for all files.
    pub(crate) pins: Option<Pins>,
    /// Whether the attributes are those that the cache remembers, because the server is away.
    pub(crate) is_remembered: bool,
}

/// Reason why a root was not found.
#[derive(Debug)]
enum RootError {
    /// The server does not answer, or cannot answer now. It may later.
    Away(ControlError),
    /// Another attempt would have the same result.
    Failed(MountError),
}

impl From<MountError> for RootError {
    fn from(error: MountError) -> Self {
        Self::Failed(error)
    }
}

impl From<ControlError> for RootError {
    fn from(error: ControlError) -> Self {
        if error.is_temporary() { Self::Away(error) } else { MountError::failed(&error).into() }
    }
}

impl Root {
    /// Requests the attributes of what the mount's source names, once. Reads the list of pinned
    /// files.
    async fn ask(control: &Control, request: &MountRequest) -> Result<Self, RootError> {
        let MountRequest { source, options, .. } = request;
        if options.is_single_file() {
            return single_file(control, &source.path, options.b3).await;
        }
        let attributes = find_directory(control, &source.path).await?;
        let pins = read_pins(request)?;
        if pins.is_some() && attributes.is_none() {
            return Err(no_proofs("pins=").into());
        }
        Ok(Self { path: source.path.clone(), attributes, pins, is_remembered: false })
    }

    /// Returns the pinned files of a mount that another process began. Makes no request.
    pub(crate) fn pins_of(request: &MountRequest) -> Result<Option<Pins>, MountError> {
        match request.options.b3 {
            Some(id) => Ok(Some(Pins::single(request.source.path.clone(), id))),
            None => read_pins(request),
        }
    }

    /// Returns the only path that a mount shows; `None` if it shows the whole directory.
    pub(crate) fn only_of(request: &MountRequest) -> Option<RemotePath> {
        request.options.is_single_file().then(|| request.source.path.clone())
    }

    /// Asks the server once whether the mount of this request could begin.
    pub(crate) async fn check(control: &Control, request: &MountRequest) -> Result<(), MountError> {
        match Self::ask(control, request).await {
            Ok(_) => Ok(()),
            Err(RootError::Failed(error)) => Err(error),
            Err(RootError::Away(error)) => Err(MountError::failed(&error)),
        }
    }
}

/// Reads the list of pinned files, if the mount has one.
fn read_pins(request: &MountRequest) -> Result<Option<Pins>, MountError> {
    let pins = request.options.pins.as_ref().map(|file| {
        let failed = |error: &dyn Display| {
            MountError::failed(&format!("cannot use pins={}: {error}", file.display()))
        };
        let text = std::fs::read(file).map_err(|error| failed(&error))?;
        Pins::parse(&text, &request.source.path).map_err(|error| failed(&error))
    });
    pins.transpose()
}

/// Checks that `file` is a regular file. The root is the directory around it.
async fn single_file(
    control: &Control,
    file: &RemotePath,
    id: Option<ContentId>,
) -> Result<Root, RootError> {
    let server = control.server();
    let fault = match control.attributes(file).await {
        Ok(attributes) => match (attributes.kind, file.parent()) {
            (Kind::File, Some(directory)) => {
                let attributes = find_directory(control, &directory).await?;
                let pins = id.map(|id| Pins::single(file.clone(), id));
                return Ok(Root { path: directory, attributes, pins, is_remembered: false });
            }
            (Kind::File, None) | (Kind::Directory, _) => {
                format!(
                    "{file} is a directory on {server}: b3= and -o file need a file, pins= a \
                     directory"
                )
            }
            (Kind::Symlink, _) => {
                format!("{file} is a symbolic link on {server}: name the file that it leads to")
            }
            (Kind::Other, _) => format!("{file} is not a regular file on {server}"),
        },
        Err(error) if error.is_not_found() => {
            if is_plain(control).await? {
                return Err(match id {
                    Some(_) => no_proofs("b3="),
                    None => MountError::failed(&format!(
                        "{server} does not tell the size of {file}: -o file needs bootcast-server"
                    )),
                }
                .into());
            }
            format!("no file {file} on {server}")
        }
        Err(error) => return Err(error.into()),
    };
    Err(MountError::failed(&fault).into())
}

/// Requests the attributes of a directory. Returns `None` from a plain server.
async fn find_directory(
    control: &Control,
    path: &RemotePath,
) -> Result<Option<Attributes>, RootError> {
    let server = control.server();
    control.watch_space_of(path);
    let fault = match control.attributes(path).await {
        Ok(attributes) if attributes.kind == Kind::Directory => return Ok(Some(attributes)),
        Ok(attributes) if attributes.kind == Kind::File => format!(
            "{path} is a file on {server}: mount its directory, or the file alone with -o file or \
             b3=HASH"
        ),
        Ok(_) => format!("{path} is not a directory on {server}"),
        Err(error) if error.is_not_found() => {
            if is_plain(control).await? {
                info!("a plain server, without listings: files appear when they are opened");
                return Ok(None);
            }
            format!("no directory {path} on {server}")
        }
        Err(error) => return Err(error.into()),
    };
    Err(MountError::failed(&fault).into())
}

/// Whether the server knows only the base protocol: it has no attributes of its directory.
async fn is_plain(control: &Control) -> Result<bool, RootError> {
    match control.attributes(&RemotePath::root()).await {
        Ok(_) => Ok(false),
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Creates the error of an option that only a server with manifests serves.
fn no_proofs(option: &str) -> MountError {
    MountError::failed(&format!(
        "a plain server cannot prove files: {option} needs a server with manifests"
    ))
}
