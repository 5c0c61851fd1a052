//! Repeats attempts at a request until it is settled: answered, refused, or out of time.
//!
//! Guarantees that a changing request takes effect at most once: it keeps its slot and number over all attempts, and
//! once its session is over it is sent again under the next one only if the old one surely did not carry it out.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use dfs_proto::meta::{CloseSession, Reply, Request, reply, request};
use dfs_proto::{Code, Failure};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::door::Missed;
use super::keeper::{Incarnation, Phase};
use super::slots::SlotLease;
use super::{CLOSE_PATIENCE, Core};

/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Reading,
    Changing,
}

/// A changing request's place: under which session it was numbered, and as what.
struct Place {
    incarnation: Arc<Incarnation>,
    lease: SlotLease,
    number: u64,
    /// Sent, and no answer came: it may have been carried out.
    in_doubt: bool,
}

/// Growing pauses with some randomness, without end.
pub(super) fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

pub(crate) fn task_lost(error: &tokio::task::JoinError) -> Failure {
    Failure::new(Code::InputOutput, format!("a request was given up because the program ends: {error}"))
}

impl Core {
    pub(super) async fn settle(&self, op: request::Op, kind: Kind) -> Result<reply::Result, Failure> {
        let deadline = self.settings.timeout.map(|timeout| Instant::now() + timeout);
        let mut pauses = pauses();
        let mut place: Option<Place> = None;
        let mut last: Option<Failure> = None;
        loop {
            let incarnation = match self.ready(deadline).await {
                Some(ready) => ready?,
                None => return Err(self.out_of_time(last)),
            };
            let mut request = self.request(&incarnation, op.clone());
            if kind == Kind::Changing {
                if let Some(old) = place.take_if(|place| !Arc::ptr_eq(&place.incarnation, &incarnation))
                    && old.in_doubt
                {
                    return Err(in_doubt());
                }
                self.allowed(&op)?;
                if place.is_none() {
                    let Some(lease) = within(deadline, incarnation.slots.take()).await else {
                        return Err(self.out_of_time(last));
                    };
                    // Others may have gone on meanwhile: look again whether the session is still this one.
                    place = Some(Place { incarnation, lease, number: 0, in_doubt: false });
                    continue;
                }
                let place = place.as_mut().expect("just set");
                if place.number == 0 {
                    place.number = place.lease.next_number();
                }
                request.slot = place.lease.index();
                request.number = place.number;
            }
            let session = (request.session, request.epoch);
            match self.door.call(request).await {
                Ok(reply) => {
                    self.note_answer(&reply);
                    let failure = match reply.result {
                        Some(reply::Result::Error(error)) => Failure::from(error),
                        Some(result) => return Ok(result),
                        None => {
                            return Err(Failure::new(
                                Code::VersionUnknown,
                                "an answer this program does not know",
                            ));
                        }
                    };
                    match failure.code {
                        Code::SessionExpired => {
                            self.note_expired(session);
                            // Answered under a dead session: this attempt did nothing, an earlier one may have.
                            if place.take().is_some_and(|place| place.in_doubt) {
                                return Err(in_doubt());
                            }
                        }
                        Code::Grace | Code::Unavailable => {
                            // "Not now", which the server may remember as the number's answer: ask under a fresh
                            // one, unless an attempt before this may have been carried out under the old.
                            if let Some(place) = place.as_mut().filter(|place| !place.in_doubt) {
                                place.number = 0;
                            }
                        }
                        _ => return Err(failure),
                    }
                    last = Some(failure);
                }
                Err(Missed::Refused(failure)) => return Err(failure),
                Err(missed) => {
                    if let (Missed::InDoubt(_), Some(place)) = (&missed, &mut place) {
                        place.in_doubt = true;
                    }
                    last = Some(missed.failure().clone());
                }
            }
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            if within(deadline, sleep(pause)).await.is_none() {
                return Err(self.out_of_time(last));
            }
        }
    }

    /// The session as it is, once nothing has to be mended. `None`: out of time.
    async fn ready(&self, deadline: Option<Instant>) -> Option<Result<Arc<Incarnation>, Failure>> {
        let mut state = self.state.subscribe();
        let ready = within(deadline, state.wait_for(|state| !matches!(state.phase, Phase::Mending))).await?;
        let state = ready.expect("the sender lives in self");
        Some(match &state.phase {
            Phase::Broken(failure) => Err(failure.clone()),
            Phase::Ready | Phase::Mending => Ok(state.incarnation.clone()),
        })
    }

    pub(super) fn request(&self, incarnation: &Incarnation, op: request::Op) -> Request {
        Request {
            session: incarnation.session,
            epoch: incarnation.epoch,
            slot: 0,
            number: 0,
            cluster: self.cluster.to_bytes(),
            op: Some(op),
        }
    }

    fn allowed(&self, op: &request::Op) -> Result<(), Failure> {
        match self.holdings.get().and_then(std::sync::Weak::upgrade) {
            Some(holdings) => holdings.allows(op),
            None => Ok(()),
        }
    }

    fn out_of_time(&self, last: Option<Failure>) -> Failure {
        let why = last.map_or(String::new(), |failure| format!(": {failure}"));
        let seconds = self.settings.timeout.unwrap_or_default().as_secs();
        let names = self.door.names();
        Failure::new(
            Code::Unavailable,
            format!("the metadata server ({names}) could not do this within {seconds} s{why}"),
        )
    }

    pub(super) async fn close(&self) -> Result<(), Failure> {
        let incarnation = self.state.borrow().incarnation.clone();
        if timeout(CLOSE_PATIENCE, incarnation.slots.idle()).await.is_err() {
            tracing::warn!("requests to the metadata server are still under way while the session ends");
        }
        // From here on its end is no news.
        self.stop.cancel();
        let request = self.request(&incarnation, request::Op::CloseSession(CloseSession {}));
        let deadline = Instant::now() + CLOSE_PATIENCE;
        let mut pauses = pauses();
        loop {
            let last = match self.door.call(request.clone()).await {
                Ok(Reply { result: Some(reply::Result::Error(error)), .. }) => match Failure::from(error) {
                    // An attempt before this did it, or it was over anyway.
                    failure if failure.code == Code::SessionExpired => return Ok(()),
                    failure if failure.is_transient() => failure,
                    failure => return Err(failure),
                },
                Ok(_) => return Ok(()),
                Err(Missed::Refused(failure)) => return Err(failure),
                Err(missed) => missed.failure().clone(),
            };
            if within(Some(deadline), sleep(pauses.next().unwrap_or(LONGEST_PAUSE))).await.is_none() {
                return Err(Failure::new(
                    last.code,
                    format!("the metadata server was not told that the session ends: {last}"),
                ));
            }
        }
    }
}

fn in_doubt() -> Failure {
    Failure::new(
        Code::SessionExpired,
        "the session with the metadata server ended before it answered: the change may or may not have taken effect",
    )
}

/// Runs a future until the deadline, if there is one.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}
