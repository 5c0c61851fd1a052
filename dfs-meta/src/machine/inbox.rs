//! Where requests wait for their turn, and where the turns are taken: at most one group is being committed while the
//! next one runs.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::job::Job;

/// Jobs that one group runs, when more wait and it could be committed already.
const ROUND: usize = 256;

/// The queue before the machine. Its length is bounded by the permits that [`super::Handle`] gives out.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// A group is being committed.
    committing: bool,
    /// Whoever waits in `next` waits for that commit too.
    waits_for_commit: bool,
    /// Nothing is accepted any more.
    closed: bool,
    /// And nothing that was accepted is run.
    failed: bool,
}

/// What the machine is to do next.
pub(super) enum Next {
    /// Run this.
    Run(Job),
    /// Commit the group: nobody else is committing, and nobody else may until `committed` is called.
    Commit,
    /// Everything is done, or nothing can be done any more, and nothing will come.
    Stop,
}

/// What `next` must know of the group that is being gathered.
pub(super) struct Gathered {
    /// It has something to commit.
    pub(super) pending: bool,
    /// It takes no more.
    pub(super) full: bool,
    /// How many jobs ran since it began.
    pub(super) ran: usize,
}

impl Inbox {
    /// Queues a job; gives it back when the machine has stopped.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let mut state = self.lock();
        if state.closed {
            return Err(job);
        }
        state.jobs.push_back(job);
        if state.jobs.len() == 1 {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Waits for something to do.
    pub(super) fn next(&self, group: Gathered) -> Next {
        let mut state = self.lock();
        loop {
            if state.failed {
                return Next::Stop;
            }
            let enough = state.jobs.is_empty() || group.full || group.ran >= ROUND;
            if group.pending && !state.committing && enough {
                state.committing = true;
                return Next::Commit;
            }
            if !group.full
                && let Some(job) = state.jobs.pop_front()
            {
                return Next::Run(job);
            }
            if state.closed && !group.pending && !state.committing && state.jobs.is_empty() {
                return Next::Stop;
            }
            state.waits_for_commit = group.pending || state.closed;
            state = self.changed.wait(state).expect(POISONED);
        }
    }

    /// The commit that `next` ordered is done.
    pub(super) fn committed(&self) {
        let mut state = self.lock();
        state.committing = false;
        if state.waits_for_commit {
            self.changed.notify_one();
        }
    }

    /// Accepts nothing more; what is queued still runs.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Accepts nothing more and drops what is queued.
    pub(super) fn fail(&self) {
        let dropped = {
            let mut state = self.lock();
            (state.closed, state.failed) = (true, true);
            std::mem::take(&mut state.jobs)
        };
        self.changed.notify_all();
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }
}

const POISONED: &str = "nothing panics while it holds the inbox";
