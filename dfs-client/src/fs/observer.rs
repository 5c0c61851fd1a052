//! What one mount knows of its inodes, and the eyes that see every answer with attributes pass, also those to the
//! data plane's own calls.
//!
//! `Mounted` is what the session asks about what is open and locked. `Observed` is the metadata server as the data
//! plane sees it: the same calls, with the attributes in the answers noted on the way.

use std::sync::Arc;

use dfs_proto::meta::{Commit, Committed, FileCommit, FileResult, HeldLock, PlanReply, reply, request};
use dfs_proto::{Attr, Code, Failure, Ino};
use futures::future::BoxFuture;

use super::Invalidate;
use super::inodes::Inodes;
use super::locks::Locks;
use super::versions::Versions;
use crate::session::{Holdings, MetaCalls};

pub(super) struct Mounted {
    pub(super) inodes: Arc<Inodes>,
    pub(super) locks: Locks,
    pub(super) versions: Versions,
    invalidate: Option<Invalidate>,
}

impl Mounted {
    pub(super) fn new(invalidate: Option<Invalidate>) -> Arc<Self> {
        Arc::new(Self {
            inodes: Arc::default(),
            locks: Locks::default(),
            versions: Versions::new(),
            invalidate,
        })
    }

    /// Attributes after a change of our own that the kernel took part in, as they are shown.
    pub(super) fn changed(&self, attr: Attr) -> Attr {
        self.versions.changed(&attr);
        self.seen(attr, None)
    }

    /// Attributes from the server, as they are shown. Where they tell of somebody else's change to an inode that is
    /// open here, the kernel's pages of it go soon.
    pub(super) fn seen(&self, attr: Attr, head: Option<PlanReply>) -> Attr {
        self.check_pages(&attr);
        self.inodes.show(attr, head)
    }

    /// The kernel's pages of an inode go soon.
    pub(super) fn drop_pages(&self, ino: Ino) {
        if let Some(invalidate) = &self.invalidate {
            tokio::spawn(invalidate(ino));
        }
    }

    fn check_pages(&self, attr: &Attr) {
        let ino = Ino(attr.ino);
        if self.inodes.get(ino).is_some() && self.versions.is_news(attr) {
            self.drop_pages(ino);
        }
    }

    /// As [`Self::seen`], but the kernel's stale pages are gone when it returns.
    pub(super) async fn revalidate(&self, attr: Attr) -> Attr {
        let ino = Ino(attr.ino);
        let news = self.versions.is_news(&attr);
        let shown = self.inodes.show(attr, None);
        if news && let Some(invalidate) = &self.invalidate {
            invalidate(ino).await;
        }
        shown
    }

    fn observe(&self, answer: &reply::Result) {
        match answer {
            reply::Result::Committed(committed) => {
                for attr in committed.files.iter().filter_map(|file| file.attr.as_ref()) {
                    self.versions.changed(attr);
                    self.check_pages(attr);
                    if let Some(open) = self.inodes.get(Ino(attr.ino)) {
                        open.note_committed(attr);
                    }
                }
            }
            reply::Result::Plan(PlanReply { attr: Some(attr), .. }) => self.check_pages(attr),
            _ => {}
        }
    }
}

impl Holdings for Mounted {
    fn open_inos(&self) -> Vec<Ino> {
        self.inodes.open_inos()
    }

    fn locks(&self) -> Vec<HeldLock> {
        self.locks.held()
    }

    fn not_reclaimed(&self, gone: &[Ino], lost: &[HeldLock]) {
        if !gone.is_empty() {
            tracing::warn!("{} open files are gone since the metadata server's restart", gone.len());
        }
        for ino in lost.iter().map(|lock| Ino(lock.ino)) {
            if self.locks.forget(ino) {
                tracing::error!("a lock on inode {ino} was lost in the metadata server's restart");
                self.inodes.lose(ino);
            }
        }
    }

    fn session_lost(&self) {
        let lost = self.locks.forget_all();
        if !lost.is_empty() {
            tracing::error!(
                "locks on {} files were lost with the session; what was not durable in them is lost",
                lost.len()
            );
        }
        for ino in lost {
            self.inodes.lose(ino);
        }
        self.locks.wake(None);
    }

    fn unlocked(&self, ino: Option<Ino>) {
        self.locks.wake(ino);
    }

    fn allows(&self, op: &request::Op) -> Result<(), Failure> {
        let usable = |ino: u64| self.inodes.usable(Ino(ino));
        match op {
            request::Op::Commit(commit) => {
                commit.files.iter().map(|FileCommit { ino, .. }| *ino).try_for_each(usable)
            }
            request::Op::SetAttr(set) => usable(set.ino),
            request::Op::Fallocate(allocate) => usable(allocate.ino),
            request::Op::CopyRange(copy) => usable(copy.source).and_then(|()| usable(copy.target)),
            _ => Ok(()),
        }
    }
}

