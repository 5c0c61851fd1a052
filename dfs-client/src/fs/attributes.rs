//! setattr: chmod, chown, truncate and utimens in one.

use dfs_proto::meta::{SetAttr, request};
use dfs_proto::{Attr, Code, Failure, Ino};

use super::{FileSystem, answers};
use crate::session::MetaCalls;

impl FileSystem {
    /// Changes every attribute that is present. What is dirty in the file is committed first, so that no later
    /// commit undoes the change.
    pub async fn setattr(&self, set: SetAttr) -> Result<Attr, Failure> {
        self.writable()?;
        let ino = Ino(set.ino);
        self.mounted.inodes.usable(ino)?;
        if let Some(open) = self.mounted.inodes.get(ino) {
            match (open.flush().await, set.size, &open.data) {
                (Ok(()), _, _) => {}
                // No room for what truncating would throw away: it need not be written at all.
                (Err(failure), Some(size), Some(data)) if failure.code == Code::NoSpace => {
                    data.discard_from(size);
                    open.flush().await?;
                }
                (Err(failure), _, _) => return Err(failure),
            }
        }
        let sets_atime = set.atime.is_some();
        let attr = answers::attr(self.session.change(request::Op::SetAttr(set)).await?)?;
        if sets_atime {
            self.mounted.inodes.forget_access(ino);
        }
        Ok(self.changed(attr))
    }
}
