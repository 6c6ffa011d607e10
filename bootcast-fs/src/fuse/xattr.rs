//! Answers to getxattr and listxattr. getxattr(2): a caller with a buffer of 0 bytes asks for the
//! size of the value.

use fuser::{Errno, ReplyXattr};

/// Answer to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The size of the value in bytes.
    Size(u32),
    /// The value.
    Value,
    /// ERANGE: the value does not fit.
    TooSmall,
}

/// Sends `value` to a caller with a buffer of `size` bytes.
pub(super) fn answer(reply: ReplyXattr, size: u32, value: &[u8]) {
    match answer_of(size, value) {
        Answer::Size(len) => reply.size(len),
        Answer::Value => reply.data(value),
        Answer::TooSmall => reply.error(Errno::ERANGE),
    }
}

fn answer_of(size: u32, value: &[u8]) -> Answer {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => Answer::Size(len),
        Ok(len) if len <= size => Answer::Value,
        Ok(_) | Err(_) => Answer::TooSmall,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_0_bytes_gets_the_size_and_one_that_is_too_small_an_error() {
        for (size, expected) in [
            (0, Answer::Size(3)),
            (1, Answer::TooSmall),
            (2, Answer::TooSmall),
            (3, Answer::Value),
            (u32::MAX, Answer::Value),
        ] {
            assert_eq!(answer_of(size, b"abc"), expected, "{size}");
        }
        assert_eq!(answer_of(0, b""), Answer::Size(0));
        assert_eq!(answer_of(1, b""), Answer::Value);
    }
}
