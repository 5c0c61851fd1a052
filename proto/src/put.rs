//! How a shard's bytes are sent to a chunk daemon: the call `Put`, with nothing copied on the way to the connection.
//!
//! The generated client would copy each frame's data into a message of its own. Here a message's head is made, and the data
//! follows it from where it lies; to the one who receives both are the same.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower_service::Service;

use crate::chunk::chunk_client::ChunkClient;
use crate::chunk::{PutFrame, PutReply};
use crate::limits::MAX_MESSAGE;

/// The number of the field `data` in a `PutFrame`.
const DATA_FIELD: u32 = 2;
/// A message's length and whether it is compressed (never), before each message.
const PREFIX_LENGTH: usize = 5;

/// Sends a shard and waits for the answer; sets no deadline.
pub async fn put(
    channel: Channel,
    frames: impl Stream<Item = PutFrame> + Send + Unpin + 'static,
) -> Result<PutReply, Status> {
    let body = Body::new(Messages { frames, data: None });
    let connection = Sending { channel, body: Some(body) };
    let mut client = ChunkClient::new(connection).max_decoding_message_size(MAX_MESSAGE);
    // What is sent is not what the generated client would send.
    Ok(client.put(tokio_stream::empty()).await?.into_inner())
}

/// A message but for its data, which is to follow.
fn split(mut frame: PutFrame) -> (Bytes, Option<Bytes>) {
    let message = frame.encoded_len();
    let data = Some(std::mem::take(&mut frame.data)).filter(|data| !data.is_empty());
    let mut head = BytesMut::with_capacity(PREFIX_LENGTH + message - data.as_ref().map_or(0, Bytes::len));
    head.put_u8(0);
    head.put_u32(message as u32);
    frame.encode_raw(&mut head);
    if let Some(data) = &data {
        encode_key(DATA_FIELD, WireType::LengthDelimited, &mut head);
        encode_varint(data.len() as u64, &mut head);
    }
    (head.freeze(), data)
}

/// The messages of a put, head and data in turns.
struct Messages<S> {
    frames: S,
    /// Of the message whose head was sent.
    data: Option<Bytes>,
}

impl<S: Stream<Item = PutFrame> + Unpin> http_body::Body for Messages<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(data))));
        }
        let Some(frame) = ready!(Pin::new(&mut self.frames).poll_next(context)) else {
            return Poll::Ready(None);
        };
        let (head, data) = split(frame);
        self.data = data;
        Poll::Ready(Some(Ok(http_body::Frame::data(head))))
    }
}

/// A connection for one call, which sends `body` whatever it is told to send.
struct Sending {
    channel: Channel,
    body: Option<Body>,
}

impl Service<http::Request<Body>> for Sending {
    type Response = <Channel as Service<http::Request<Body>>>::Response;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let body = self.body.take().unwrap_or_default();
        self.channel.call(request.map(|_| body))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Buf;
    use http_body::Body;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::PutHeader;

    /// What goes over the wire.
    fn sent(frames: Vec<PutFrame>) -> Vec<Bytes> {
        let mut body = Messages { frames: tokio_stream::iter(frames), data: None };
        let mut pieces = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(piece))) = Pin::new(&mut body).poll_frame(&mut context) {
            pieces.push(piece.into_data().expect("data, and nothing else"));
        }
        pieces
    }

    fn frame() -> impl Strategy<Value = PutFrame> {
        let header = (any::<u64>(), any::<u32>(), ".{0,20}").prop_map(|(chunk, index, redundancy)| {
            PutHeader { chunk, index, redundancy, ..PutHeader::default() }
        });
        let header = proptest::option::of(header);
        let data = vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        (header, data, vec(any::<u32>(), 0..20)).prop_map(|(header, data, block_crc32c)| PutFrame {
            header,
            data,
            block_crc32c,
        })
    }

    proptest! {
        #[test]
        fn the_one_who_receives_sees_the_frames(frames in vec(frame(), 0..6)) {
            let pieces = sent(frames.clone());
            // The data itself is sent, not a copy.
            for data in frames.iter().map(|frame| &frame.data).filter(|data| !data.is_empty()) {
                prop_assert!(pieces.iter().any(|piece| piece.as_ptr() == data.as_ptr() && piece == data));
            }
            let mut wire = Bytes::from(pieces.concat());
            for frame in frames {
                prop_assert_eq!(wire.get_u8(), 0, "not compressed");
                let length = wire.get_u32() as usize;
                prop_assert_eq!(PutFrame::decode(wire.split_to(length)).unwrap(), frame);
            }
            prop_assert!(wire.is_empty());
        }
    }
}
