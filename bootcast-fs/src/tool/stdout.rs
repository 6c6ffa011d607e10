//! Prints short answers on standard output.

use std::io::{self, Write};

use serde::Serialize;

use super::error::ToolError;

/// Prints `bytes` unchanged.
pub(super) fn print(bytes: &[u8]) -> Result<(), ToolError> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(bytes).and_then(|()| stdout.flush());
    printed.map_err(|error| ToolError::stdout(&error))
}

/// Prints `value` as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), ToolError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| ToolError::stdout(&io::Error::other(error)))?;
    text.push(b'\n');
    print(&text)
}
