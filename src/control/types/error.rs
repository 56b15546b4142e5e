//! The error of every operation.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of failure and their HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The request makes no sense: 400.
    BadRequest,
    /// What was asked for is taken, in use, or in a state that forbids it: 409.
    Conflict,
    /// The agent failed where it should not: 500.
    Internal,
    /// The path exists, the method does not: 405.
    MethodNotAllowed,
    /// No such network, endpoint, host, namespace: 404.
    NotFound,
    /// The request is larger than the agent takes: 413.
    TooLarge,
    /// The agent could, but the store (or another part it needs) is away: 503.
    Unavailable,
    /// This agent does not know the operation: 501.
    Unsupported,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: &'static [Self] = &[
        Self::BadRequest,
        Self::Conflict,
        Self::Internal,
        Self::MethodNotAllowed,
        Self::NotFound,
        Self::TooLarge,
        Self::Unavailable,
        Self::Unsupported,
    ];

    /// The stable name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Conflict => "conflict",
            Self::Internal => "internal",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotFound => "not_found",
            Self::TooLarge => "too_large",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
        }
    }

    /// The HTTP status that an answer with this code has.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Conflict => 409,
            Self::Internal => 500,
            Self::MethodNotAllowed => 405,
            Self::NotFound => 404,
            Self::TooLarge => 413,
            Self::Unavailable => 503,
            Self::Unsupported => 501,
        }
    }
}

/// Why an operation failed: what, why, and the next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The kind of failure, one of [`ErrorCode`]'s names; a newer agent may have more.
    pub code: String,
    /// What failed, one clause in lower case without a full stop.
    pub message: String,
    /// Why, where more is known than the message says.
    #[serde(default)]
    pub cause: Option<String>,
    /// What to do next.
    #[serde(default)]
    pub next_step: Option<String>,
}

impl Error {
    /// An error with a message only.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: code.name().to_owned(), message: message.into(), cause: None, next_step: None }
    }

    /// [`ErrorCode::BadRequest`].
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// [`ErrorCode::Conflict`].
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, message)
    }

    /// [`ErrorCode::Internal`].
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// [`ErrorCode::NotFound`].
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// [`ErrorCode::Unavailable`].
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// [`ErrorCode::Unsupported`].
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unsupported, message)
    }

    /// Adds why.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = Some(next_step.into());
        self
    }

    /// Whether the error is of this kind.
    #[must_use]
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.name()
    }

    /// The HTTP status of an answer with this error; 500 for a code that this program does not know.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        let known = ErrorCode::ALL.iter().find(|code| self.is(**code));
        known.copied().unwrap_or(ErrorCode::Internal).http_status()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_have_names_of_their_own_and_keep_their_status() {
        let names: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(Error::new(*code, "x").http_status(), code.http_status());
        }
    }

    #[test]
    fn a_code_of_a_newer_agent_is_kept() {
        let text = r#"{"code":"quota","message":"m","more":1}"#;
        let error: Error = serde_json::from_str(text).unwrap();
        assert_eq!((error.code.as_str(), error.http_status()), ("quota", 500));
    }
}