/// The metadata server as the data plane sees it.
pub(super) struct Observed {
    meta: Arc<dyn MetaCalls>,
    mounted: Arc<Mounted>,
}

impl Observed {
    pub(super) fn new(meta: Arc<dyn MetaCalls>, mounted: Arc<Mounted>) -> Self {
        Self { meta, mounted }
    }
}

impl MetaCalls for Observed {
    fn read(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
        Box::pin(async move {
            let answer = self.meta.read(op).await?;
            self.mounted.observe(&answer);
            Ok(answer)
        })
    }

    fn change(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
        Box::pin(async move {
            let answer = match op {
                request::Op::Commit(commit) => self.commit(commit).await?,
                op => self.meta.change(op).await?,
            };
            self.mounted.observe(&answer);
            Ok(answer)
        })
    }
}

impl Observed {
    /// Commits what may be committed: a file whose lock was lost must not take others of the same commit along.
    async fn commit(&self, commit: Commit) -> Result<reply::Result, Failure> {
        loop {
            let lost = |file: &FileCommit| self.mounted.inodes.usable(Ino(file.ino)).is_err();
            let refused: Vec<bool> = commit.files.iter().map(lost).collect();
            let mut allowed = commit.clone();
            let mut is_refused = refused.iter();
            allowed.files.retain(|_| is_refused.next() != Some(&true));
            let answer = match allowed.files.is_empty() {
                true => Ok(reply::Result::Committed(Committed::default())),
                false => self.meta.change(request::Op::Commit(allowed.clone())).await,
            };
            match answer {
                Ok(reply::Result::Committed(mut committed)) => {
                    for (at, _) in refused.iter().enumerate().filter(|(_, refused)| **refused) {
                        let result = FileResult { code: Code::InputOutput.into(), ..Default::default() };
                        committed.files.insert(at.min(committed.files.len()), result);
                    }
                    return Ok(reply::Result::Committed(committed));
                }
                // Refused as a whole, unsent, because another of its locks was lost meanwhile.
                Err(failure) if failure.code == Code::InputOutput && allowed.files.iter().any(lost) => {}
                answer => return answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Says yes to every commit, and remembers which files it held.
    #[derive(Default)]
    struct Yes(Mutex<Vec<Vec<u64>>>);

    impl MetaCalls for Yes {
        fn read(&self, _op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
            unreachable!("only commits are sent")
        }

        fn change(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
            let request::Op::Commit(commit) = op else { unreachable!("only commits are sent") };
            let inos: Vec<u64> = commit.files.iter().map(|file| file.ino).collect();
            let attr = |ino| Some(Attr { ino, ..Default::default() });
            let files =
                inos.iter().map(|ino| FileResult { attr: attr(*ino), ..Default::default() }).collect();
            self.0.lock().unwrap().push(inos);
            Box::pin(async move { Ok(reply::Result::Committed(Committed { files })) })
        }
    }

    #[tokio::test]
    async fn a_file_whose_lock_was_lost_is_not_committed_and_takes_no_other_along() {
        let mounted = Mounted::new(None);
        let (entered, _) = mounted.inodes.enter(Ino(5)).await;
        mounted.inodes.admit(&entered, Attr { ino: 5, ..Default::default() }, None, |_, _| None);
        mounted.inodes.lose(Ino(5));
        let meta = Arc::new(Yes::default());
        let observed = Observed::new(meta.clone(), mounted);
        for (inos, sent) in [(&[4, 5, 6][..], vec![vec![4, 6]]), (&[5], vec![]), (&[5, 5, 7], vec![vec![7]])]
        {
            let files = inos.iter().map(|ino| FileCommit { ino: *ino, ..Default::default() }).collect();
            let commit = Commit { files, ..Default::default() };
            let answer = observed.change(request::Op::Commit(commit)).await.unwrap();
            let reply::Result::Committed(committed) = answer else { panic!("not committed: {answer:?}") };
            let results: Vec<_> = committed
                .files
                .iter()
                .map(|file| (file.code(), file.attr.as_ref().map(|attr| attr.ino)))
                .collect();
            let expected: Vec<_> = inos
                .iter()
                .map(|ino| if *ino == 5 { (Code::InputOutput, None) } else { (Code::Ok, Some(*ino)) })
                .collect();
            assert_eq!(results, expected);
            assert_eq!(std::mem::take(&mut *meta.0.lock().unwrap()), sent);
        }
    }
}
