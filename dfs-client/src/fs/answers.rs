//! Takes the answer that an operation has out of a reply. Another kind of answer is a server of another version: an
//! error, never a guess.

use dfs_proto::meta::{Copied, DirectoryPage, FsStats, LockState, Opened, reply::Result as Answer};
use dfs_proto::{Attr, Code, Failure};

fn unexpected<T>(what: &str) -> Result<T, Failure> {
    let message = format!("the metadata server answered with something else than {what}");
    Err(Failure::new(Code::VersionUnknown, message))
}

macro_rules! answers {
    ($($name:ident, $kind:ident, $type:ty, $what:literal;)*) => {
        $(pub(super) fn $name(answer: Answer) -> Result<$type, Failure> {
            match answer {
                Answer::$kind(value) => Ok(value),
                _ => unexpected($what),
            }
        })*
    };
}

answers! {
    attr, Attr, Attr, "attributes";
    directory_page, DirectoryPage, DirectoryPage, "directory entries";
    fs_stats, FsStats, FsStats, "the filesystem's numbers";
    copied, Copied, Copied, "what was copied";
    lock_state, LockState, LockState, "a lock";
}

pub(super) fn value(answer: Answer) -> Result<bytes::Bytes, Failure> {
    match answer {
        Answer::Value(value) => Ok(value.value),
        _ => unexpected("a value"),
    }
}

pub(super) fn names(answer: Answer) -> Result<Vec<bytes::Bytes>, Failure> {
    match answer {
        Answer::Names(names) => Ok(names.names),
        _ => unexpected("names"),
    }
}

pub(super) fn offset(answer: Answer) -> Result<u64, Failure> {
    match answer {
        Answer::Offset(offset) => Ok(offset.offset),
        _ => unexpected("an offset"),
    }
}

/// For changes whose attributes matter where they come along.
pub(super) fn done_or_attr(answer: Answer) -> Result<Option<Attr>, Failure> {
    match answer {
        Answer::Done(_) => Ok(None),
        Answer::Attr(attr) => Ok(Some(attr)),
        _ => unexpected("attributes"),
    }
}

/// Opening and creating: the attributes are always there.
pub(super) fn opened(answer: Answer) -> Result<(Attr, Option<dfs_proto::meta::PlanReply>), Failure> {
    match answer {
        Answer::Opened(Opened { attr: Some(attr), plan }) => Ok((attr, plan)),
        Answer::Attr(attr) => Ok((attr, None)),
        _ => unexpected("an open file"),
    }
}
