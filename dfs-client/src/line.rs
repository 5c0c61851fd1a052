//! Calls over one long stream: each message bears a tag, answers come in any order. A stream of its own for each call would
//! cost more than most calls themselves.
//!
//! The stream is opened when it is first needed and again after it broke. A call that was under way then is lost: nobody knows
//! whether it was carried out. Deadlines are the caller's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Messages that wait to be sent; more wait with their callers.
const MAX_QUEUED: usize = 64;

/// A message that says which call it belongs to.
pub(crate) trait Tagged: Send + 'static {
    /// The same in a call and in its answer.
    fn tag(&mut self) -> &mut u64;
}

/// Why a call brought no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// There was no stream to send it on.
    NotSent(Status),
    /// It was sent, or was about to be, when the stream broke.
    UnderWay(Status),
}

/// A line to one server; the stream comes and goes.
pub(crate) struct Line<Q, A> {
    current: tokio::sync::Mutex<Current<Q, A>>,
}

struct Current<Q, A> {
    line: Option<Arc<Open<Q, A>>>,
    /// When a stream could not be opened last, and why.
    failed: Option<(Instant, Status)>,
}

/// A line while its stream lives.
struct Open<Q, A> {
    outgoing: mpsc::Sender<Q>,
    waiting: Arc<Mutex<Waiting<A>>>,
}

struct Waiting<A> {
    last_tag: u64,
    calls: HashMap<u64, oneshot::Sender<A>>,
    /// Why the stream is over.
    over: Option<Status>,
}

impl<Q: Tagged, A: Tagged> Line<Q, A> {
    pub(crate) fn new() -> Self {
        Self { current: tokio::sync::Mutex::new(Current { line: None, failed: None }) }
    }

    /// One call; `open` opens the stream where there is none. Dropping the future forgets the call.
    pub(crate) async fn call<F>(&self, call: Q, open: impl FnOnce(ReceiverStream<Q>) -> F) -> Result<A, Lost>
    where
        F: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let line = self.open(open).await.map_err(Lost::NotSent)?;
        line.call(call).await
    }

    async fn open<F>(&self, open: impl FnOnce(ReceiverStream<Q>) -> F) -> Result<Arc<Open<Q, A>>, Status>
    where
        F: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let began = Instant::now();
        let mut current = self.current.lock().await;
        if let Some(line) = current.line.as_ref().filter(|line| line.lock().over.is_none()) {
            return Ok(line.clone());
        }
        // Who waited while somebody else tried in vain has tried, too.
        if let Some((_, status)) = current.failed.as_ref().filter(|(at, _)| *at >= began) {
            return Err(status.clone());
        }
        let (outgoing, queued) = mpsc::channel(MAX_QUEUED);
        let answers = match open(ReceiverStream::new(queued)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => {
                current.failed = Some((Instant::now(), status.clone()));
                return Err(status);
            }
        };
        let waiting = Waiting { last_tag: 0, calls: HashMap::new(), over: None };
        let waiting = Arc::new(Mutex::new(waiting));
        tokio::spawn(hand_out(answers, waiting.clone()));
        let line = Arc::new(Open { outgoing, waiting });
        current.line = Some(line.clone());
        Ok(line)
    }
}

impl<Q: Tagged, A> Open<Q, A> {
    async fn call(&self, mut call: Q) -> Result<A, Lost> {
        let (sender, answer) = oneshot::channel();
        let tag = {
            let mut waiting = self.lock();
            if let Some(over) = &waiting.over {
                return Err(Lost::NotSent(over.clone()));
            }
            waiting.last_tag += 1;
            let tag = waiting.last_tag;
            waiting.calls.insert(tag, sender);
            tag
        };
        let _forget = Forget { waiting: &self.waiting, tag };
        *call.tag() = tag;
        let sent = self.outgoing.send(call).await.is_ok();
        if sent && let Ok(answer) = answer.await {
            return Ok(answer);
        }
        let over = self.lock().over.clone();
        Err(Lost::UnderWay(over.unwrap_or_else(|| Status::unavailable("the connection broke"))))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<A>> {
        lock(&self.waiting)
    }
}

/// Takes a call out of the table when nobody waits for it any more.
struct Forget<'a, A> {
    waiting: &'a Mutex<Waiting<A>>,
    tag: u64,
}

