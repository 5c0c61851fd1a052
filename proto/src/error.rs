//! One failure type for everything that crosses a process: a stable code and a sentence.
//!
//! Codes travel inside replies; a gRPC status only says that a request did not reach the one who could answer it.

use nix_errno as errno;

use crate::common::{self, Code};

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people: what failed and, where there is one, what to do.
    pub message: String,
}

/// errno values, by their names on Linux.
mod nix_errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const ENOENT: i32 = 2;
    pub(super) const EINTR: i32 = 4;
    pub(super) const EIO: i32 = 5;
    pub(super) const ENXIO: i32 = 6;
    pub(super) const E2BIG: i32 = 7;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const EEXIST: i32 = 17;
    pub(super) const EXDEV: i32 = 18;
    pub(super) const ENOTDIR: i32 = 20;
    pub(super) const EISDIR: i32 = 21;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EFBIG: i32 = 27;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
    pub(super) const EMLINK: i32 = 31;
    pub(super) const ERANGE: i32 = 34;
    pub(super) const EDEADLK: i32 = 35;
    pub(super) const ENAMETOOLONG: i32 = 36;
    pub(super) const ENOLCK: i32 = 37;
    pub(super) const ENOTEMPTY: i32 = 39;
    pub(super) const ELOOP: i32 = 40;
    pub(super) const ENODATA: i32 = 61;
    pub(super) const EOPNOTSUPP: i32 = 95;
    pub(super) const ESTALE: i32 = 116;
    pub(super) const ENOKEY: i32 = 126;
}

impl Failure {
    /// A failure with a sentence of its own.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The errno that a system call returns for this failure.
    pub fn errno(&self) -> i32 {
        match self.code {
            Code::Ok => 0,
            Code::NotFound => errno::ENOENT,
            Code::Exists => errno::EEXIST,
            Code::NotADirectory => errno::ENOTDIR,
            Code::IsADirectory => errno::EISDIR,
            Code::NotEmpty => errno::ENOTEMPTY,
            Code::NameTooLong => errno::ENAMETOOLONG,
            Code::Invalid => errno::EINVAL,
            Code::NotPermitted => errno::EPERM,
            Code::AccessDenied => errno::EACCES,
            Code::NoSpace | Code::NoAttributeSpace => errno::ENOSPC,
            Code::TooManyLinks => errno::EMLINK,
            Code::Loop => errno::ELOOP,
            Code::Stale => errno::ESTALE,
            Code::NoData => errno::ENODATA,
            Code::TooBig => errno::EFBIG,
            Code::ArgumentTooLong => errno::E2BIG,
            Code::NotSupported => errno::EOPNOTSUPP,
            Code::Busy => errno::EBUSY,
            Code::Locked => errno::EAGAIN,
            Code::Deadlock => errno::EDEADLK,
            Code::NoSuchDevice => errno::ENXIO,
            Code::ReadOnly => errno::EROFS,
            Code::CrossDevice => errno::EXDEV,
            Code::Range => errno::ERANGE,
            Code::Interrupted => errno::EINTR,
            Code::NoLocks => errno::ENOLCK,
            Code::NoKey => errno::ENOKEY,
            Code::InputOutput
            | Code::Corrupt
            | Code::Unavailable
            | Code::Grace
            | Code::SessionExpired
            | Code::WrongCluster
            | Code::ChunkRefused
            | Code::NodeRefused
            | Code::TooFewNodes
            | Code::VersionUnknown => errno::EIO,
        }
    }

    /// Whether the operation may succeed later without anything being wrong with it: by the same request, or for
    /// `TooFewNodes` by one that knows which nodes are back.
    pub fn is_transient(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Grace | Code::TooFewNodes)
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::new(code, code.as_str_name().to_ascii_lowercase().replace('_', " "))
    }
}

impl From<Failure> for common::Error {
    fn from(failure: Failure) -> Self {
        Self { code: failure.code.into(), message: failure.message }
    }
}

impl From<common::Error> for Failure {
    /// A code this program does not know reads as an input/output error, its number kept in the sentence.
    fn from(error: common::Error) -> Self {
        match Code::try_from(error.code) {
            Ok(Code::Ok) | Err(_) => {
                Self::new(Code::InputOutput, format!("{} (unknown code {})", error.message, error.code))
            }
            Ok(code) => Self::new(code, error.message),
        }
    }
}

impl From<tonic::Status> for Failure {
    /// A request that did not reach its server, or a stream that broke.
    fn from(status: tonic::Status) -> Self {
        let code = match status.code() {
            tonic::Code::DataLoss => Code::Corrupt,
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::ResourceExhausted => Code::NoSpace,
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::Invalid,
            tonic::Code::FailedPrecondition => Code::WrongCluster,
            tonic::Code::PermissionDenied => Code::NodeRefused,
            tonic::Code::Internal if status.message().is_empty() => Code::Unavailable,
            tonic::Code::Internal => Code::InputOutput,
            tonic::Code::Unimplemented => Code::VersionUnknown,
            _ => Code::Unavailable,
        };
        let message = if status.message().is_empty() {
            format!("the connection failed: {}", status.code())
        } else {
            status.message().to_owned()
        };
        Self::new(code, message)
    }
}

impl From<Failure> for tonic::Status {
    /// For streams, whose errors have no reply to travel in.
    fn from(failure: Failure) -> Self {
        let code = match failure.code {
            Code::Corrupt => tonic::Code::DataLoss,
            Code::NotFound => tonic::Code::NotFound,
            Code::NoSpace => tonic::Code::ResourceExhausted,
            Code::Invalid => tonic::Code::InvalidArgument,
            Code::WrongCluster => tonic::Code::FailedPrecondition,
            Code::NodeRefused | Code::SessionExpired => tonic::Code::PermissionDenied,
            Code::VersionUnknown => tonic::Code::Unimplemented,
            Code::Unavailable | Code::Grace => tonic::Code::Unavailable,
            _ => tonic::Code::Internal,
        };
        Self::new(code, failure.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for number in 0..128 {
            let Ok(code) = Code::try_from(number) else { continue };
            if code == Code::Ok {
                continue;
            }
            let failure = Failure::from(code);
            assert_ne!(failure.errno(), 0, "{code:?}");
            assert_eq!(Failure::from(common::Error::from(failure.clone())), failure);
        }
        let unknown = common::Error { code: 9999, message: "new".into() };
        assert_eq!(Failure::from(unknown).code, Code::InputOutput);
    }

    #[test]
    fn stream_errors_keep_what_the_reader_acts_on() {
        for code in [Code::Corrupt, Code::NotFound, Code::NoSpace, Code::WrongCluster, Code::Unavailable] {
            assert_eq!(Failure::from(tonic::Status::from(Failure::from(code))).code, code);
        }
    }
}
