//! Exit codes.

/// Done as asked.
pub(super) const DONE: u8 = 0;
/// Tried and failed; the message says why.
pub(super) const FAILED: u8 = 1;
/// The arguments do not fit.
pub(super) const USAGE: u8 = 2;
/// A file the user named is missing, unreadable or not what it should be.
pub(super) const INPUT: u8 = 3;
/// No API server answers, or it refused the credentials.
pub(super) const UNREACHABLE: u8 = 4;
/// The deadline passed before the wish came true; it may still do.
pub(super) const TIMEOUT: u8 = 5;
/// The node could not start: a port, the data directory, the disk.
pub(super) const NODE: u8 = 6;
/// The cluster refused the join: token, name or certificate.
pub(super) const JOIN: u8 = 7;
/// Nobody reads stdout any more. It is what a shell shows of a program that SIGPIPE ended, as it
/// ends kubectl: Rust programs ignore that signal and get an error from the write instead.
pub(super) const READER_GONE: u8 = 128 + 13;

/// Why the command failed: an exit code and one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    /// One of this module's codes.
    pub(super) code: u8,
    /// What was attempted, why it failed, what to do. Empty: there is nobody to tell.
    pub(super) message: String,
}

impl Failure {
    /// With [`FAILED`].
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }

    /// With `code`.
    pub(super) fn with(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// With [`READER_GONE`]: ends the program without a word.
    pub(super) fn reader_gone() -> Self {
        Self { code: READER_GONE, message: String::new() }
    }
}
