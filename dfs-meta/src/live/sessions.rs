//! Who is there: which sessions exist, when each was heard of, where to tell it something, and the grace period after
//! a restart, in which sessions bring back what they had open and locked.
//!
//! A mirror of the store's session records plus what is not worth a disk write. Times are the machine's uptime, never
//! the wall clock, so that setting the clock fences nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dfs_proto::meta::{Event, Fenced, Hello, event};
use dfs_proto::{Code, Epoch, Failure, SessionId};
use tokio::sync::mpsc;

use crate::store::records;

/// Events that wait for a session to take them. One that lags further behind loses its stream, comes again, and asks
/// anew for what it waits for.
pub const EVENT_QUEUE: usize = 256;

/// Sessions' liveness.
#[derive(Default)]
pub struct SessionTable {
    sessions: BTreeMap<SessionId, Entry>,
    boot: u64,
    /// Sessions of the last run that have not completed their reclaim.
    unreclaimed: BTreeSet<SessionId>,
    /// No grace any more from here on.
    grace_end: Duration,
    last_expiry: Duration,
}

/// One session.
pub struct Entry {
    /// Requests with another one are refused.
    pub epoch: Epoch,
    /// For people.
    pub client: String,
    /// Of its program.
    pub version: String,
    /// The machine's uptime when it was last heard of.
    pub heard: Duration,
    events: Option<mpsc::Sender<Event>>,
}

impl SessionTable {
    /// The table of a server that starts for the `boot`th time: those in the store may reclaim until `grace`.
    pub fn load(
        boot: u64,
        stored: impl IntoIterator<Item = (SessionId, records::Session)>,
        grace: Duration,
    ) -> Self {
        let mut table = Self { boot, grace_end: grace, ..Self::default() };
        for (id, session) in stored {
            table.add(id, &session, Duration::ZERO);
            table.unreclaimed.insert(id);
        }
        table
    }

    /// How often this server was started.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// A session as its record says, heard of at `uptime`.
    pub fn add(&mut self, id: SessionId, session: &records::Session, uptime: Duration) {
        let entry = Entry {
            epoch: Epoch(session.epoch),
            client: session.client.clone(),
            version: session.version.clone(),
            heard: uptime,
            events: None,
        };
        self.sessions.insert(id, entry);
    }

    /// Forgets a session, after telling it why.
    pub fn remove(&mut self, id: SessionId, reason: &str) {
        self.notify(id, event::Event::Fenced(Fenced { reason: reason.into() }));
        self.sessions.remove(&id);
        self.unreclaimed.remove(&id);
    }

    /// Whether a request of this session may run. SESSION_EXPIRED.
    pub fn check(&self, id: SessionId, epoch: Epoch) -> Result<(), Failure> {
        match self.sessions.get(&id) {
            Some(entry) if entry.epoch == epoch => Ok(()),
            Some(entry) => Err(Failure::new(
                Code::SessionExpired,
                format!("session {id} is in epoch {}, the request came from epoch {epoch}", entry.epoch),
            )),
            None => Err(Failure::new(Code::SessionExpired, format!("session {id} is over"))),
        }
    }

    /// The session lives: any request of it says so.
    pub fn heard(&mut self, id: SessionId, uptime: Duration) {
        if let Some(entry) = self.sessions.get_mut(&id) {
            entry.heard = entry.heard.max(uptime);
        }
    }