impl<A> Drop for Forget<'_, A> {
    fn drop(&mut self) {
        lock(self.waiting).calls.remove(&self.tag);
    }
}

fn lock<A>(waiting: &Mutex<Waiting<A>>) -> MutexGuard<'_, Waiting<A>> {
    waiting.lock().expect("nothing panics while it holds the table of calls")
}

/// Gives answers to those who wait for them, until the stream is over.
async fn hand_out<A: Tagged>(mut answers: Streaming<A>, waiting: Arc<Mutex<Waiting<A>>>) {
    let over = loop {
        match answers.message().await {
            Ok(Some(mut answer)) => {
                let caller = lock(&waiting).calls.remove(answer.tag());
                if let Some(caller) = caller {
                    // Who has just gone away wants no answer.
                    let _ = caller.send(answer);
                }
            }
            Ok(None) => break Status::unavailable("the server ended the connection"),
            Err(status) => break status,
        }
    };
    let lost = {
        let mut waiting = lock(&waiting);
        waiting.over = Some(over);
        std::mem::take(&mut waiting.calls)
    };
    drop(lost);
}

#[cfg(test)]
mod tests {
    use dfs_proto::meta::meta_client::MetaClient;
    use dfs_proto::meta::{GetAttr, Request, TaggedReply, TaggedRequest, request};
    use tonic::transport::{Channel, Endpoint};

    use super::*;
    use crate::fake::{FakeMeta, Fault};

    struct Caller {
        client: MetaClient<Channel>,
        line: Line<TaggedRequest, TaggedReply>,
    }

    impl Caller {
        fn new(address: &str) -> Self {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            Self { client: MetaClient::new(endpoint.connect_lazy()), line: Line::new() }
        }

        async fn call(&self, ino: u64) -> Result<TaggedReply, Lost> {
            let op = Some(request::Op::GetAttr(GetAttr { ino }));
            let call = TaggedRequest { tag: 0, request: Some(Request { op, ..Default::default() }) };
            let mut client = self.client.clone();
            self.line.call(call, async move |calls| client.calls(calls).await).await
        }

        async fn waiting(&self) -> usize {
            self.line.current.lock().await.line.as_ref().map_or(0, |line| line.lock().calls.len())
        }
    }

    #[tokio::test]
    async fn each_call_gets_its_own_answer_and_is_forgotten() {
        let fake = FakeMeta::start().await;
        let caller = Caller::new(&fake.address);
        let calls = (0..500).map(|ino| caller.call(ino));
        let mut tags: Vec<u64> =
            futures::future::join_all(calls).await.into_iter().map(|answer| answer.unwrap().tag).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 500);
        assert_eq!(fake.count_received("get_attr"), 500);
        let mut given_up = Box::pin(caller.call(1));
        assert!(futures::poll!(&mut given_up).is_pending());
        assert_eq!(caller.waiting().await, 1);
        drop(given_up);
        assert_eq!(caller.waiting().await, 0);
    }

    #[tokio::test]
    async fn a_stream_that_broke_is_opened_again_and_where_nobody_listens_nothing_was_sent() {
        let fake = FakeMeta::start().await;
        let caller = Caller::new(&fake.address);
        fake.break_next("get_attr", &[Fault::BreakStream]);
        let lost = futures::future::join(caller.call(1), caller.call(2)).await;
        assert!(matches!(lost, (Err(Lost::UnderWay(_)), Err(Lost::UnderWay(_)))), "{lost:?}");
        assert_eq!(caller.waiting().await, 0);
        caller.call(3).await.unwrap();

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let nobody = Caller::new(&address);
        let lost = futures::future::join(nobody.call(1), nobody.call(2)).await;
        assert!(matches!(lost, (Err(Lost::NotSent(_)), Err(Lost::NotSent(_)))), "{lost:?}");
    }
}
