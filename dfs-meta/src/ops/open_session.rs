//! A client's life with this server begins.

use dfs_proto::meta::{OpenSession, SessionOpened};
use dfs_proto::{Code, Failure, PROTOCOL_VERSION, SessionId, limits};

use super::{Context, counters};
use crate::store::keys;
use crate::store::records::Session;

/// The longest text a client may give about itself, in bytes.
const MAX_TEXT: usize = 1024;

/// VERSION_UNKNOWN when the client speaks another protocol. Sent again, it opens another session; the first expires.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &OpenSession) -> Result<SessionOpened, Failure> {
    if request.protocol != PROTOCOL_VERSION {
        return Err(Failure::new(
            Code::VersionUnknown,
            format!(
                "the client speaks protocol {}, this metadata server {PROTOCOL_VERSION}; install the same version",
                request.protocol
            ),
        ));
    }
    if request.client.len() > MAX_TEXT || request.version.len() > MAX_TEXT {
        return Err(Failure::new(Code::Invalid, "a session's client and version are at most 1 KiB long"));
    }
    let id = SessionId(counters::take(cx, counters::LAST_SESSION)?);
    let session = Session { epoch: 1, client: request.client.clone(), version: request.version.clone() };
    cx.tx.put(keys::session(id), &session);
    cx.live.sessions.add(id, &session, cx.uptime);
    Ok(SessionOpened {
        session: id.0,
        epoch: session.epoch,
        slots: limits::SESSION_SLOTS,
        heartbeat_ms: cx.settings.heartbeat.as_millis() as u64,
        timeout_ms: cx.settings.session_timeout.as_millis() as u64,
        cluster: cx.settings.cluster.to_bytes(),
    })
}