    /// Whether there is such a session.
    pub fn contains(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id)
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Entry)> {
        self.sessions.iter().map(|(&id, entry)| (id, entry))
    }

    /// Tells a session something, if it listens. Never waits.
    pub fn notify(&mut self, id: SessionId, event: event::Event) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        let event = Event { boot: self.boot, event: Some(event) };
        if entry.events.as_ref().is_some_and(|events| events.try_send(event).is_err()) {
            entry.events = None;
        }
    }

    /// Opens the session's stream of events in place of an older one; it begins with a hello.
    pub fn watch(&mut self, id: SessionId, epoch: Epoch) -> Result<mpsc::Receiver<Event>, Failure> {
        self.check(id, epoch)?;
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        if let Some(entry) = self.sessions.get_mut(&id) {
            entry.events = Some(sender);
        }
        self.notify(id, event::Event::Hello(Hello {}));
        Ok(receiver)
    }

    /// Ends every stream of events: the server stops.
    pub fn end_watches(&mut self) {
        for entry in self.sessions.values_mut() {
            entry.events = None;
        }
    }

    /// Whether sessions of the last run may still bring back what they had: until then nothing is granted that could
    /// conflict with it (`Code::Grace`), and an inode's last name never takes the inode along.
    pub fn in_grace(&self, uptime: Duration) -> bool {
        !self.unreclaimed.is_empty() && uptime < self.grace_end
    }

    /// Whether this session may reclaim: it lived through a restart and has not completed its reclaim.
    pub fn may_reclaim(&self, id: SessionId, uptime: Duration) -> bool {
        self.in_grace(uptime) && self.unreclaimed.contains(&id)
    }

    /// The session has brought back everything.
    pub fn reclaimed(&mut self, id: SessionId) {
        self.unreclaimed.remove(&id);
    }

    /// Up to `limit` sessions that were not heard of for `timeout`. When this server itself stood still for a while (a
    /// suspended machine, a slow disk), it has not listened, so that time counts for nobody.
    pub fn silent(&mut self, uptime: Duration, timeout: Duration, limit: usize) -> Vec<SessionId> {
        let deaf = uptime.saturating_sub(self.last_expiry);
        self.last_expiry = uptime;
        if deaf > timeout / 2 {
            for entry in self.sessions.values_mut() {
                entry.heard = (entry.heard + deaf).min(uptime);
            }
        }
        let silent = self.sessions.iter().filter(|(_, entry)| uptime.saturating_sub(entry.heard) > timeout);
        silent.map(|(&id, _)| id).take(limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    fn record(epoch: u64) -> records::Session {
        records::Session { epoch, client: "test".into(), version: "1".into() }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_is_counted_only_while_somebody_listened() {
        let mut table = SessionTable::default();
        let (quiet, loud) = (SessionId(1), SessionId(2));
        table.add(quiet, &record(1), at(0));
        table.add(loud, &record(1), at(0));
        for second in 1..=20 {
            table.heard(loud, at(second));
            assert!(table.silent(at(second), TIMEOUT, 9).is_empty());
        }
        assert_eq!(table.silent(at(21), TIMEOUT, 9), [quiet]);
        // Deaf for a minute: whoever lived before gets its full timeout's rest again.
        table.remove(quiet, "gone");
        assert!(table.silent(at(81), TIMEOUT, 9).is_empty());
        for second in 82..=100 {
            assert!(table.silent(at(second), TIMEOUT, 9).is_empty(), "{second}");
        }
        assert_eq!(table.silent(at(101), TIMEOUT, 9), [loud]);
    }

    #[test]
    fn grace_ends_when_all_have_reclaimed_or_time_is_up() {
        let stored = [(SessionId(1), record(1)), (SessionId(2), record(1))];
        let mut table = SessionTable::load(7, stored.clone(), TIMEOUT);
        assert!(table.in_grace(at(19)) && !table.in_grace(at(20)));
        table.reclaimed(SessionId(1));
        assert!(!table.may_reclaim(SessionId(1), at(1)) && table.may_reclaim(SessionId(2), at(1)));
        table.remove(SessionId(2), "gone");
        assert!(!table.in_grace(at(1)));
        assert!(!SessionTable::load(1, [], TIMEOUT).in_grace(at(0)), "nobody to wait for");
    }

    #[test]
    fn a_watcher_is_told_and_one_that_lags_loses_its_stream() {
        let mut table = SessionTable::load(3, [(SessionId(1), record(4))], TIMEOUT);
        assert_eq!(table.watch(SessionId(1), Epoch(3)).unwrap_err().code, Code::SessionExpired);
        assert_eq!(table.watch(SessionId(9), Epoch(4)).unwrap_err().code, Code::SessionExpired);
        let mut events = table.watch(SessionId(1), Epoch(4)).unwrap();
        let hello = events.try_recv().unwrap();
        assert_eq!((hello.boot, hello.event), (3, Some(event::Event::Hello(Hello {}))));
        for _ in 0..=EVENT_QUEUE {
            table.notify(SessionId(1), event::Event::Hello(Hello {}));
        }
        for _ in 0..EVENT_QUEUE {
            events.try_recv().unwrap();
        }
        assert_eq!(events.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
        let mut events = table.watch(SessionId(1), Epoch(4)).unwrap();
        table.remove(SessionId(1), "too silent");
        assert!(matches!(events.try_recv().unwrap().event, Some(event::Event::Hello(_))));
        assert!(matches!(events.try_recv().unwrap().event, Some(event::Event::Fenced(_))));
    }
}
